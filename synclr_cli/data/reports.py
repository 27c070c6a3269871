"""Reports of evaluations, read back: files of anybody's, with what a table shows of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from synclr_cli.data import storage
from synclr_cli.data.header import Header
from synclr_cli.errors import DataError

FILE = "report.json"


def read(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Read reports: files, folders that hold a report, or folders of such folders.

    Raises:
        DataError: nothing there, or it is not a report.
    """
    reports: list[dict[str, Any]] = []
    for path in paths:
        files = [path]
        if path.is_dir():
            files = sorted(f for f in path.rglob(FILE) if not _is_hidden(f, path))
            if not files:
                raise DataError(f"{path} holds no {FILE}", do="finish its evaluation first")
        for file in files:
            report = storage.read_json(file)
            if report.get("schema") != "report" or "header" not in report:
                raise DataError(
                    f"{file}", got=f"schema {report.get('schema')}", expected="a report"
                )
            Header.parse(json.dumps(report["header"]), file)
            _require_report(report, file)
            reports.append(report)
    return reports


_EVALUATIONS = ("linear-probe", "finetune", "segment")


def _require_report(report: Mapping[str, Any], file: Path) -> None:
    """Refuse a report without what a table shows of it.

    Raises:
        DataError: names what is missing or of another type.
    """
    task, interval = report.get("task"), report.get("interval")
    if task not in _EVALUATIONS:
        raise DataError(f"{file}: task", got=repr(task)[:60], expected=" | ".join(_EVALUATIONS))
    pair = isinstance(interval, list) and len(interval) == 2
    values = [report.get("value"), *(interval if pair else (None,))]  # type: ignore[misc]
    if not all(map(_is_number, values)):
        raise DataError(f"{file}: value and interval", expected="numbers in percent")
    texts = {"metric": report.get("metric"), "protocol": report.get("protocol", "")}
    for table, keys in (("backbone", ("spec", "digest")), ("data", ("name", "digest"))):
        inner = report.get(table)
        for key in keys:
            texts[f"{table}.{key}"] = inner.get(key) if isinstance(inner, dict) else None
    for name, text in texts.items():
        if not isinstance(text, str):
            raise DataError(f"{file}: {name}", got=repr(text)[:60], expected="text")
    if not isinstance(report.get("config"), dict):
        raise DataError(f"{file}: config", expected="the settings it was made with")
    for name in ("n", "seed"):
        if not isinstance(number := report.get(name), int) or abs(number) >= 2**64:
            raise DataError(f"{file}: {name}", got=repr(number)[:60], expected="a whole number")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and -1e9 < value < 1e9  # false for nan


def _is_hidden(file: Path, root: Path) -> bool:
    """Return whether a file is in a hidden folder, where `--overwrite` makes a new run."""
    return any(part.startswith(".") for part in file.relative_to(root).parts)
