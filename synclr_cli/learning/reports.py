"""Reports: what an evaluation measured, with what, on what. One JSON file, flat where people look.

    {"schema": "report", "task": "linear-probe", "metric": "top1", "value": 64.2, "unit": "%",
     "split": "test", "n": 10000, "seed": 0, "interval": [63.3, 65.1], "top1": 64.2, ...}

    counts [K, K] --confusion--> JSON, --draw_confusion--> out/confusion.png

Scores are given as fractions and written in percent. Shapes: K classes, truth along the rows.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from synclr_cli import config as configs
from synclr_cli.data import artifacts, storage
from synclr_cli.data.artifacts import Header
from synclr_cli.data.labelled import LabelledDataset
from synclr_cli.errors import DataError
from synclr_cli.learning.backbone import Backbone
from synclr_cli.learning.run_folder import REPORT_FILE, RunFolder
from synclr_cli.safe_text import redact

EvaluationConfig = configs.LinearProbeConfig | configs.FinetuneConfig | configs.SegmentConfig
MODEL_FILE, CONFUSION_FILE = "model.safetensors", "confusion.png"
LONGEST = 28  # letters of a name in an image
LARGEST = 100  # classes whose confusion matrix goes into the report
_NUMBERED, _NAMED = 20, 60  # classes up to which cells have numbers, and rows have names


def header(config: EvaluationConfig, backbone: Backbone, data: LabelledDataset) -> Header:
    """Describe an evaluation: its settings, and the two digests it stands on."""
    return Header(
        schema="report",
        config=configs.recipe(config),
        seed=config.seed,
        parents=(
            artifacts.parent(Path(backbone.name), backbone.header, backbone.digest),
            artifacts.parent(Path(data.name), data.header, data.digest),
        ),
    )


def read(path: Path) -> dict[str, Any]:
    """Read a report.

    Raises:
        DataError: the file is missing or no report.
    """
    try:
        report = storage.read_json(path)
        if report.get("schema") != "report" or "header" not in report:
            raise DataError(f"{path}", got=f"schema {report.get('schema')}", expected="a report")
        Header.parse(json.dumps(report["header"]), path)
    except DataError as e:
        raise DataError(str(e), do="delete it: the same command makes it again") from e
    return report


def build(
    task: str,
    about: Header,
    backbone: Backbone,
    data: LabelledDataset,
    *,
    metric: str,
    scores: Mapping[str, float],
    interval: tuple[float, float],
    split: str = "test",
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Put a report together.

    Args:
        task: subcommand.
        about: of `header`.
        metric: the key of `scores` that is the result.
        scores: fractions by name; written in percent, each under its own key.
        interval: 95 % bootstrap interval of the metric, fractions.
        details: what else there is to report; JSON values, units in the names.
    """
    return {
        "schema": "report",
        "version": artifacts.VERSIONS["report"],
        "task": task,
        "metric": metric,
        "value": _percent(scores[metric]),
        "unit": "%",
        "split": split,
        "n": len(data.splits[split]),
        "seed": about.seed,
        "interval": [_percent(bound) for bound in interval],
        **{name: _percent(score) for name, score in scores.items()},
        "backbone": {
            "spec": redact(backbone.spec),
            "name": backbone.name,
            "digest": backbone.digest,
            "image_size": backbone.image_size,
        },
        "data": {
            "spec": redact(data.spec),
            "name": data.name,
            "digest": data.digest,
            "classes": len(data.classes),
            "n": {name: len(split) for name, split in data.splits.items()},
            "splits": dict(data.facts),
        },
        **(details or {}),
        "config": dict(about.config),
        "header": json.loads(about.json()),
    }


def finish(
    folder: RunFolder,
    report: Mapping[str, Any],
    weights: Mapping[str, Tensor] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the selected weights, if any, and then the report; return it, alike on all ranks.

    Args:
        facts: what somebody who loads the weights must know.
    """

    def write(path: Path) -> None:
        if weights is not None:
            header = replace(folder.header, schema="model", facts=facts)
            artifacts.write_tensors(path / MODEL_FILE, weights, header)
        storage.write_json(path / REPORT_FILE, report)

    folder.finish(write)
    return read(folder.path / REPORT_FILE)  # ranks differ in seconds


def model_facts(backbone: Backbone, data: LabelledDataset) -> dict[str, Any]:
    """Return what somebody who loads the selected weights must know of images and classes."""
    return {
        "backbone": backbone.name,
        "image_size": backbone.image_size,
        "mean": list(backbone.mean),
        "std": list(backbone.std),
        "classes": list(map(str, data.classes)),
    }


def confusion(counts: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Return the matrix for a report; nothing if there are too many classes to read it."""
    if len(classes) > LARGEST:
        return {}
    return {"classes": [str(name) for name in classes], "confusion": counts.tolist()}


def shortened(name: str) -> str:
    """Return a class's name as an image has room for it."""
    return name if len(name) <= LONGEST else name[: LONGEST - 3] + "..."


def draw_confusion(counts: np.ndarray, classes: Sequence[str], png: Path) -> None:
    """Draw the matrix, each row as shares of its class; up to 20 classes with percentages."""
    from matplotlib.figure import Figure

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
        plain: dict[str, Any] = {"fontsize": 7, "parse_math": False}  # "$" is a letter of a name
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


def _percent(fraction: float) -> float:
    return round(100 * fraction, 4)
