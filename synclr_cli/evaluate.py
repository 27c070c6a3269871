"""One call of an evaluation: one backbone on one data set, or several backbones on several sets.

    backbones x data sets --evaluation, one after the other--> reports --> one report, or one table

Each evaluation has a folder of its own and is read from there, so an interrupted call goes
on where it stopped, and a table grows by naming one more backbone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from synclr_cli import compare, config as configs, console, executors
from synclr_cli.compare import Cell, Comparison
from synclr_cli.errors import UsageError


class Stage(Protocol):
    """A stage's `run`."""

    def __call__(
        self, config: Any, backbone: str, data: str, out: Path, *, overwrite: bool
    ) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Task:
    """A data set and how to evaluate on it."""

    name: str  # of the data, for folders and columns
    data: str
    settings: configs.EvaluationConfig
    classes: int = 0  # that the paper's set has; 0: nobody says


@dataclass(frozen=True)
class Suite:
    """What a suite adds to its tasks: a name, an average, and the sets it lacks."""

    name: str
    size: int  # sets the average is over
    missing: Sequence[str] = field(default=())


def stem(spec: str) -> str:
    """Return a short name for a backbone or a data set, to name an evaluation's folder by."""
    scheme, _, rest = spec.rpartition(":")
    path = Path(rest)
    # `.` and `runs/..` have a name only when resolved; a link that leads to itself never has.
    last = path.name if path.name not in ("", "..") else path.resolve().name if rest else ""
    return "-".join(part for part in (scheme, last.removesuffix(".safetensors")) if part)


def stems(specs: Sequence[str]) -> dict[str, str]:
    """Return a short name for each backbone, with its folder's where two would be the same.

    Raises:
        UsageError: two cannot be told apart, or one is named twice.
    """
    often = Counter(stem(spec) for spec in specs)
    names = {}
    for spec in specs:
        name = stem(spec)
        if often[name] > 1:
            name = f"{Path(spec.rpartition(':')[2]).resolve().parent.name}-{name}"
        names[spec] = name
    if len(set(names.values())) < len(specs):
        raise UsageError(
            f"backbones {', '.join(specs)}",
            got="two of one name",
            expected="each once, and in folders of different names",
            do="evaluate them one by one with --out",
        )
    return names


def run(
    stage: Stage,
    command: str,
    backbones: Sequence[str],
    tasks: Sequence[Task],
    out: Path | None,
    *,
    suite: Suite | None,
    overwrite: bool,
) -> dict[str, Any] | Comparison:
    """Evaluate every backbone on every data set.

    Args:
        stage: the stage.
        out: the evaluation's folder, or the folder that gets one for each; None: below runs/.

    Returns:
        The report of a single evaluation, otherwise a table of all.
    """
    names = stems(backbones)
    base = Path("runs") / command
    single = len(backbones) == 1 and len(tasks) == 1 and suite is None
    calls = []
    for backbone in backbones:
        for task in tasks:
            folder = (out or base) / f"{names[backbone]}-on-{task.name}"
            calls.append(Call(backbone, task, out if single and out else folder))
    reports: dict[str, dict[str, dict[str, Any]]] = {backbone: {} for backbone in backbones}

    def take(facts: Mapping[str, Any]) -> None:
        call = calls[facts["number"]]
        reports[call.backbone][call.task.name] = facts["report"]

    worker = Calls(stage, command, calls, overwrite, told=not (single and out))
    if tasks[0].settings.executor.on == "ray":
        _run_on_ray(worker, take)
    else:
        for facts in worker.make(range(len(calls)), lambda _: None):
            take(facts)
    if single:
        return reports[backbones[0]][tasks[0].name]
    return _table(reports, tasks, suite)


class Call(NamedTuple):
    """One backbone on one data set, and the folder of it."""

    backbone: str
    task: Task
    folder: Path


@dataclass
class Calls:
    """A worker of `executors`: its parts are evaluations."""

    stage: Stage
    command: str
    calls: Sequence[Call]
    overwrite: bool
    told: bool  # say which is begun

    def open(self, cores: int | None = None) -> None:
        """Do nothing: each evaluation loads its backbone."""

    def make(
        self, parts: Sequence[int], advance: Callable[[int], None]
    ) -> Iterator[dict[str, Any]]:
        """Evaluate; yield the number of the call and its report."""
        for number in parts:
            backbone, task, folder = self.calls[number]
            if self.told:
                console.note(f"{self.command} {backbone} on {task.name}")
            report = self.stage(
                task.settings, backbone, task.data, folder, overwrite=self.overwrite
            )
            advance(1)
            yield {"number": number, "report": report}

    def warnings(self) -> list[str]:
        """Return nothing: reports say what they warn of."""
        return []


def _run_on_ray(worker: Calls, take: Callable[[Mapping[str, Any]], None]) -> None:
    """Evaluate on a cluster, as many calls at once as there are workers."""
    calls = worker.calls
    parent = calls[0].folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    named = dict.fromkeys(name for call in calls for name in (call.backbone, call.task.data))
    inputs = [Path(name) for name in named if Path(name).exists()]
    with console.progress(worker.command, len(calls), unit="evaluations") as meter:
        executors.run(
            range(len(calls)), worker, calls[0].task.settings.executor, meter,
            written=take, places=[parent, *inputs],
        )  # fmt: skip


def _table(
    reports: Mapping[str, Mapping[str, dict[str, Any]]],
    tasks: Sequence[Task],
    suite: Suite | None,
) -> Comparison:
    rows: dict[str, dict[str, Cell]] = {}
    columns: list[str] = []
    notes: list[str] = []
    for backbone, by_task in reports.items():
        for task in tasks:
            report = by_task[task.name]
            if "value" not in report:  # its minutes were up
                notes.append(f"{backbone} on {task.name} is not finished; run the same call again.")
                continue
            column = f"{task.name} {report['metric']}"
            if column not in columns:
                columns.append(column)
            rows.setdefault(backbone, {})[column] = compare.cell([report])
            classes = report["data"]["classes"]
            if task.classes and classes != task.classes:
                note = f"{task.name} has {classes} classes, the paper's {task.classes}."
                notes.extend([note] if note not in notes else [])
    facts: dict[str, Any] = {}
    if suite is not None:
        facts = {"suite": suite.name, "missing": list(suite.missing)}
        if suite.missing:
            notes.append(
                f"Missing of the suite {suite.name}: {', '.join(suite.missing)};"
                f" its average is over all {suite.size}."
            )
    return Comparison(columns, rows, suite.size if suite else 0, notes, facts | {"notes": notes})
