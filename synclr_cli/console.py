"""What a person sees. The only module that prints.

stdout carries the result and nothing else; progress, notes, warnings and errors go to stderr.
What is printed has no control characters of somebody's caption or file name, and no password of a
URI (`safe_text`).
On a terminal progress is a bar with rate and time left, otherwise one plain line per interval.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from synclr_cli.safe_text import safe

PLAIN_INTERVAL_S = 10.0  # without a terminal: one progress line per this many seconds

_stderr = Console(stderr=True, highlight=False, soft_wrap=True)
_quiet = False
_captured: list[list[str]] = []  # results of commands that a command runs
_main_rank = os.environ.get("RANK", "0") == "0"  # torchrun sets RANK; only rank 0 talks


def set_quiet(quiet: bool) -> None:
    """Silence notes and progress; warnings and errors still show."""
    global _quiet
    _quiet = quiet


def result(value: str) -> None:
    """Write the command's result to stdout, or hand it to the command that runs this one."""
    if _captured:
        _captured[-1].append(value)
    elif _main_rank:
        try:
            sys.stdout.write(safe(value).rstrip("\n") + "\n")
            sys.stdout.flush()
        except BrokenPipeError:  # its reader went away, as `head` does; the result is made
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def result_json(report: Mapping[str, Any], rows: Sequence[tuple[str, str]] = ()) -> None:
    """Write a result: one JSON object, or on a terminal a table of `rows` (name, value)."""
    if rows and not _captured and sys.stdout.isatty():
        table = Table(show_header=False, box=None, pad_edge=False)
        for name, value in rows:
            table.add_row(_text(name), _text(value))
        if _main_rank:
            Console().print(table)
    else:
        result(json.dumps(report, ensure_ascii=False, allow_nan=False))


def result_table(value: Mapping[str, Any], grid: Sequence[Sequence[str]]) -> None:
    """Write several results: one JSON object, or on a terminal a table, its header first."""
    if _captured or not sys.stdout.isatty():
        result(json.dumps(value, ensure_ascii=False, allow_nan=False))
    elif _main_rank:
        Console().print(_filled(Table(box=None, pad_edge=False), grid[0], grid[1:]))


@contextmanager
def captured() -> Iterator[list[str]]:
    """Collect results in a list instead of writing them to stdout."""
    _captured.append([])
    try:
        yield _captured[-1]
    finally:
        _captured.pop()


def note(message: str) -> None:
    """Say one line about the work to stderr."""
    if _main_rank and not _quiet:
        _stderr.print(_text(message))


def warn(message: str) -> None:
    """Say one line that the user should read, to stderr."""
    if _main_rank:
        _stderr.print(Text.assemble(("warning: ", "yellow"), safe(message)))


def error(message: str, *, alike: bool = False) -> None:
    """Say the one line a failed command ends with, to stderr.

    Args:
        alike: all ranks end so; the first of each machine says it.
    """
    if alike and os.environ.get("LOCAL_RANK", "0") != "0":
        return
    _stderr.print(Text.assemble(("error: ", "bold red"), safe(message)))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Show a table on stderr; columns of numbers are right-aligned."""
    if not _main_rank or _quiet:
        return
    _stderr.print(_filled(Table(title=_text(title), title_justify="left"), columns, rows))


def _filled(shown: Table, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    for i, column in enumerate(columns):
        numbers = i > 0 and all(row[i][:1].isdigit() or row[i][:1] == "-" for row in rows)
        shown.add_column(_text(column), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        shown.add_row(*map(_text, row))  # a caption may hold [brackets]
    return shown


def _text(value: str) -> Text:
    return Text(safe(value))


def plain(number: float, digits: int = 3) -> str:
    """Return a number with so many digits that count and no exponent: 3342, 12.5, 0.00735."""
    if not number or not math.isfinite(number):
        return f"{number:g}"
    places = digits - 1 - math.floor(math.log10(abs(number)))
    return f"{number:.{max(0, places)}f}"


class _Rate(ProgressColumn):
    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{plain(speed)} {self.unit}/s", style="cyan")


class Meter:
    """Counts finished units of one long job; `advance` them, and `say` numbers beside the bar."""

    def __init__(self, name: str, total: int, done: int, unit: str, bar: Progress | None):
        self._name, self._total, self._unit, self._bar = name, total, unit, bar
        self._done = self._start_done = done
        self._start = self._last_line = time.monotonic()
        self._words = ""
        self._task = bar.add_task(name, total=total, completed=done, words="") if bar else None

    def advance(self, units: int = 1) -> None:
        self._done += units
        if self._bar and self._task is not None:
            self._bar.advance(self._task, units)
        elif not _quiet and _main_rank:
            now = time.monotonic()
            if now - self._last_line >= PLAIN_INTERVAL_S:
                self._last_line = now
                self._plain_line(now)

    def say(self, **numbers: float) -> None:
        shown = {n: v if isinstance(v, int) else plain(v, 4) for n, v in numbers.items()}
        self._words = "  ".join(f"{name} {value}" for name, value in shown.items())
        if self._bar and self._task is not None:
            self._bar.update(self._task, words=self._words)

    def _plain_line(self, now: float) -> None:
        rate = (self._done - self._start_done) / max(now - self._start, 1e-9)
        left = (self._total - self._done) / rate if rate else float("inf")
        _stderr.print(
            Text(
                f"{self._name} {self._done}/{self._total}  {plain(rate)} {self._unit}/s"
                f"  {left:.0f} s left  {self._words}".rstrip()
            )
        )


@contextmanager
def progress(name: str, total: int, *, done: int = 0, unit: str = "it") -> Iterator[Meter]:
    """Show the progress of one job of `total` units, of which `done` were finished earlier."""
    if _quiet or not _main_rank or not _stderr.is_terminal:
        yield Meter(name, total, done, unit, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        _Rate(unit),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=_stderr, transient=True) as bar:
        yield Meter(name, total, done, unit, bar)
