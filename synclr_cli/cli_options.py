"""What the commands of the command line share: the app, flags, and how settings are resolved."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from synclr_cli import console, engines, presets
from synclr_cli.config import CaptionsConfig, RenderConfig
from synclr_cli.data import storage
from synclr_cli.errors import UsageError

app = typer.Typer(
    name="synclr",
    help="From a list of words to a vision backbone, with no real image in between.\n\n"
    "A language model writes captions, a text-to-image model generates several images of each, "
    "and a ViT learns that the images of one caption belong together.",
    epilog="Start here: synclr quickstart",
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

# `synclr --help` groups the commands under these.
MAKE = "Make a backbone, step by step"
EVALUATE = "Evaluate backbones"
LOOK = "Look at things, and use them elsewhere"
LIST = "List what there is to choose from"

Preset = Annotated[
    str,
    typer.Option(
        "--preset", "-p", metavar="NAME|FILE", help="Recipe to take the settings from."
    ),
]  # fmt: skip
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting, such as train.steps=500. Repeatable.",
    ),
]
PrintConfig = Annotated[
    bool,
    typer.Option("--print-config", help="Show every setting and where it comes from, then stop."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what an earlier run left at --out.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notes and no progress.")]
Seed = Annotated[int | None, typer.Option(metavar="INT", help="Seed of all randomness.")]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="SCHEME:TARGET",
        help="Model that does the work; `synclr engines` lists them.",
    ),
]
Shard = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Make the I-th of N shares of the parts."),
]
On = Annotated[
    str | None,
    typer.Option("--on", metavar="local|ray", help="Make the parts here, or on a Ray cluster."),
]
Workers = Annotated[
    str | None,
    typer.Option(
        "--workers", metavar="N|MIN:MAX", help="With --on ray: processes, with an engine each."
    ),
]
Backbones = Annotated[
    list[str],
    typer.Argument(
        metavar="BACKBONE...",
        help="Run folder, .safetensors, reference .pth, timm:NAME, random:ARCH, random:RUN, or -"
        " to read the path from stdin. Several give one table.",
    ),
]


def out(meaning: str) -> Any:
    """Return the option of a place to write to, on this machine or at a URI."""
    return typer.Option("--out", "-o", metavar="PATH", parser=storage.place, help=meaning)


def local_out(meaning: str, default: str | bool = True) -> Any:
    """Return the option of a folder on this machine; `default` is how help shows its name."""
    return typer.Option(
        "--out", "-o", metavar="PATH", parser=storage.here, help=meaning, show_default=default
    )


def resolve(
    stage: str,
    preset: str,
    sets: list[str] | None,
    print_config: bool,
    quiet: bool,
    **flags: tuple[str, Any],
) -> Any:
    """Join the settings of one command; with `--print-config`, show them and stop.

    Args:
        flags: key path, with `__` for its dots -> (flag as typed, value or None).
    """
    console.set_quiet(quiet)
    by_key = {key.replace("__", "."): flag for key, flag in flags.items()}
    resolved = presets.resolve(stage, preset=preset, flags=by_key, sets=sets or ())
    if isinstance(resolved.config, CaptionsConfig):
        engines.require_scheme("caption", resolved.config.engine.name)
    elif isinstance(resolved.config, RenderConfig):
        engines.require_scheme("image", resolved.config.engine.name)
    if print_config:
        console.result(resolved.toml())
        raise typer.Exit
    return resolved.config


def command_runner(quiet: bool) -> Callable[[list[str]], str]:
    """Return a function that runs one synclr command in this process and returns its result."""

    def synclr(arguments: list[str]) -> str:
        with console.captured() as lines:
            app([*arguments, *(["--quiet"] if quiet else [])], standalone_mode=False)
        return "\n".join(lines)

    return synclr


def path_argument(name: str) -> str:
    """Return the path, read from stdin if it is `-`.

    Raises:
        UsageError: stdin holds anything but one path.
    """
    if name != "-":
        return name
    if sys.stdin.isatty():
        raise UsageError("the input is -, but nothing is piped in", do="name a path instead of -")
    lines = [line.strip() for line in sys.stdin.read().splitlines() if line.strip()]
    if len(lines) != 1:
        raise UsageError(
            "stdin", got=f"{len(lines)} lines", expected="one path",
            do="look for the error of the command before this one in the pipe",
        )  # fmt: skip
    if "\0" in lines[0]:
        raise UsageError("stdin", got="a path with a NUL in it", expected="one path")
    return lines[0]
