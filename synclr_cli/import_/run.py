"""Images made elsewhere -> images/2: for those who have StableRep, SynthCLIP or other sets.

    CSV of (path, caption) + a folder per view | webdataset tars | Parquet with repeated captions
    | a folder of images -> index of where each caption's images lie -> parts of whole captions

The bytes of an image are taken over as they are. Images of one caption text are its views, in the
order of the source. What does not decode, and captions with fewer than two images, are listed in
`_rejected/`; nothing is dropped silently.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

import pyarrow as pa

from synclr_cli import console
from synclr_cli.data import artifacts, image_facts, storage
from synclr_cli.data.manifest import PartFacts
from synclr_cli.data.shards import ShardedDataset
from synclr_cli.errors import DataError, UsageError
from synclr_cli.import_.index import Index, image_files, kind_of, open_index
from synclr_cli.import_.reader import ImageReader, read_part

CAPTIONS_PER_GROUP = 16
DIGESTED_BYTES = 4 << 30  # a larger source is told by names, sizes, times, first and last bytes
EDGE_BYTES = 1 << 20


def run(
    source: Path,
    out: Path,
    *,
    roots: Sequence[Path] = (),
    captions_per_part: int = 256,
    least_views: int = 2,
    allow_outside: bool = False,
    overwrite: bool = False,
) -> Path:
    """Import a set of images with captions as the images/2 folder `out`, and return it.

    Args:
        source: a .csv (path, caption), a .parquet file, a .tar, or a folder of .parquet, .tar or
            image files.
        roots: with a .csv, the folders its paths are relative to, one for each view; by default the
            file's own folder, or those folders beside it that hold the first path.
        least_views: captions with fewer images are set aside.
        allow_outside: take images whose path leads out of those folders.

    Raises:
        DataError: the source is none of these, or holds no captioned image.
        UsageError: `out` was imported from something else, or holds the source itself.
    """
    kind, files = kind_of(source)
    if any(_is_inside(out, path) for path in (source, *files)):
        raise UsageError(f"--out {out} holds the source itself", do="choose another --out")
    header = artifacts.Header(
        schema="images",
        config={
            "captions_per_part": captions_per_part,
            "least_views": least_views,
            "roots": [root.name for root in roots],
        },
        engine=f"import:{kind}",
        parents=(artifacts.parent(source, None, _digest(files)),),
    )
    dataset = ShardedDataset(out, "images", header, sidecars=(image_facts.REJECTED,))
    if not overwrite and dataset.state() == "finished":
        return out
    with (
        dataset.claim(overwrite=overwrite),
        open_index(kind, files, roots, allow_outside=allow_outside) as index,
    ):
        if not index.count:
            raise DataError(
                f"{source} holds no image with a caption", got=f"{index.without_caption} without"
            )
        if index.without_caption:
            console.warn(
                f"{index.without_caption} images have no caption, or one that is too long, and are"
                " left out"
            )
        _make(dataset, source, index, ImageReader(allow_outside=allow_outside))
    return out


def _make(dataset: ShardedDataset, source: Path, index: Index, images: ImageReader) -> None:
    """Make what is missing of the parts, and the manifest.

    Raises:
        DataError: nothing of the source is left.
    """
    config = dataset.header.config
    per_part, least = config["captions_per_part"], config["least_views"]
    total = -(-index.count // per_part)
    todo = dataset.missing(total)
    with console.progress("import", total, done=total - len(todo), unit="parts") as meter:
        for number in todo:
            start = number * per_part
            part = read_part(index.captions(start, start + per_part), start, images, least)
            image_facts.write_rejected(dataset.work, number, part.views, part.set_aside)
            table = pa.Table.from_pylist(part.rows, schema=artifacts.arrow_schema("images"))
            dataset.write(
                number,
                table,
                rows_per_group=CAPTIONS_PER_GROUP * max(part.most_views, 1),
                facts=image_facts.of_part(table, part.views, part.set_aside),
            )
            meter.advance()

    def facts(parts: Sequence[PartFacts]) -> dict[str, Any]:
        views = min((part.fewest for part in parts if part.rows), default=0)
        if not views:
            dataset.discard()
            raise DataError(
                f"{source}: none of its {index.count} captions has {least} images that are there"
                " and decode",
                do="check its paths; with a .csv, --root names the folder they start in",
            )
        return image_facts.of_whole(parts, source=source.name, views=views, classes=[])

    dataset.finish(total, facts)


def _is_inside(folder: Path, path: Path) -> bool:
    """Return whether a path is a folder or in it, however the two are written."""
    folder, path = storage.resolved(folder), storage.resolved(path)
    return folder == path or folder in path.parents


def _digest(files: Sequence[Path]) -> str:
    """Return a digest of a source's bytes.

    Of more than `DIGESTED_BYTES` it is one of the files' names, sizes, times of change, first and
    last bytes: that is read in moments, and a file that was written over has another time.
    """
    if len(files) == 1 and files[0].is_file() and files[0].stat().st_size <= DIGESTED_BYTES:
        return storage.digest(files[0])
    named = [item for path in files for item in _named_files(path)]
    stats = [path.stat() for _, path in named]
    small = sum(stat.st_size for stat in stats) <= DIGESTED_BYTES
    total = sha256()
    for (name, path), stat in zip(named, stats, strict=True):
        total.update(f"{name}\0{stat.st_size}\n".encode("utf-8", "surrogateescape"))
        with path.open("rb") as f:
            if small:
                total.update(file_digest(f, "sha256").digest())
                continue
            total.update(f"{stat.st_mtime}\0".encode())
            total.update(f.read(EDGE_BYTES))
            f.seek(max(stat.st_size - EDGE_BYTES, 0))
            total.update(f.read(EDGE_BYTES))
    return f"sha256:{total.hexdigest()}"


def _named_files(path: Path) -> list[tuple[str, Path]]:
    """Return a file by its name, or the images of a folder and their texts by their paths."""
    if path.is_file():
        return [(path.name, path)]
    images = sorted(image_files(path))
    texts = [text for image in images if (text := image.with_suffix(".txt")).is_file()]
    return [(str(file.relative_to(path)), file) for file in (*images, *texts)]
