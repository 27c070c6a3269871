"""The commands that make something: captions, images, a backbone, and all of it at once.

Each resolves its settings, answers `--print-config`, and only then imports its stage.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synclr_cli import cli_options as options, console
from synclr_cli.cli_options import (
    MAKE,
    Engine,
    On,
    Overwrite,
    Preset,
    PrintConfig,
    Quiet,
    Seed,
    Sets,
    Shard,
    Workers,
    app,
)
from synclr_cli.data import storage


@app.command(
    rich_help_panel=MAKE,
    epilog="Example: synclr captions --concepts my-words.txt -n 5000",
)
def captions(
    concepts: Annotated[
        str | None,
        typer.Option(
            "--concepts",
            "-c",
            metavar="SOURCE",
            help="A source that `synclr concepts` lists, such as in21k, a word list"
            " (.txt .csv .parquet), or NAME:WEIGHT,... .",
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", "-n", metavar="INT", help="Captions to write.")
    ] = None,
    engine: Engine = None,
    seed: Seed = None,
    shard: Shard = None,
    on: On = None,
    workers: Workers = None,
    out: Annotated[Path, options.out("Folder to make, here or at a URI.")] = Path("captions"),
    preset: Preset = "tiny",
    sets: Sets = None,
    print_config: PrintConfig = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write captions for a list of concepts with a language model."""
    settings = options.resolve(
        "captions", preset, sets, print_config, quiet,
        concepts=("--concepts", concepts), count=("--count", count),
        engine__name=("--engine", engine), seed=("--seed", seed), shard=("--shard", shard),
        executor__on=("--on", on), executor__workers=("--workers", workers),
    )  # fmt: skip
    from synclr_cli.captions.run import run

    console.result(str(run(settings, out, overwrite=overwrite)))


@app.command(
    rich_help_panel=MAKE,
    epilog="Example: synclr render captions/ --engine procedural: --views 4",
)
def render(
    captions: Annotated[
        str,
        typer.Argument(
            metavar="CAPTIONS", help="Captions: a folder, a .parquet, .csv or .txt file, or -."
        ),
    ] = "captions",
    views: Annotated[
        int | None, typer.Option("--views", metavar="INT", help="Images of each caption.")
    ] = None,
    shard: Shard = None,
    engine: Engine = None,
    seed: Seed = None,
    on: On = None,
    workers: Workers = None,
    out: Annotated[Path, options.out("Folder to make, here or at a URI.")] = Path("images"),
    preset: Preset = "tiny",
    sets: Sets = None,
    print_config: PrintConfig = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Generate several images of every caption with a text-to-image model."""
    settings = options.resolve(
        "render", preset, sets, print_config, quiet,
        views=("--views", views), engine__name=("--engine", engine), seed=("--seed", seed),
        shard=("--shard", shard),
        executor__on=("--on", on), executor__workers=("--workers", workers),
    )  # fmt: skip
    source = storage.place(options.path_argument(captions))
    from synclr_cli.data.manifest import MANIFEST
    from synclr_cli.render import diversity
    from synclr_cli.render.run import run

    folder = run(settings, source, out, overwrite=overwrite)
    finished = (folder / MANIFEST).is_file()  # else other jobs have parts to make
    if finished and (trouble := diversity.collapse(folder)):
        console.warn(trouble)
    console.result(str(folder))


@app.command(
    "import",
    rich_help_panel=MAKE,
    epilog="Example: synclr import photos.csv --root photos/ --out images",
)
def import_(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            parser=storage.place,
            help="A .csv (path, caption), a .parquet, a webdataset .tar, or a folder of them or"
            " of images.",
        ),
    ],
    roots: Annotated[
        list[Path] | None,
        typer.Option(
            "--root",
            metavar="PATH",
            parser=storage.place,
            help="With a .csv: folder its paths start in, one for each view.",
        ),
    ] = None,
    allow_outside: Annotated[
        bool,
        typer.Option("--allow-outside", help="Take images whose path leads out of the folders."),
    ] = False,
    out: Annotated[Path, options.out("Folder to make, here or at a URI.")] = Path("images"),
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Import captioned images made elsewhere, in the form that `synclr render` writes."""
    console.set_quiet(quiet)
    from synclr_cli.import_.run import run

    made = run(source, out, roots=roots or (), allow_outside=allow_outside, overwrite=overwrite)
    console.result(str(made))


@app.command(
    rich_help_panel=MAKE,
    epilog="Example: synclr train images --preset vits --out runs/birds",
)
def train(
    images: Annotated[
        str, typer.Argument(metavar="IMAGES", help="Folder of rendered images, or -.")
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
    out: Annotated[Path | None, options.local_out("Run folder.", "runs/PRESET")] = None,
    preset: Preset = "tiny",
    sets: Sets = None,
    print_config: PrintConfig = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train a ViT backbone on rendered images: the images of one caption are positives."""
    settings = options.resolve(
        "train", preset, sets, print_config, quiet, init=("--init", init), seed=("--seed", seed)
    )  # fmt: skip
    source = storage.place(options.path_argument(images))
    from synclr_cli.learning import runtime
    from synclr_cli.train.run import run

    run_folder = out or Path("runs") / Path(preset).stem
    with runtime.joined():  # so that what every rank refuses is printed by one
        path = run(settings, source, run_folder, overwrite=overwrite)
    console.result(str(path))


@app.command(rich_help_panel=MAKE, epilog="Example: synclr quickstart --seeds 3")
def quickstart(
    out: Annotated[Path, options.local_out("Folder to work in.")] = Path("quickstart"),
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, metavar="INT", help="Evaluate with this many seeds.")
    ] = 1,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Run every step once, small: words, captions, images, a backbone, three evaluations."""
    console.set_quiet(quiet)
    from synclr_cli import quickstart as steps

    console.result(
        str(steps.run(out, seeds=seeds, overwrite=overwrite, synclr=options.command_runner(quiet)))
    )
