"""The curves of a run, drawn from its metrics.jsonl as one PNG."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from synclr_cli import artifacts
from synclr_cli.errors import DataError
from synclr_cli.train.folder import METRICS_FILE

# Panels: title, keys of a line with their names, logarithmic or not.
PANELS: Sequence[tuple[str, dict[str, str], bool]] = (
    ("contrast", {"loss_global": "global crops", "loss_local": "local crops"}, False),
    ("masked patches", {"loss_patch": "iBOT"}, False),
    ("learning rate", {"lr": "AdamW"}, False),
    ("gradient norm", {"grad_norm": "all weights"}, True),
    ("directions in use", {"effective_rank": "effective rank of the embeddings"}, False),
    ("cosine within less between captions", {"similarity_gap": "teacher"}, False),
)


def plot(run_folder: Path, png: Path) -> Path:
    """Draw losses, learning rate, gradient norm and the embeddings' health; return `png`.

    Raises:
        DataError: the folder has no metrics yet.
    """
    log = run_folder / METRICS_FILE
    try:
        lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as e:
        raise DataError(f"cannot read {log} ({e})", do="train a few steps first") from e
    if not lines:
        raise DataError(f"{log} has no lines yet", do="train a few steps first")
    steps = [line["step"] for line in lines]
    # A figure without pyplot: no global state, no window system.
    figure = Figure(figsize=(12, 6), dpi=110, layout="constrained")
    for panel, (title, keys, logarithmic) in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        for key, name in keys.items():
            values = [line.get(key) for line in lines]
            points = [(s, v) for s, v in zip(steps, values, strict=True) if v is not None]
            if points:
                panel.plot(*zip(*points, strict=True), label=name, linewidth=1.5)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("step", fontsize=9)
        panel.grid(alpha=0.3)
        if logarithmic:
            panel.set_yscale("log")
        if len(keys) > 1:
            panel.legend(fontsize=8)
    figure.suptitle(run_folder.resolve().name)
    with artifacts.atomic_file(png) as partial:
        figure.savefig(partial, format="png")
    return png
