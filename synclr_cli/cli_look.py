"""The commands that look at what was made, and hand it to other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synclr_cli import cli_options as options, console, evaluate, licences
from synclr_cli.cli_options import LOOK, Backbones, Overwrite, Quiet, app
from synclr_cli.data import describe, storage
from synclr_cli.errors import UsageError


@app.command(rich_help_panel=LOOK, epilog="Example: synclr inspect images/")
def inspect(
    artifact: Annotated[
        str, typer.Argument(metavar="ARTIFACT", help="Any file or folder synclr made, or -.")
    ],
    png: Annotated[
        Path | None,
        typer.Option("--png", help="PNG file to draw.", show_default="beside the artifact"),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="With images: a page of them in one file.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone", metavar="BACKBONE", help="With images: measure diversity in its features."
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the bytes of all parts with their digests.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Describe a file: schema, rows, settings, origin; draw its images or curves as PNG."""
    console.set_quiet(quiet)
    description = describe.describe(storage.place(options.path_argument(artifact)))
    if verify:
        describe.verify(description)
    if html and description.kind != "images":
        raise UsageError(
            "--html", got=f"a {description.kind} artifact", expected="a folder of images"
        )
    if backbone and description.kind != "images":
        raise UsageError(
            "--backbone", got=f"a {description.kind} artifact", expected="a folder of images"
        )
    if description.kind == "images":
        from synclr_cli.render import diversity

        describe_images = diversity.backbone(backbone) if backbone else None
        description.facts["diversity"] = diversity.measure(description.path, describe_images)
    try:
        drawing = _draw(description, png)
    except UsageError as e:  # the place cannot be written to; the facts can still be told
        if png:
            raise
        console.warn(str(e))
        drawing = None
    if drawing:
        description.facts["image"] = str(drawing)
    if html:
        from synclr_cli.render.report import page

        description.facts["page"] = str(page(description.path, html))
    console.result_json(description.json(), description.rows())


def _draw(description: describe.Description, png: Path | None) -> Path | None:
    """Draw what an artifact holds; return the PNG file, or None where there is nothing to draw."""
    path, facts = description.path, description.facts
    if description.kind == "captions":
        from synclr_cli.captions import report as captions_report
        from synclr_cli.captions.run import COVERAGE

        coverage = captions_report.report(path)
        facts["coverage"] = coverage
        description.details.extend(captions_report.table(coverage))
        target = png or path / COVERAGE
        captions_report.plot(coverage, target)
        return target
    if description.kind == "images":
        from synclr_cli.render.report import report
        from synclr_cli.render.sheet import contact_sheet

        facts.update(report(path))
        facts["licence"] = licences.of(facts["engine"]).text
        target = png or path / "_contact-sheet.png"
        contact_sheet(path, target)
        if "pixels" in facts.get("diversity", {}):
            from synclr_cli.render import diversity

            curves = png.with_suffix(".diversity.png") if png else path / "_diversity.png"
            facts["diversity"]["plot"] = str(diversity.plot(path, curves))
        return target
    if description.kind == "run" and "last" in facts:  # a line of metrics
        from synclr_cli.train import report as train_report

        target = png or path / "curves.png"
        train_report.plot(path, target)
        if trouble := train_report.verdict(path):
            facts["trouble"] = trouble
            console.warn(trouble)
        return target
    return None


@app.command(
    rich_help_panel=LOOK, epilog="Example: synclr show runs/tiny random:runs/tiny --images photos/"
)
def show(
    backbones: Backbones,
    images: Annotated[
        Path, typer.Option("--images", metavar="DIR", help="Folder of images, or Parquet.")
    ],
    out: Annotated[Path | None, options.local_out("Folder to make.", "runs/show/DIR")] = None,
    seed: Annotated[int, typer.Option(metavar="INT", help="Seed of random weights.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Draw what backbones see: patches coloured by their main components, nearest images."""
    console.set_quiet(quiet)
    paths = [options.path_argument(name) for name in backbones]
    from synclr_cli.show.run import run

    folder = out or Path("runs") / "show" / evaluate.stem(str(images))
    for drawing in run(paths, images, folder, seed=seed):
        console.result(str(drawing))


@app.command(
    rich_help_panel=LOOK,
    epilog="Example: synclr embed runs/tiny --data photos/ --out features.parquet",
)
def embed(
    backbone: Annotated[
        str,
        typer.Argument(
            metavar="BACKBONE", help="Run folder, .safetensors, .pth, timm:NAME, random:ARCH, or -."
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            "--data",
            "-d",
            metavar="DATA",
            help="A folder of images, labelled or not, Parquet, torchvision:NAME, or digits:.",
        ),
    ],
    out: Annotated[
        Path,
        options.local_out("Parquet file; or .npy, with what each row is in .json beside it."),
    ] = Path("features.parquet"),
    image_size: Annotated[
        int, typer.Option(metavar="PIXELS", min=0, help="What the backbone sees; 0: its own.")
    ] = 0,
    batch_size: Annotated[
        int, typer.Option(metavar="INT", min=1, help="Images through the backbone together.")
    ] = 128,
    workers: Annotated[
        int, typer.Option(metavar="INT", min=-1, help="Loader processes; -1: by the cores.")
    ] = -1,
    seed: Annotated[int, typer.Option(metavar="INT", help="Seed of random weights.")] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write the features of images, a row for each, for search and clustering."""
    console.set_quiet(quiet)
    name = options.path_argument(backbone)
    from synclr_cli.embed.run import run

    file = run(
        name, data, out, image_size=image_size, batch_size=batch_size, workers=workers,
        seed=seed, overwrite=overwrite,
    )  # fmt: skip
    console.result(str(file))


@app.command(rich_help_panel=LOOK, epilog="Example: synclr push runs/vitb user/name --dry-run")
def push(
    folder: Annotated[
        str,
        typer.Argument(metavar="FOLDER", help="A finished folder of captions, images or a run."),
    ],
    repository: Annotated[
        str, typer.Argument(metavar="USER/NAME", help="Repository; it is made if it is not there.")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would go, with sizes; send nothing.")
    ] = False,
    private: Annotated[
        bool, typer.Option("--private", help="If the repository is new, let no one else see it.")
    ] = False,
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="Of a run, send its checkpoints, too.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Send captions, images or a backbone to the Hugging Face hub, with a card."""
    console.set_quiet(quiet)
    place = Path(options.path_argument(folder))
    from synclr_cli.push.run import plan, run

    work = plan(place, repository, checkpoints=checkpoints)
    if dry_run:
        rows = [[file.name, f"{file.size:,}"] for file in work.files]
        console.result_table(work.json(), [["file", "bytes"], *rows])
        return
    _draw(describe.describe(place), None)
    console.result(run(plan(place, repository, checkpoints=checkpoints), private=private))


@app.command(rich_help_panel=LOOK, epilog="Example: synclr export runs/tiny --to timm")
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
    out: Annotated[Path | None, options.local_out("Folder.", "exports/BACKBONE-TO")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Export a backbone, or pocket:, for another library, and check that it computes the same."""
    console.set_quiet(quiet)
    name = options.path_argument(backbone)
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
