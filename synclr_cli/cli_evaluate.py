"""The commands that evaluate backbones on labelled images, and the table of their reports."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Annotated

import typer

from synclr_cli import cli_options as options, compare as comparison, console, evaluate
from synclr_cli.cli_options import (
    EVALUATE,
    Backbones,
    On,
    Overwrite,
    Preset,
    PrintConfig,
    Quiet,
    Seed,
    Sets,
    Workers,
    app,
)
from synclr_cli.compare import Comparison
from synclr_cli.data import describe, reports as reports_of, storage
from synclr_cli.errors import UsageError

Out = Annotated[
    Path | None, options.local_out("Folder to make.", "runs/COMMAND/BACKBONE-on-DATA")
]  # fmt: skip
DATA = typer.Option(
    "--data",
    "-d",
    metavar="DATA",
    help="Labelled images (segment: with class-id masks): a folder tree, Parquet in the"
    " Hugging Face layout, torchvision:NAME, or digits:.",
)


def _evaluate(
    command: str,
    backbones: list[str],
    tasks: list[evaluate.Task],
    out: Path | None,
    overwrite: bool,
    suite: evaluate.Suite | None = None,
) -> None:
    """Evaluate every backbone on every data set, and write the report or the table of all."""
    paths = [options.path_argument(name) for name in backbones]
    stage = importlib.import_module(f"synclr_cli.{command.replace('-', '_')}.run")
    from synclr_cli.learning import runtime

    with runtime.joined():  # one group of ranks for all evaluations
        result = evaluate.run(
            stage.run, command, paths, tasks, out, suite=suite, overwrite=overwrite
        )
    if isinstance(result, Comparison):
        for note in result.notes:
            console.warn(note)
        console.result_table(result.json(), result.grid())
    else:
        console.result_json(result, describe.report_rows(result))


@app.command(
    "linear-probe",
    rich_help_panel=EVALUATE,
    epilog="Example: synclr linear-probe runs/tiny random:runs/tiny --data digits:",
)
def linear_probe(
    backbones: Backbones,
    data: Annotated[str | None, DATA] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            "--suite", metavar="NAME", help="fine-grained or generalisation: the paper's sets."
        ),
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option("--data-root", metavar="DIR", help="Folder of the suite's data sets."),
    ] = None,
    seed: Seed = None,
    on: On = None,
    workers: Workers = None,
    out: Out = None,
    preset: Preset = "tiny",
    sets: Sets = None,
    print_config: PrintConfig = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate backbones by a linear classifier on their frozen features."""
    settings = options.resolve(
        "linear-probe", preset, sets, print_config, quiet, seed=("--seed", seed),
        executor__on=("--on", on), executor__workers=("--workers", workers),
    )  # fmt: skip
    if suite is None:
        if data is None or data_root is not None:
            raise UsageError("linear-probe", expected="--data DATA, or --suite with --data-root")
        tasks = [evaluate.Task(evaluate.stem(data), data, settings)]
        _evaluate("linear-probe", backbones, tasks, out, overwrite)
        return
    from synclr_cli.linear_probe import suites

    if suite not in suites.SUITES:
        raise UsageError("--suite", got=repr(suite), expected=" | ".join(suites.SUITES))
    if data is not None or data_root is None:
        raise UsageError(
            "--suite", expected="--data-root DIR, the folder of its sets, and no --data"
        )
    folder = suites.find(suite, data_root)
    tasks = [
        evaluate.Task(
            name,
            str(path),
            dataclasses.replace(settings, metric=folder.set(name).metric),
            folder.set(name).classes,
        )
        for name, path in folder.present.items()
    ]
    whole = evaluate.Suite(suite, len(suites.SUITES[suite]), folder.missing)
    _evaluate("linear-probe", backbones, tasks, out, overwrite, whole)


def _add(command: str, meaning: str) -> None:
    """Add an evaluation's command; these two differ in their settings and in their stage only."""

    def evaluation(
        backbones: Backbones,
        data: Annotated[str, DATA],
        seed: Seed = None,
        on: On = None,
        workers: Workers = None,
        out: Out = None,
        preset: Preset = "tiny",
        sets: Sets = None,
        print_config: PrintConfig = False,
        overwrite: Overwrite = False,
        quiet: Quiet = False,
    ) -> None:
        settings = options.resolve(
            command, preset, sets, print_config, quiet, seed=("--seed", seed),
            executor__on=("--on", on), executor__workers=("--workers", workers),
        )  # fmt: skip
        tasks = [evaluate.Task(evaluate.stem(data), data, settings)]
        _evaluate(command, backbones, tasks, out, overwrite)

    example = f"Example: synclr {command} runs/tiny --data photos/"
    app.command(command, help=meaning, rich_help_panel=EVALUATE, epilog=example)(evaluation)


_add("finetune", "Evaluate backbones by training all of each on labelled images.")
_add("segment", "Evaluate backbones by semantic segmentation with an UperNet head.")


@app.command(
    rich_help_panel=EVALUATE,
    epilog="Example: synclr compare runs/linear-probe runs/finetune --markdown table.md",
)
def compare(
    reports: Annotated[
        list[Path],
        typer.Argument(metavar="REPORT...", help="report.json files, or folders that hold some."),
    ],
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Also write the table as Markdown.")
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Also write a line a grade.")] = None,
    latex: Annotated[
        Path | None, typer.Option("--latex", help="Also write the table for LaTeX (booktabs).")
    ] = None,
    png: Annotated[Path | None, typer.Option("--png", help="Also draw the table.")] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="NAME,...", help="Names for the rows, in their order."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="ROW", help="Tell every row's margin over this one."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Put several reports side by side: a row for each backbone, a column for each evaluation."""
    console.set_quiet(quiet)
    names = [name.strip() for name in labels.split(",")] if labels else []
    table = comparison.compare(reports_of.read(reports)).named(names, reference or "")
    texts = ((markdown, table.markdown), (csv, table.csv), (latex, table.latex))
    for path, text in texts:
        if path:
            with storage.atomic_file(path) as partial:
                partial.write_text(text(), encoding="utf-8")
    if png:
        table.draw(png)
    console.result_table(table.json(), table.grid())
