"""Several reports side by side: one row a backbone, one column an evaluation.

    report.json ... --compare--> Comparison --as JSON, Markdown, PNG or on a terminal

A column is an evaluation on one data set: reports go into one column only if everything
but the backbone and the seed is the same. Reports that differ by the seed alone share a cell, as
mean and standard deviation.
"""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from synclr_cli import config as configs
from synclr_cli.data import storage
from synclr_cli.errors import UsageError
from synclr_cli.safe_text import safe


@dataclass(frozen=True)
class Cell:
    """What one backbone reached in one column."""

    values: tuple[float, ...]  # percent, one for each seed
    interval: tuple[float, float]  # 95 %, of the only value
    n: int  # images it was graded on

    @property
    def value(self) -> float:
        """Return the mean over the seeds."""
        return statistics.fmean(self.values)

    def bounds(self) -> tuple[float, float]:
        """Return the interval, or the mean less and plus the deviation over the seeds."""
        if len(self.values) < 2:
            return self.interval
        spread = statistics.stdev(self.values)
        return self.value - spread, self.value + spread

    def text(self, reference: Cell | None = None) -> str:
        """Return the grade with its 95 % interval, or its deviation over the seeds.

        With a reference, the margin over it comes before that.
        """
        margin = "" if reference is None else f" ({self.value - reference.value:+.1f})"
        if len(self.values) > 1:
            return f"{self.value:.1f}{margin} ± {statistics.stdev(self.values):.1f}"
        return f"{self.value:.1f}{margin} [{self.interval[0]:.1f}, {self.interval[1]:.1f}]"

    def json(self, reference: Cell | None = None) -> dict[str, Any]:
        """Return the cell as JSON, with its margin over a reference."""
        record: dict[str, Any] = {"value": round(self.value, 4), "n": self.n}
        if reference is not None:
            record["margin"] = round(self.value - reference.value, 4)
        if len(self.values) > 1:
            deviation = round(statistics.stdev(self.values), 4)
            return {**record, "seeds": len(self.values), "deviation": deviation}
        return {**record, "interval": list(self.interval)}


@dataclass(frozen=True)
class Comparison:
    """Reports as a table."""

    columns: Sequence[str]
    rows: Mapping[str, Mapping[str, Cell]]  # backbone -> column -> cell
    average_of: int = 0  # columns that make an average; 0: none is shown
    notes: Sequence[str] = ()  # sentences below the table
    facts: Mapping[str, Any] = field(default_factory=dict)  # more for the JSON
    reference: str = ""  # the row that margins are told over; "": none are
    floors: frozenset[str] = frozenset()  # rows of no backbone: the pixels themselves

    def named(self, labels: Sequence[str], reference: str = "") -> Comparison:
        """Return the table with other names for its rows, and with margins over one of them.

        Args:
            labels: one for each row, in order; none to keep the names.
            reference: a row, by its old name or its new one.

        Raises:
            UsageError: another number of labels, two alike, or no such row.
        """
        rows = list(self.rows)
        if labels and (len(labels) != len(rows) or len(set(labels)) != len(labels)):
            raise UsageError(
                "--labels", got=f"{len(labels)}: {', '.join(labels)}",
                expected=f"{len(rows)} different ones, for {', '.join(rows)}",
            )  # fmt: skip
        names = dict(zip(rows, labels or rows, strict=True))
        if reference and reference not in {*names, *names.values()}:
            raise UsageError("--reference", got=reference, expected=" | ".join(names.values()))
        return replace(
            self,
            rows={names[row]: cells for row, cells in self.rows.items()},
            reference=names.get(reference, reference),
            floors=frozenset(names[row] for row in self.floors),
        )

    def _reference(self, backbone: str, column: str) -> Cell | None:
        if not self.reference or backbone == self.reference:
            return None
        return self.rows[self.reference].get(column)

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
            row["grades"] = {
                column: known.json(self._reference(backbone, column))
                for column, known in cells.items()
            }
            if self.average_of:
                average = self.average(backbone)
                row["average"] = None if average is None else round(average, 4)
            rows.append(row)
        margins = {"reference": self.reference} if self.reference else {}
        return {"unit": "%", "columns": list(self.columns), "rows": rows, **margins, **self.facts}

    def grid(self) -> list[list[str]]:
        """Return the table as text, the header first; a missing grade is a dash."""
        header = ["backbone", *self.columns, *(["average"] if self.average_of else [])]
        lines = [header]
        for backbone, cells in self.rows.items():
            line = [
                cells[column].text(self._reference(backbone, column)) if column in cells else "-"
                for column in self.columns
            ]
            if self.average_of:
                average = self.average(backbone)
                line.append("-" if average is None else f"{average:.1f}")
            lines.append([backbone, *line])
        return lines

    def best(self) -> set[tuple[str, str]]:
        """Return (backbone, column) of the highest grade of every column with two or more.

        The floor of raw pixels is not a backbone, however high it lies.
        """
        highest = set()
        for column in self.columns:
            grades = {
                b: cells[column].value
                for b, cells in self.rows.items()
                if column in cells and b not in self.floors
            }
            if len(grades) > 1:
                highest.add((max(grades, key=lambda b: grades[b]), column))
        return highest

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

    def csv(self) -> str:
        """Return a line for each grade: backbone, column, value, low, high, n, seeds, margin."""
        sink = io.StringIO()
        writer = csv.writer(sink, lineterminator="\n")
        writer.writerow(["backbone", "column", "value", "low", "high", "n", "seeds", "margin"])
        for backbone, cells in self.rows.items():
            for column in self.columns:
                if (known := cells.get(column)) is None:
                    continue
                low, high = known.bounds()
                over = self._reference(backbone, column)
                margin = "" if over is None else f"{known.value - over.value:.4f}"
                numbers = [f"{x:.4f}" for x in (known.value, low, high)]
                writer.writerow([backbone, column, *numbers, known.n, len(known.values), margin])
        return sink.getvalue()

    def latex(self) -> str:
        """Return the table as a LaTeX tabular for booktabs, the highest of a column in bold."""
        header, *body = self.grid()
        best = self.best()
        lines = [
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule",
            " & ".join(map(_latex, header)) + r" \\", r"\midrule",
        ]  # fmt: skip
        for backbone, *cells in body:
            shown = [
                rf"\textbf{{{_latex(text)}}}" if (backbone, column) in best else _latex(text)
                for text, column in zip(cells, header[1:], strict=True)
            ]
            lines.append(" & ".join([_latex(backbone), *shown]) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])

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
                panel.text(0, y, " not evaluated", va="center", fontsize=8, color="0.5")
                continue
            low, high = cell.bounds()
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
        floors=frozenset(
            rows[_row(r)] for r in reports if str(r["backbone"]["spec"]).startswith("pixels:")
        ),
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
    evaluation = protocol if protocol and protocol != "lbfgs" else report["task"]
    return f"{report['data']['name']} {evaluation} {report['metric']}"


def _column_detail(report: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    own_settings = _settings(report)
    differing = [
        f"{key}={value}"
        for key, value in own_settings.items()
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


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
          "±": r"$\pm$"}  # fmt: skip


def _latex(text: str) -> str:
    """Return a text with what LaTeX reads as a command escaped."""
    return re.sub(r"[\\~^±]|[&%$#_{}]", lambda m: _LATEX.get(m[0], "\\" + m[0]), safe(text))
