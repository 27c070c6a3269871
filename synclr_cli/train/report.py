"""The curves of a run, drawn from its metrics.jsonl as one PNG, and what they say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from synclr_cli.data import storage
from synclr_cli.errors import DataError
from synclr_cli.train.verdict import METRICS_FILE, collapse

COLUMNS = 4
# Panels: title, keys of a line with their names, logarithmic or not. Those without numbers are left
# out.
PANELS: Sequence[tuple[str, dict[str, str], bool]] = (
    ("contrast", {"loss_global": "global crops", "loss_local": "local crops"}, False),
    ("masked patches", {"loss_patch": "iBOT"}, False),
    ("k nearest neighbours, top-1 %", {"knn_top1": "teacher"}, False),
    (
        "in use",
        {
            "effective_rank": "directions of the embeddings",
            "prototype_perplexity": "prototypes of the patches",
        },
        True,
    ),
    ("cosine within less between classes", {"similarity_gap": "embeddings"}, False),
    ("teacher to student, share of length", {"teacher_distance": "ViT"}, False),
    ("gradient norm", {"grad_norm": "all weights"}, True),
    ("learning rate", {"lr": "AdamW"}, False),
    ("pictures per second", {"images_per_s": "all ranks"}, False),
    (
        "shares",
        {"data_wait_share": "of the time, waiting for data", "mfu": "of the peak FLOP/s"},
        False,
    ),
)


def plot(run_folder: Path, png: Path) -> Path:
    """Draw losses, grades, the embeddings' health and the speed; return `png`.

    Raises:
        DataError: the folder has no metrics yet.
    """
    lines = _read(run_folder)
    panels = [p for p in PANELS if any(_points(lines, key) for key in p[1])]
    rows = math.ceil(len(panels) / COLUMNS)
    # A figure without pyplot: no global state, no window system.
    figure = Figure(figsize=(3.4 * COLUMNS, 2.6 * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flat
    fallen = _collapsed_at(lines)
    for (title, keys, logarithmic), axis in zip(panels, axes, strict=False):
        for key, name in keys.items():
            points = _points(lines, key)
            if points:
                marker = "o" if len(points) < 15 else None
                axis.plot(
                    *zip(*points, strict=True), label=name, linewidth=1.5, marker=marker, ms=3
                )
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=9)
        axis.grid(alpha=0.3)
        if logarithmic:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")  # 20, not 2 x 10^1
            axis.yaxis.set_minor_formatter("{x:g}")
        if len(keys) > 1:
            axis.legend(fontsize=8)
        if fallen is not None:
            axis.axvline(fallen, color="crimson", linewidth=1)
    for axis in list(axes):  # those that no panel took
        axis.set_axis_off()
    title = run_folder.resolve().name
    figure.suptitle(title if fallen is None else f"{title}: collapsed at step {fallen}")
    with storage.atomic_file(png) as partial:
        figure.savefig(partial, format="png")
    return png


def verdict(run_folder: Path) -> str:
    """Return what is wrong with the run by now, "" if nothing is known to be."""
    last = _read(run_folder)[-1]
    return collapse(last)


def _read(run_folder: Path) -> list[dict[str, Any]]:
    lines = storage.read_lines(run_folder / METRICS_FILE)
    if not lines:
        raise DataError(
            f"{run_folder / METRICS_FILE} has no lines yet", do="train a few steps first"
        )
    return lines


def _points(lines: Sequence[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(line["step"], line[key]) for line in lines if line.get(key) is not None]


def _collapsed_at(lines: Sequence[dict[str, Any]]) -> int | None:
    """Return the step since which the run has been collapsed, None if it is not."""
    since = None
    for line in lines:
        fallen = bool(collapse(line))
        since = (line["step"] if since is None else since) if fallen else None
    return since
