"""What a run's metrics.jsonl says: its curves as one PNG, and whether something is wrong with it.

    metrics.jsonl --plot--> PNG
    a line --collapse--> a sentence, if the embeddings have collapsed

Needs no torch, and matplotlib only for a plot, so that `synclr inspect` answers at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synclr_cli.data import storage
from synclr_cli.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS_FILE = "metrics.jsonl"
COLLAPSED_RANK = 1.5  # directions in use; a batch of unrelated embeddings has tens
COLLAPSED_PROTOTYPES = 1.5  # prototypes in use
# Rates and averages follow the step, skipped or not: past this share the recipe is another one.
SKIPPED_SHARE = 0.01

COLUMNS = 4
# Panels: title, keys of a line with their names, logarithmic or not. One without numbers is left
# out.
PANELS: Sequence[tuple[str, dict[str, str], bool]] = (
    ("contrast", {"loss_global": "global crops", "loss_local": "local crops"}, False),
    ("masked patches", {"loss_patch": "iBOT"}, False),
    ("k nearest neighbours, top-1 %", {"knn_top1": "teacher"}, False),
    ("in use", {"effective_rank": "directions of the embeddings",
                "prototype_perplexity": "prototypes of the patches"}, True),
    ("cosine within less between classes", {"similarity_gap": "embeddings"}, False),
    ("teacher to student, share of length", {"teacher_distance": "ViT"}, False),
    ("gradient norm", {"grad_norm": "all weights"}, True),
    ("learning rate", {"lr": "AdamW"}, False),
    ("images per second", {"images_per_s": "all ranks"}, False),
    ("shares", {"data_wait_share": "of the time, waiting for data",
                "mfu": "of the peak FLOP/s"}, False),
)  # fmt: skip


def plot(run_folder: Path, png: Path) -> Path:
    """Plot losses, grades, the embeddings' health and the speed; return `png`.

    Raises:
        DataError: the folder has no metrics yet.
    """
    curves = figure(_read(run_folder), run_folder.resolve().name)
    with storage.atomic_file(png) as partial:
        curves.savefig(partial, format="png")
    return png


def figure(lines: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Return a panel for each kind of number that the lines have."""
    from matplotlib.figure import Figure  # without pyplot: no global state, no window system

    panels = [p for p in PANELS if any(points(lines, key) for key in p[1])]
    rows = math.ceil(len(panels) / COLUMNS)
    figure = Figure(figsize=(3.4 * COLUMNS, 2.6 * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flat
    collapsed = collapsed_at(lines)
    for (name, keys, logarithmic), axis in zip(panels, axes, strict=False):
        for key, label in keys.items():
            if xy := points(lines, key):
                marker = "o" if len(xy) < 15 else None
                axis.plot(*zip(*xy, strict=True), label=label, linewidth=1.5, marker=marker, ms=3)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        axis.grid(alpha=0.3)
        if logarithmic:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")  # 20, not 2 x 10^1
            axis.yaxis.set_minor_formatter("{x:g}")
        if len(keys) > 1:
            axis.legend(fontsize=8)
        if collapsed is not None:
            axis.axvline(collapsed, color="crimson", linewidth=1)
    for axis in list(axes):  # those that no panel took
        axis.set_axis_off()
    figure.suptitle(title if collapsed is None else f"{title}: collapsed at step {collapsed}")
    return figure


def verdict(run_folder: Path) -> str:
    """Return what is wrong with the run by now, "" if nothing is known to be."""
    lines = _read(run_folder)
    return collapse(lines[-1]) or many_skipped(lines)


def many_skipped(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence if more updates were skipped than a recipe's schedules can ignore."""
    skipped, steps = sum(line.get("skipped", 0) for line in lines), lines[-1]["step"]
    if skipped <= SKIPPED_SHARE * steps:
        return ""
    return (
        f"the loss was not finite in {skipped} of {steps} steps, whose updates were skipped."
        " Lower train.peak_lr, or set train.clip_grad=1"
    )


def collapse(line: Mapping[str, Any]) -> str:
    """Return what is wrong with a run whose embeddings have collapsed, and "" otherwise."""
    cure = "Lower train.peak_lr, lengthen train.warmup_steps, or raise train.ema"
    rank, prototypes = line.get("effective_rank"), line.get("prototype_perplexity")
    if rank is not None and rank < COLLAPSED_RANK:
        return (
            f"step {line['step']}: the embeddings of different images lie on"
            f" {rank:.1f} directions; the run has collapsed. {cure}"
        )
    if prototypes and prototypes < COLLAPSED_PROTOTYPES:  # 0: no patch was masked
        return (
            f"step {line['step']}: all masked patches have {prototypes:.1f} prototypes as their"
            f" first; the patches' side of the run has collapsed. {cure}"
        )
    return ""


def points(lines: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """Return (step, value) of the lines that have a value."""
    return [(line["step"], line[key]) for line in lines if line.get(key) is not None]


def collapsed_at(lines: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the step since which the run has been collapsed, None if it is not."""
    since = None
    for line in lines:
        since = (line["step"] if since is None else since) if collapse(line) else None
    return since


def _read(run_folder: Path) -> list[dict[str, Any]]:
    lines = storage.read_lines(run_folder / METRICS_FILE)
    if not lines:
        raise DataError(
            f"{run_folder / METRICS_FILE} has no lines yet", do="train a few steps first"
        )
    return lines
