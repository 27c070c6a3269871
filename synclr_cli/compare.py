"""Several reports side by side: one row a backbone, one column a judgement.

    report.json ... --compare--> Comparison --as JSON, Markdown, PNG or on a terminal

A column is a judge with its settings on one data set: reports go into one column only if everything
but the backbone and the seed is the same. Reports that differ by the seed alone share a cell, as
mean and standard deviation.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synclr_cli import config as configs
from synclr_cli.data import storage
from synclr_cli.data.artifacts import Header
from synclr_cli.errors import DataError
from synclr_cli.safe_text import safe

FILE = "report.json"


@dataclass(frozen=True)
class Cell:
    """What one backbone reached in one column."""

    values: tuple[float, ...]  # percent, one for each seed
    interval: tuple[float, float]  # 95 %, of the only value
    n: int  # pictures it was graded on

    @property
    def value(self) -> float:
        """Return the mean over the seeds."""
        return statistics.fmean(self.values)

    def text(self) -> str:
        """Return the grade with its 95 % interval, or its deviation over the seeds."""
        if len(self.values) > 1:
            return f"{self.value:.1f} ± {statistics.stdev(self.values):.1f}"
        return f"{self.value:.1f} [{self.interval[0]:.1f}, {self.interval[1]:.1f}]"

    def json(self) -> dict[str, Any]:
        """Return the cell as JSON."""
        found: dict[str, Any] = {"value": round(self.value, 4), "n": self.n}
        if len(self.values) > 1:
            deviation = round(statistics.stdev(self.values), 4)
            return {**found, "seeds": len(self.values), "deviation": deviation}
        return {**found, "interval": list(self.interval)}


@dataclass(frozen=True)
class Comparison:
    """Reports as a table."""

    columns: Sequence[str]
    rows: Mapping[str, Mapping[str, Cell]]  # backbone -> column -> cell
    average_of: int = 0  # columns that make an average; 0: none is shown
    notes: Sequence[str] = ()  # sentences below the table
    facts: Mapping[str, Any] = field(default_factory=dict)  # more for the JSON

    def average(self, backbone: str) -> float | None:
        """Return the mean over the columns; None if one is missing."""
        cells = self.rows[backbone]
        if not self.average_of or len(cells) < self.average_of:
            return None
        return statistics.fmean(cell.value for cell in cells.values())

    def json(self) -> dict[str, Any]:
        """Return the table as one JSON object."""
        rows = []
        for backbone, cells in self.rows.items():
            row: dict[str, Any] = {"backbone": backbone}
            row["grades"] = {column: cells[column].json() for column in cells}
            if self.average_of:
                average = self.average(backbone)
                row["average"] = None if average is None else round(average, 4)
            rows.append(row)
        return {"unit": "%", "columns": list(self.columns), "rows": rows, **self.facts}

    def grid(self) -> list[list[str]]:
        """Return the table as text, the header first; a missing grade is a dash."""
        header = ["backbone", *self.columns, *(["average"] if self.average_of else [])]
        lines = [header]
        for backbone, cells in self.rows.items():
            line = [cells[column].text() if column in cells else "-" for column in self.columns]
            if self.average_of:
                average = self.average(backbone)
                line.append("-" if average is None else f"{average:.1f}")
            lines.append([backbone, *line])
        return lines

    def best(self) -> set[tuple[str, str]]:
        """Return (backbone, column) of the highest grade of every column with two or more."""
        found = set()
        for column in self.columns:
            grades = {b: cells[column].value for b, cells in self.rows.items() if column in cells}
            if len(grades) > 1:
                found.add((max(grades, key=lambda b: grades[b]), column))
        return found

    def markdown(self) -> str:
        """Return the table as Markdown, the highest of a column in bold."""
        header, *body = self.grid()
        best = self.best()
        lines = [_line(header), _line(["---"] + ["---:"] * (len(header) - 1))]
        for backbone, *cells in body:
            shown = [
                f"**{text}**" if (backbone, column) in best else text
                for text, column in zip(cells, header[1:], strict=True)
            ]
            lines.append(_line([backbone, *shown]))
        notes = "".join(f"\n{note}" for note in self.notes)
        return "\n".join(lines) + "\n" + (notes + "\n" if notes else "")

    def draw(self, png: Path) -> Path:
        """Draw a panel of bars with intervals for each column; return `png`."""
        from matplotlib.figure import Figure

        names, count = list(self.rows), len(self.columns)
        across = min(count, 4)
        down = -(-count // across)
        tall = 0.9 + 0.34 * len(names)
        figure = Figure(figsize=(3.6 * across + 1.6, down * tall), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False)
        for panel in panels.flat[count:]:
            panel.axis("off")
        for at, (panel, column) in enumerate(zip(panels.flat, self.columns, strict=False)):
            self._bars(panel, column, names)
            if at % across:
                panel.tick_params(labelleft=False)
        with storage.atomic_file(png) as partial:
            figure.savefig(partial, format="png", dpi=150)
        return png

    def _bars(self, panel: Any, column: str, names: Sequence[str]) -> None:
        best = self.best()
        for y, name in enumerate(names):
            cell = self.rows[name].get(column)
            if cell is None:
                panel.text(0, y, " not judged", va="center", fontsize=8, color="0.5")
                continue
            low, high = cell.interval
            if len(cell.values) > 1:
                spread = statistics.stdev(cell.values)
                low, high = cell.value - spread, cell.value + spread
            panel.barh(
                y, cell.value, height=0.62, color="C0" if (name, column) in best else "0.75",
                xerr=[[max(cell.value - low, 0)], [max(high - cell.value, 0)]],
                error_kw={"lw": 1, "capsize": 2},
            )  # fmt: skip
            panel.text(max(high, cell.value), y, f" {cell.value:.1f}", va="center", fontsize=8)
        panel.set_yticks(range(len(names)), names, fontsize=8)
        panel.set_ylim(len(names) - 0.5, -0.5)
        panel.set_xlim(0, 1.18 * max([panel.get_xlim()[1] / 1.05, 1.0]))
        panel.set_title(column, fontsize=9)
        panel.tick_params(axis="x", labelsize=7)
        panel.spines[["top", "right"]].set_visible(False)


def read(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Read reports: files, folders that hold a report, or folders of such folders.

    Raises:
        DataError: nothing there, or it is no report.
    """
    found: list[dict[str, Any]] = []
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
            found.append(report)
    return found


def _is_hidden(file: Path, root: Path) -> bool:
    """Return whether a file is in a hidden folder, where `--overwrite` makes a new run."""
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def compare(reports: Sequence[Mapping[str, Any]]) -> Comparison:
    """Put reports into a table, rows and columns in the order of first appearance."""
    columns = _labels({_column(r): r for r in reports}, _column_name, _column_detail)
    rows = _labels({_row(r): r for r in reports}, _row_name, _row_detail)
    groups: dict[str, dict[str, dict[int, Mapping[str, Any]]]] = {}
    for report in reports:
        cells = groups.setdefault(rows[_row(report)], {})
        cells.setdefault(columns[_column(report)], {})[report["seed"]] = report
    return Comparison(
        list(dict.fromkeys(columns.values())),
        {
            backbone: {column: cell(list(by_seed.values())) for column, by_seed in cells.items()}
            for backbone, cells in groups.items()
        },
    )


def cell(reports: Sequence[Mapping[str, Any]]) -> Cell:
    """Return the cell of reports that differ by the seed alone."""
    low, high = reports[0]["interval"]
    return Cell(tuple(r["value"] for r in reports), (low, high), reports[0]["n"])


def _settings(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a grade depends on, but for the seed."""
    known = configs.keys(report["task"])
    running = {key for key, setting in known.items() if setting.running}
    return {k: v for k, v in report["config"].items() if k not in running | {"seed"}}


def _column(report: Mapping[str, Any]) -> str:
    """Return what must be the same in one column."""
    return json.dumps(
        [report["task"], report["metric"], report["data"]["digest"], _settings(report)],
        sort_keys=True,
    )


def _row(report: Mapping[str, Any]) -> str:
    """Return what must be the same in one row; random weights are new for each seed."""
    spec = str(report["backbone"]["spec"])
    return spec if spec.startswith("random:") else f"{spec} {report['backbone']['digest']}"


def _column_name(report: Mapping[str, Any]) -> str:
    protocol = report.get("protocol", "")
    judge = protocol if protocol and protocol != "lbfgs" else report["task"]
    return f"{report['data']['name']} {judge} {report['metric']}"


def _column_detail(report: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    mine = _settings(report)
    differing = [
        f"{key}={value}"
        for key, value in mine.items()
        if any(_settings(other).get(key) != value for other in others)
    ]
    if any(other["data"]["digest"] != report["data"]["digest"] for other in others):
        differing.append(f"data {_short(report['data']['digest'])}")
    return " ".join(differing)


def _row_name(report: Mapping[str, Any]) -> str:
    return str(report["backbone"]["spec"])


def _row_detail(report: Mapping[str, Any], _others: Sequence[Mapping[str, Any]]) -> str:
    return _short(report["backbone"]["digest"])


def _labels(
    firsts: Mapping[str, Mapping[str, Any]], name_of: Any, detail_of: Any
) -> dict[str, str]:
    """Name each group; groups of one name also get what tells them apart."""
    names = {key: name_of(report) for key, report in firsts.items()}
    labels = {}
    for key, report in firsts.items():
        others = [r for k, r in firsts.items() if k != key and names[k] == names[key]]
        detail = detail_of(report, others) if others else ""
        labels[key] = f"{names[key]} ({detail})" if detail else names[key]
    return labels


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:8]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(safe(cell).replace("|", "\\|") for cell in cells) + " |"
