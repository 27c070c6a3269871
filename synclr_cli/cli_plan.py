"""The commands that tell before anything starts: what a recipe takes, what this machine has."""

from __future__ import annotations

from typing import Annotated

import typer

from synclr_cli import cli_options as options, console
from synclr_cli.cli_options import MAKE, Preset, PrintConfig, Quiet, Sets, app, command_runner


@app.command(rich_help_panel=MAKE, epilog="Example: synclr plan --preset vitb --gpus 64")
def plan(
    gpus: Annotated[
        int | None, typer.Option("--gpus", metavar="INT", help="GPUs that share the work.")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", metavar="KIND", help="Their kind, such as h100 or 4090.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time a few batches of each stage on this machine.")
    ] = False,
    preset: Preset = "tiny",
    sets: Sets = None,
    print_config: PrintConfig = False,
    quiet: Quiet = False,
) -> None:
    """Estimate rows, bytes, memory and hours of a recipe before anything starts."""
    if measure:
        gpus = gpus or 1  # the machine at hand
    settings = options.resolve(
        "plan", preset, sets, print_config, quiet, gpus=("--gpus", gpus), gpu=("--gpu", gpu)
    )
    from synclr_cli.plan import measure as timing, recipe as recipes, report, run as estimate

    recipe = recipes.read(preset, sets or ())
    seen = timing.measure(recipe, settings, sets or (), command_runner(quiet)) if measure else None
    result = estimate.run(recipe, settings, seen)
    console.result_json(result, list(report.rows(result)))
