"""What was taken for what: the confusion matrix in the report, and as a picture beside it.

    counts [K, K] --facts--> JSON, --draw--> out/confusion.png

Shapes: K classes, truth along the rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from synclr_cli.data import storage

FILE = "confusion.png"
LONGEST = 28  # letters of a name in a picture
LARGEST = 100  # classes whose matrix goes into the report
_NUMBERED, _NAMED = 20, 60  # classes up to which cells have numbers, and rows have names


def facts(counts: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Return the matrix for a report; nothing if there are too many classes to read it."""
    if len(classes) > LARGEST:
        return {}
    return {"classes": [str(name) for name in classes], "confusion": counts.tolist()}


def shortened(name: str) -> str:
    """Return a class's name as a picture has room for it."""
    return name if len(name) <= LONGEST else name[: LONGEST - 3] + "..."


def draw(counts: np.ndarray, classes: Sequence[str], png: Path) -> None:
    """Draw the matrix, each row as shares of its class; up to 20 classes with percentages."""
    occurs = counts.sum(1, keepdims=True)
    shares = np.divide(100.0 * counts, occurs, out=np.zeros(counts.shape), where=occurs > 0)
    number = len(classes)
    side = float(np.clip(1.6 + 0.42 * number, 3.5, 12))
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    panel = figure.subplots()
    shown = panel.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
    bar = figure.colorbar(shown, ax=panel, shrink=0.8)
    bar.set_label("% of the row's class", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    panel.set_xlabel("taken for", fontsize=9)
    panel.set_ylabel("class", fontsize=9)
    if number <= _NAMED:
        names = [shortened(str(name)) for name in classes]
        plain = {"fontsize": 7, "parse_math": False}  # "$" is a letter in a class's name
        panel.set_xticks(range(number), names, rotation=90, **plain)
        panel.set_yticks(range(number), names, **plain)
    if number <= _NUMBERED:
        for (row, column), share in np.ndenumerate(shares):
            if round(share):
                colour = "white" if share > 60 else "black"
                panel.text(
                    column, row, f"{share:.0f}", ha="center", va="center", fontsize=7, color=colour
                )
    with storage.atomic_file(png) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box for each is drawn
        figure.savefig(partial, format="png", dpi=130)
