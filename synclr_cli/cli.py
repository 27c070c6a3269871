"""The command line as a whole: `main`, exit codes, and where each command is declared.

    cli_options   the app, flags that commands share, how settings are resolved
    cli_make      captions render import train quickstart
    cli_evaluate  linear-probe finetune segment compare
    cli_look      inspect show embed push export
    cli_list      presets concepts engines
    cli_plan      plan

stdout carries the result: the path that was made, or an evaluation's report as one JSON object.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import typer

from synclr_cli import __version__, console
from synclr_cli.cli_options import app
from synclr_cli.data import storage
from synclr_cli.errors import EngineError, SynclrError, UsageError, one_line

# Importing a module adds its commands to the app; `--help` lists them in this order.
# isort: off
from synclr_cli import cli_make, cli_evaluate, cli_look, cli_list, cli_plan  # noqa: F401

# isort: on

# What torchrun runs as one job of several processes.
_BY_RANKS = {"train", "linear-probe", "finetune", "segment", "embed"}

# typer carries click inside or beside it, by version; its errors' common ancestor either way.
_CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]


def _version(value: bool) -> None:
    if value:
        console.result(f"synclr {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    del version  # its callback has answered


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code; what is not our bug ends in one line."""
    given = sys.argv[1:] if arguments is None else arguments
    together = bool(_BY_RANKS.intersection(given[:1]))
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _require_text(given)
        with storage.disk_errors(Path.cwd()):
            # Some typers turn Ctrl-C into a returned exit code, others into an Abort.
            if app(given or ["--help"], standalone_mode=False) == 130:
                raise KeyboardInterrupt
    except SynclrError as e:
        if e.speaker is not False:
            alike = together and isinstance(e, UsageError) and e.speaker is None
            console.error(str(e), alike=alike)
        sys.exit(e.exit_code)
    except _CommandLineError as e:
        console.error(one_line(cast(Any, e).format_message()), alike=together)
        sys.exit(UsageError.exit_code)
    except (MemoryError, RuntimeError) as e:  # torch and C++ libraries have RuntimeErrors for it
        if not _is_out_of_memory(e):
            raise
        console.error("there is not enough memory for this. Make the batches or models smaller")
        sys.exit(EngineError.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        console.error("interrupted; the same command continues where it stopped", alike=together)
        sys.exit(130)
    sys.exit(0)


def _require_text(arguments: list[str]) -> None:
    """Refuse bytes that are not UTF-8, which Parquet, JSON and reports cannot name.

    Raises:
        UsageError: an argument holds some.
    """
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as e:
            raise UsageError(
                f"{argument.encode('utf-8', 'replace').decode()} is not UTF-8 text",
                do="rename the folder, or name it by a link",
            ) from e


_OUT_OF_MEMORY = ("bad_alloc", "t allocate memory", "out of memory", "not enough memory")


def _is_out_of_memory(e: Exception) -> bool:
    return isinstance(e, MemoryError) or any(words in str(e) for words in _OUT_OF_MEMORY)


def _terminate(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt
