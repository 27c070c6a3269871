"""Reports: what a judge found, with what, on what. One JSON file, flat where people look.

    {"schema": "report", "task": "linear-probe", "metric": "top1", "value": 64.2, "unit": "%",
     "split": "test", "n": 10000, "seed": 0, "interval": [63.3, 65.1], "top1": 64.2, ...}

Scores are given as fractions and written in percent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synclr_cli import config as configs
from synclr_cli.data import artifacts, storage
from synclr_cli.data.artifacts import Header
from synclr_cli.data.labelled import Labelled
from synclr_cli.errors import DataError
from synclr_cli.learning.backbone import Backbone
from synclr_cli.safe_text import redact

FILE = "report.json"


def header(config: configs.StageConfig, backbone: Backbone, data: Labelled) -> Header:
    """Describe a judgement: its settings, and the two digests it stands on."""
    return Header(
        schema="report",
        config=configs.recipe(config),
        seed=config.seed,
        parents=(
            artifacts.parent(Path(backbone.name), backbone.header, backbone.digest),
            artifacts.parent(Path(data.name), data.header, data.digest),
        ),
    )


def stored(path: Path, stage: str, wanted: Header, *, overwrite: bool) -> dict[str, Any] | None:
    """Return the report the same command wrote earlier; None if there is none.

    Raises:
        UsageError: the report is of other settings, another backbone or other data.
        DataError: the file is no report.
    """
    if overwrite or not path.is_file():
        return None
    report = read(path)
    found = Header.parse(json.dumps(report["header"]), path)
    artifacts.require_same(stage, found, wanted, path)
    return report


def read(path: Path) -> dict[str, Any]:
    """Read a report.

    Raises:
        DataError: the file is missing or no report.
    """
    report = storage.read_json(path)
    if report.get("schema") != "report" or "header" not in report:
        raise DataError(f"{path}", got=f"schema {report.get('schema')}", expected="a report")
    Header.parse(json.dumps(report["header"]), path)
    return report


def build(
    task: str,
    made: Header,
    backbone: Backbone,
    data: Labelled,
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
        made: of `header`.
        metric: the key of `scores` that is the result.
        scores: fractions by name; written in percent, each under its own key.
        interval: 95 % bootstrap interval of the metric, fractions.
        details: whatever else the judge wants to say; JSON values, units in the names.
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
        "seed": made.seed,
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
            "n": {name: len(each) for name, each in data.splits.items()},
            "splits": dict(data.facts),
        },
        **(details or {}),
        "config": dict(made.config),
        "header": json.loads(made.json()),
    }


def write(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report, whole or not at all."""
    storage.write_json(path, report)


def _percent(fraction: float) -> float:
    return round(100 * fraction, 4)
