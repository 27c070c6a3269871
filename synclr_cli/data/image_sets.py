"""Images of any layout, labelled or not, as one numbered row: what `embed` reads.

spec --open_images--> ImageSet(source, table of path, row, split, label, ids; digest)
spec: whatever `layouts` finds labels in | a plain folder of images | Parquet without labels
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from synclr_cli.data import columns, layouts, sources
from synclr_cli.data.artifacts import Header
from synclr_cli.data.layouts import RawSplit
from synclr_cli.data.manifest import MANIFEST, open_dataset
from synclr_cli.data.sources import Source
from synclr_cli.errors import DataError

_IDS = ("caption_id", "view")  # of rendered images; they tell rows of a folder apart for good


class Chain:
    """Several sources, one after the other."""

    def __init__(self, parts: Sequence[Source]):
        self.parts = list(parts)
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def image(self, i: int) -> Image.Image:
        """Return image i as 8-bit RGB."""
        part, row = self._locate(i)
        return part.image(row)

    def where(self, i: int) -> str:
        """Return what to call image i in an error."""
        part, row = self._locate(i)
        return part.where(row)

    def _locate(self, i: int) -> tuple[Source, int]:
        k = int(np.searchsorted(self._ends, i, side="right"))
        return self.parts[k], i - int(self._ends[k] - len(self.parts[k]))


@dataclass(frozen=True)
class ImageSet:
    """Images and what is known of each."""

    name: str
    source: Chain
    rows: pa.Table  # path, row, split, label (and caption_id, view), a row for each image
    digest: Callable[[], str]  # of the content; reads all of it
    header: Header | None = None  # of rendered images


def open_images(spec: str) -> ImageSet:
    """Open the images that a spec names; none is decoded.

    Raises:
        DataError: nothing there, no images, or columns that differ between files.
        EngineError: a download failed.
        UsageError: unknown scheme.
    """
    path = Path(spec)
    if path.is_file() and path.suffix == ".parquet":
        return _of_parquet(path, {"": [path]})
    if path.is_dir():
        if by_split := layouts.parquet_files(path):
            one = {"": next(iter(by_split.values()))}
            return _of_parquet(path, by_split if len(by_split) > 1 else one)
        if not _has_classes(path):
            return _plain(path)
    known = layouts.find(spec, masks=False)
    tables = []
    for name, split in known.splits.items():
        tables.append(_rows(path, split.source, name, _names(split)))
    source = Chain([split.source for split in known.splits.values()])
    rows = pa.concat_tables(tables, promote_options="permissive")
    return ImageSet(known.name, source, rows, known.digest, known.header)


def _has_classes(folder: Path) -> bool:
    """Return whether a folder tree is one of classes or annotations, no plain heap of images."""
    inside = [p for p in folder.iterdir() if p.name[0] not in "._"]
    loose = any(p.is_file() and p.suffix.lower() in layouts.IMAGES for p in inside)
    masks = (folder / "images").is_dir() and any(
        (folder / name).is_dir() for name in ("annotations", "masks")
    )
    return not loose and not masks and any(p.is_dir() for p in inside)


def _plain(folder: Path) -> ImageSet:
    files = list(layouts.image_files(folder))
    if not files:
        raise DataError(f"{folder} holds no images", expected="image files, or Parquet files")
    named = [(file, str(file.relative_to(folder))) for file in files]
    source = sources.Files(files)
    rows = _rows(folder, source, "", None)
    return ImageSet(
        folder.resolve().name, Chain([source]), rows, lambda: layouts.digest_files(named)
    )


def _of_parquet(path: Path, by_split: Mapping[str, Sequence[Path]]) -> ImageSet:
    tables, parts = [], []
    for split, files in by_split.items():
        for file in files:
            schema = sources.open_parquet(file).schema_arrow
            column = next((c for c in columns.IMAGE_COLUMNS if c in schema.names), None)
            if column is None:
                got = f"columns {', '.join(schema.names)}"
                raise DataError(f"{file} has no images", got=got, expected="a column image")
            columns.require_images(file, schema.field(column))
            part = sources.ParquetRows([file], column)
            label = next((c for c in layouts.LABEL_COLUMNS if c in schema.names), None)
            names = None
            if label is not None:
                values = columns.labels([file], label)
                names = _names(RawSplit(part, values, columns.class_names(schema, label)))
            table = _rows(path, part, split, names, file)
            ids = [name for name in _IDS if name in schema.names]
            for name, cells in zip(ids, pq.read_table(file, columns=ids).columns, strict=True):
                table = table.append_column(name, cells.cast(pa.int64()))
            tables.append(table)
            parts.append(part)
    rows = pa.concat_tables(tables, promote_options="permissive")
    if not len(rows):
        raise DataError(f"{path} holds no images", got="no rows")
    if (path / MANIFEST).is_file():
        rendered = open_dataset(path, "images", ())
        known = rendered.digest
        return ImageSet(path.resolve().name, Chain(parts), rows, lambda: known, rendered.header)
    named = [(f, f.name) for files in by_split.values() for f in files]
    return ImageSet(path.resolve().stem, Chain(parts), rows, lambda: layouts.digest_files(named))


def _rows(root: Path, source: Source, split: str, names: Any, file: Path | None = None) -> pa.Table:
    """Return what is known of each image of a source: where it lies, its split and its label."""
    n = len(source)
    if isinstance(source, sources.Files):
        paths = [_within(root, p) for p in source.images]
    else:
        paths = [_within(root, file) if file and file != root else root.name] * n
    numbers = None if isinstance(source, sources.Files) else range(n)
    kind = pa.list_(pa.string()) if names and isinstance(names[0], list) else pa.string()
    return pa.table(
        {
            "path": pa.array(paths, pa.string()),
            "row": pa.array(numbers or [None] * n, pa.int64()),
            "split": pa.array([split or None] * n, pa.string()),
            "label": pa.array(names or [None] * n, kind),
        }
    )


def _within(root: Path, path: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _names(split: RawSplit) -> list[Any]:
    """Return the label of each image as text; a list of texts where it may have several."""

    def name(label: Any) -> str:
        known = split.names and not isinstance(label, str) and 0 <= int(label) < len(split.names)
        return str(split.names[int(label)]) if known else str(label)

    if split.labels.dtype.kind == "O":
        return [[name(label) for label in labels or ()] for labels in split.labels]
    return [name(label) for label in split.labels.tolist()]
