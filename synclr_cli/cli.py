"""The command line: one function per subcommand, each reading its settings before anything heavy.

A command resolves its config, answers `--print-config`, and only then imports its stage. stdout
carries the result: the path that was made, or a judge's report as one JSON object.
"""

from __future__ import annotations

import dataclasses
import importlib
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import typer

from synclr_cli import __version__, compare as comparison, console, engines, evaluate, presets
from synclr_cli.compare import Comparison
from synclr_cli.data import describe, storage
from synclr_cli.errors import SynclrError, UsageError

app = typer.Typer(
    name="synclr",
    help="From a list of words to a vision backbone, with no real image in between.\n\n"
    "A language model writes captions, a text-to-image model paints several pictures of each, "
    "and a ViT learns that the pictures of one caption belong together.",
    epilog="Start here: synclr quickstart",
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

# ------------------------------------------------------------------- flags that commands share

Preset = Annotated[
    str,
    typer.Option(
        "--preset", "-p", metavar="NAME|FILE", help="Experiment to take the settings from."
    ),
]
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


def _out(meaning: str) -> Any:
    return typer.Option("--out", "-o", metavar="PATH", parser=storage.place, help=meaning)


def _folder(meaning: str, otherwise: str | bool = True) -> Any:
    """Return the option of a folder that can only be on this machine, and its name if not given."""
    return typer.Option(
        "--out", "-o", metavar="PATH", parser=storage.here, help=meaning, show_default=otherwise
    )


Overwrite = Annotated[bool, typer.Option("--overwrite", help="Make it anew if it is there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notes and no progress.")]
Seed = Annotated[int | None, typer.Option(metavar="INT", help="Seed of all randomness.")]
Engine = Annotated[
    str | None, typer.Option("--engine", metavar="SCHEME:TARGET", help="Model that does the work.")
]
BackboneArguments = Annotated[
    list[str],
    typer.Argument(
        metavar="BACKBONE...",
        help="Run folder, .safetensors, reference .pth, timm:NAME, random:ARCH, random:RUN, or -."
        " Several give one table.",
    ),
]
JudgeOut = Annotated[Path | None, _folder("Folder to make.", "runs/COMMAND/BACKBONE-on-DATA")]
DataFlag = typer.Option(
    "--data",
    "-d",
    metavar="DATA",
    help="Labelled pictures (segment: with class-id masks): a folder tree, Parquet in the"
    " Hugging Face layout, torchvision:NAME, or digits:.",
)


def _resolve(
    stage: str,
    preset: str,
    sets: list[str] | None,
    print_config: bool,
    quiet: bool,
    **flags: tuple[str, Any],
) -> Any:
    """Join the settings of one command; with `--print-config`, show them and stop."""
    console.set_quiet(quiet)
    by_key = {key.replace("__", "."): flag for key, flag in flags.items()}
    resolved = presets.resolve(stage, preset=preset, flags=by_key, sets=sets or ())
    engine = getattr(resolved.config, "engine", None)
    if engine is not None:
        engines.require_scheme("caption" if stage == "captions" else "image", engine.name)
    if print_config:
        console.result(resolved.toml())
        raise typer.Exit
    return resolved.config


def _input(name: str) -> str:
    """Return the input's name, read from stdin if it is `-`."""
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
    return lines[0]


# ---------------------------------------------------------------------------------- the makers


@app.command()
def captions(
    concepts: Annotated[
        str | None,
        typer.Option(
            "--concepts",
            "-c",
            metavar="SOURCE",
            help="in1k, in12k, in21k ..., a word list (.txt .csv .parquet), or NAME:WEIGHT,... .",
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", "-n", metavar="INT", help="Captions to write.")
    ] = None,
    engine: Engine = None,
    seed: Seed = None,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Make the I-th of N files of the captions."),
    ] = None,
    out: Annotated[Path, _out("Parquet file to make, here or at a URI.")] = Path(
        "captions.parquet"
    ),
    preset: Preset = "tiny",
    sets: Sets = None,
    print_config: PrintConfig = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write captions for a list of concepts with a language model."""
    settings = _resolve(
        "captions", preset, sets, print_config, quiet,
        concepts=("--concepts", concepts), count=("--count", count),
        engine__name=("--engine", engine), seed=("--seed", seed), shard=("--shard", shard),
    )  # fmt: skip
    from synclr_cli.captions.run import run

    console.result(str(run(settings, out, overwrite=overwrite)))


@app.command()
def join(
    shards: Annotated[
        list[str],
        typer.Argument(metavar="SHARDS...", help="Captions files made with --shard I/N, all N."),
    ],
    out: Annotated[Path, _out("Parquet file to make, here or at a URI.")] = Path(
        "captions.parquet"
    ),
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Join the shards of a captions file to what one machine would have written."""
    console.set_quiet(quiet)
    from synclr_cli.captions import joining

    pieces = [storage.place(name) for name in shards]
    console.result(str(joining.run(pieces, out, overwrite=overwrite)))


@app.command()
def render(
    captions: Annotated[
        str, typer.Argument(metavar="CAPTIONS", help="Parquet file of captions, or -.")
    ] = "captions.parquet",
    views: Annotated[
        int | None, typer.Option("--views", metavar="INT", help="Pictures of each caption.")
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Make the I-th of N shares of the parts."),
    ] = None,
    engine: Engine = None,
    seed: Seed = None,
    out: Annotated[Path, _out("Folder to make, here or at a URI.")] = Path("images"),
    preset: Preset = "tiny",
    sets: Sets = None,
    print_config: PrintConfig = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Paint several pictures of every caption with a text-to-image model."""
    settings = _resolve(
        "render", preset, sets, print_config, quiet,
        views=("--views", views), engine__name=("--engine", engine), seed=("--seed", seed),
        shard=("--shard", shard),
    )  # fmt: skip
    source = storage.place(_input(captions))
    from synclr_cli.render.run import run

    console.result(str(run(settings, source, out, overwrite=overwrite)))


@app.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            parser=storage.place,
            help="A .csv (path, caption), a .parquet, a webdataset .tar, or a folder of these.",
        ),
    ],
    roots: Annotated[
        list[Path] | None,
        typer.Option(
            "--root",
            metavar="PATH",
            parser=storage.place,
            help="With a .csv: folder its paths start in, one a view.",
        ),
    ] = None,
    out: Annotated[Path, _out("Folder to make, here or at a URI.")] = Path("images"),
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Take over captioned pictures made elsewhere, as if they had been rendered here."""
    console.set_quiet(quiet)
    from synclr_cli.import_.run import run

    console.result(str(run(source, out, roots=roots or (), overwrite=overwrite)))


@app.command()
def train(
    images: Annotated[
        str, typer.Argument(metavar="IMAGES", help="Folder of rendered pictures, or -.")
    ] = "images",
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="BACKBONE",
            help="Weights to start from: run folder, .safetensors, .pth, timm:NAME.",
        ),
    ] = None,
    seed: Seed = None,
    out: Annotated[Path | None, _folder("Run folder.", "runs/PRESET")] = None,
    preset: Preset = "tiny",
    sets: Sets = None,
    print_config: PrintConfig = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train a ViT backbone on rendered pictures: the pictures of one caption are positives."""
    settings = _resolve(
        "train", preset, sets, print_config, quiet, init=("--init", init), seed=("--seed", seed)
    )  # fmt: skip
    source = storage.place(_input(images))
    from synclr_cli.train.run import run

    run_folder = out or Path("runs") / Path(preset).stem
    console.result(str(run(settings, source, run_folder, overwrite=overwrite)))


# ---------------------------------------------------------------------------------- the judges


def _judge(
    command: str,
    backbones: list[str],
    tasks: list[evaluate.Task],
    out: Path | None,
    overwrite: bool,
    suite: evaluate.Suite | None = None,
) -> None:
    """Judge every backbone on every data set, and write the report or the table of all."""
    named = [_input(name) for name in backbones]
    stage = importlib.import_module(f"synclr_cli.{command.replace('-', '_')}.run")
    from synclr_cli.learning import runtime

    with runtime.joined():  # one group of ranks for all judgements
        found = evaluate.run(
            stage.run, command, named, tasks, out, suite=suite, overwrite=overwrite
        )
    if isinstance(found, Comparison):
        for note in found.notes:
            console.warn(note)
        console.result_table(found.json(), found.grid())
    else:
        console.result_json(found, describe.report_rows(found))


@app.command("linear-probe")
def linear_probe(
    backbones: BackboneArguments,
    data: Annotated[str | None, DataFlag] = None,
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
    out: JudgeOut = None,
    preset: Preset = "tiny",
    sets: Sets = None,
    print_config: PrintConfig = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Judge backbones by a linear classifier on their frozen features."""
    settings = _resolve("linear-probe", preset, sets, print_config, quiet, seed=("--seed", seed))
    if suite is None:
        if data is None or data_root is not None:
            raise UsageError("linear-probe", expected="--data DATA, or --suite with --data-root")
        tasks = [evaluate.Task(evaluate.stem(data), data, settings)]
        _judge("linear-probe", backbones, tasks, out, overwrite)
        return
    from synclr_cli.linear_probe import suites

    if suite not in suites.SUITES:
        raise UsageError("--suite", got=repr(suite), expected=" | ".join(suites.SUITES))
    if data is not None or data_root is None:
        raise UsageError(
            "--suite", expected="--data-root DIR, the folder of its sets, and no --data"
        )
    found = suites.find(suite, data_root)
    tasks = [
        evaluate.Task(
            name,
            str(path),
            dataclasses.replace(settings, metric=found.set(name).metric),
            found.set(name).classes,
        )
        for name, path in found.present.items()
    ]
    whole = evaluate.Suite(suite, len(suites.SUITES[suite]), found.missing)
    _judge("linear-probe", backbones, tasks, out, overwrite, whole)


def _add_judge(command: str, what: str) -> None:
    """Add a judge's command; these differ in their settings and in their stage only."""

    def judge(
        backbones: BackboneArguments,
        data: Annotated[str, DataFlag],
        seed: Seed = None,
        out: JudgeOut = None,
        preset: Preset = "tiny",
        sets: Sets = None,
        print_config: PrintConfig = False,
        overwrite: Overwrite = False,
        quiet: Quiet = False,
    ) -> None:
        settings = _resolve(command, preset, sets, print_config, quiet, seed=("--seed", seed))
        tasks = [evaluate.Task(evaluate.stem(data), data, settings)]
        _judge(command, backbones, tasks, out, overwrite)

    app.command(command, help=what)(judge)


_add_judge("finetune", "Judge backbones by training all of each on labelled pictures.")
_add_judge("segment", "Judge backbones by semantic segmentation with an UperNet head.")


@app.command()
def compare(
    reports: Annotated[
        list[Path],
        typer.Argument(metavar="REPORT...", help="report.json files, or folders that hold some."),
    ],
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Also write the table as Markdown.")
    ] = None,
    png: Annotated[Path | None, typer.Option("--png", help="Also draw the table.")] = None,
    quiet: Quiet = False,
) -> None:
    """Put several reports side by side: a row a backbone, a column a judgement."""
    console.set_quiet(quiet)
    found = comparison.compare(comparison.read(reports))
    if markdown:
        with storage.atomic_file(markdown) as partial:
            partial.write_text(found.markdown(), encoding="utf-8")
    if png:
        found.draw(png)
    console.result_table(found.json(), found.grid())


# ------------------------------------------------------------------------------- the onlookers


@app.command()
def inspect(
    artifact: Annotated[
        str, typer.Argument(metavar="ARTIFACT", help="Any file or folder synclr made, or -.")
    ],
    png: Annotated[
        Path | None,
        typer.Option("--png", help="Picture to draw.", show_default="beside the artifact"),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="With images: a page of them in one file.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Say what a file is: schema, rows, where it came from; draw pictures and curves as PNG."""
    console.set_quiet(quiet)
    found = describe.describe(storage.place(_input(artifact)))
    if html and found.kind != "images":
        raise UsageError("--html", got=f"a {found.kind} artifact", expected="a folder of images")
    try:
        drawn = _draw(found, png)
    except UsageError as e:  # the place cannot be written to; the facts can still be told
        if png:
            raise
        console.warn(str(e))
        drawn = None
    if drawn:
        found.facts["picture"] = str(drawn)
    if html:
        from synclr_cli.render.report import page

        found.facts["page"] = str(page(found.path, html))
    console.result_json(found.json(), found.rows())


def _draw(found: describe.Description, png: Path | None) -> Path | None:
    if found.kind == "captions":
        from synclr_cli.captions import report as captions_report

        measured = captions_report.report(found.path)
        found.facts["coverage"] = measured
        found.details.extend(captions_report.table(measured))
        target = png or found.path.with_suffix(".coverage.png")
        captions_report.plot(measured, target)
        return target
    if found.kind == "images":
        from synclr_cli.render.report import report
        from synclr_cli.render.sheet import contact_sheet

        found.facts.update(report(found.path))
        target = png or found.path / "contact-sheet.png"
        contact_sheet(found.path, target)
        return target
    if found.kind == "run" and "last" in found.facts:  # a line of metrics
        from synclr_cli.train import report as train_report

        target = png or found.path / "curves.png"
        train_report.plot(found.path, target)
        if trouble := train_report.verdict(found.path):
            found.facts["trouble"] = trouble
            console.warn(trouble)
        return target
    return None


@app.command()
def export(
    backbone: Annotated[
        str,
        typer.Argument(
            metavar="BACKBONE",
            help="Run folder, .safetensors, .pth, timm:NAME, or -; or pocket:, for diffusers.",
        ),
    ],
    to: Annotated[
        str,
        typer.Option("--to", metavar="timm|transformers|onnx|diffusers", help="Library."),
    ],
    out: Annotated[Path | None, _folder("Folder.", "exports/BACKBONE-TO")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Hand a backbone, or pocket:, to another library, and check that it computes the same."""
    console.set_quiet(quiet)
    name = _input(backbone)
    folder = out or Path("exports") / f"{evaluate.stem(name)}-{to}"
    scheme, colon, target = name.partition(":")
    if (scheme, colon) == ("pocket", ":"):
        if to != "diffusers":
            raise UsageError("pocket: --to", got=to, expected="diffusers")
        from synclr_cli.render.engines.pocket import exporting

        console.result(str(exporting.run(target, folder, overwrite=overwrite)))
        return
    from synclr_cli.export.run import run

    console.result(str(run(name, to, folder, overwrite=overwrite)))


@app.command()
def show(
    backbones: BackboneArguments,
    pictures: Annotated[
        Path, typer.Option("--pictures", metavar="DIR", help="Folder of pictures, or Parquet.")
    ],
    out: Annotated[Path | None, _folder("Folder to make.", "runs/show/DIR")] = None,
    seed: Annotated[int, typer.Option(metavar="INT", help="Seed of random weights.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Draw what backbones see: patches coloured by their main components, nearest pictures."""
    console.set_quiet(quiet)
    named = [_input(name) for name in backbones]
    from synclr_cli.show.run import run

    folder = out or Path("runs") / "show" / evaluate.stem(str(pictures))
    for drawn in run(named, pictures, folder, seed=seed):
        console.result(str(drawn))


@app.command()
def quickstart(
    out: Annotated[Path, _folder("Folder to work in.")] = Path("quickstart"),
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, metavar="INT", help="Judge with this many seeds.")
    ] = 1,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Walk the whole road in a few minutes: words, captions, pictures, backbone, three grades."""
    console.set_quiet(quiet)
    from synclr_cli import quickstart as road

    console.result(str(road.run(out, seeds=seeds, overwrite=overwrite, synclr=_command(quiet))))


def _command(quiet: bool) -> Callable[[list[str]], str]:
    """Return a function that runs one synclr command in this process and returns its result."""

    def synclr(arguments: list[str]) -> str:
        with console.captured() as lines:
            app([*arguments, *(["--quiet"] if quiet else [])], standalone_mode=False)
        return "\n".join(lines)

    return synclr


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


# --------------------------------------------------------------------------------- the outside

# What torchrun runs as one job of several processes.
_BY_RANKS = {"train", "linear-probe", "finetune", "segment"}

# typer carries click inside or beside it, by version; its errors' common ancestor either way.
_CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code; what is not our bug ends in one line."""
    given = sys.argv[1:] if arguments is None else arguments
    together = bool(_BY_RANKS.intersection(given[:1]))
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with storage.disk_errors(Path.cwd()):
            # Some typers turn Ctrl-C into a returned exit code, others into an Abort.
            if app(given or ["--help"], standalone_mode=False) == 130:
                raise KeyboardInterrupt
    except SynclrError as e:
        console.error(str(e), alike=together and isinstance(e, UsageError))
        sys.exit(e.exit_code)
    except _CommandLineError as e:
        console.error(" ".join(cast(Any, e).format_message().split()), alike=together)
        sys.exit(UsageError.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        console.error("interrupted; the same command continues where it stopped", alike=together)
        sys.exit(130)
    sys.exit(0)


def _terminate(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt
