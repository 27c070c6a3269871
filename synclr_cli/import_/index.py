"""What lies in a set made elsewhere: where each image is, and which caption it belongs to.

    CSV | tars | Parquet | folder of images -> one row an image, in a database on disk
    -> captions in the order of their first image, a few at a time

Grouping by caption is a sort of the whole set, so SQLite does it, in a temporary file (TMPDIR, some
200 bytes an image); memory holds a page cache and nothing else.
"""

from __future__ import annotations

import csv
import json
import re
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pyarrow as pa

from synclr_cli.data import artifacts, storage
from synclr_cli.errors import DataError, EngineError

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
LONGEST_CAPTION = 10_000  # characters
LONGEST_TEXT = 1 << 20  # bytes of a caption's file in a tar or a folder
PATH_COLUMNS = ("path", "image", "file_name", "filename", "file", "filepath", "image_path")
CAPTION_COLUMNS = ("caption", "text", "prompt", "captions", "sentence")
_TABLES = """
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -65536;
CREATE TABLE image (
    number INTEGER PRIMARY KEY, key BLOB, text TEXT, concept TEXT,
    file INTEGER, name TEXT, first INTEGER, second INTEGER
);
"""
_GROUPING = """
CREATE INDEX by_key ON image (key, number);
CREATE TABLE caption AS
    SELECT min(number) AS number, key FROM image GROUP BY key ORDER BY number;
"""
_CAPTIONS = """
SELECT caption.rowid, text, concept, file, name, first, second
    FROM caption JOIN image ON image.key = caption.key
    WHERE caption.rowid > ? AND caption.rowid <= ? ORDER BY caption.rowid, image.number
"""


class Location(NamedTuple):
    """Where one image's bytes lie."""

    path: Path
    first: int = -1  # byte in a tar, or row group of a Parquet file; -1: the whole file
    second: int = 0  # length in a tar, or row of the group


class Sample(NamedTuple):
    """One image of a source; without a caption it is only counted."""

    text: str
    concept: str = ""
    file: int = 0  # number of the file it lies in
    name: str = ""  # with a CSV or a folder: the image's path under each root
    first: int = -1
    second: int = 0


@dataclass
class Caption:
    """One caption and its images."""

    text: str
    concept: str
    locations: list[Location] = field(default_factory=list)


class Index:
    """The captions of a source, numbered in the order of their first image."""

    def __init__(self, database: sqlite3.Connection, files: Sequence[Path], roots: Sequence[Path]):
        self._database, self._files, self._roots = database, files, roots
        self.without_caption = 0  # images; or with one that is too long

    @property
    def count(self) -> int:
        """Return how many captions there are."""
        return int(self._database.execute("SELECT count(*) FROM caption").fetchone()[0])

    def fill(self, samples: Iterable[Sample], *, grouped: bool) -> None:
        """Take in all images; `grouped` makes those of one text one caption."""
        self._database.executescript(_TABLES)
        rows = (self._row(i, s, grouped) for i, s in enumerate(samples) if self._is_captioned(s))
        while some := list(islice(rows, 10_000)):
            self._database.executemany("INSERT INTO image VALUES (?, ?, ?, ?, ?, ?, ?, ?)", some)
        self._database.executescript(_GROUPING)

    def _is_captioned(self, sample: Sample) -> bool:
        usable = 0 < len(sample.text) <= LONGEST_CAPTION
        self.without_caption += not usable
        return usable

    @staticmethod
    def _row(number: int, sample: Sample, grouped: bool) -> tuple[Any, ...]:
        text, concept = (s.encode("utf-8", "replace") for s in (sample.text, sample.concept))
        key = blake2b(text if grouped else number.to_bytes(8, "big"), digest_size=16).digest()
        return number, key, text.decode(), concept.decode(), *sample[2:]

    def captions(self, start: int, stop: int) -> list[Caption]:
        """Return the captions numbered `start` to `stop`."""
        rows = self._database.execute(_CAPTIONS, (start, stop))
        captions = []
        for _, images in groupby(rows, itemgetter(0)):
            first, *others = list(images)
            caption = Caption(first[1], first[2])
            for _, _, _, file, name, at, second in (first, *others):
                if name:
                    caption.locations += [Location(root / name) for root in self._roots]
                else:
                    caption.locations.append(Location(self._files[file], at, second))
            captions.append(caption)
        return captions


@contextmanager
def open_index(
    kind: str, files: Sequence[Path], roots: Sequence[Path], *, allow_outside: bool = False
) -> Iterator[Index]:
    """Look through the files of a source; the index goes with the block.

    Args:
        files: of the source; of a folder of images, the folder.
        allow_outside: take images whose path leads out of the roots.

    Raises:
        DataError: a file is not what its name says, or a folder is missing.
    """
    with tempfile.TemporaryDirectory(prefix="synclr-") as folder:
        database = sqlite3.connect(Path(folder) / "index.sqlite", isolation_level=None)
        try:
            if kind == "csv":
                roots = _roots(files[0], roots, allow_outside)
                index = Index(database, files, roots)
                # With several roots a row is a caption and its views; with one, an image.
                index.fill(_from_csv(files[0], allow_outside), grouped=len(roots) < 2)
            elif kind == "folder":
                index = Index(database, (), files)
                index.fill(_from_folder(files[0]), grouped=True)
            else:
                index = Index(database, files, ())
                read = _from_tars if kind == "tar" else _from_parquet
                index.fill(read(files), grouped=True)
            yield index
        except sqlite3.OperationalError as e:
            raise EngineError(
                f"no space left for the index of the images in {folder} ({e})",
                do="free some, or set TMPDIR to another folder",
            ) from e
        finally:
            database.close()


def kind_of(source: Path) -> tuple[str, list[Path]]:
    """Return what a source is (csv, tar, parquet, folder), and its files.

    A folder of images is its one file.


    Raises:
        DataError: it is none of these, or not there.
    """
    if source.is_file():
        kind = source.suffix.lower().removeprefix(".")
        if kind in ("csv", "tar", "parquet"):
            return kind, [source]
    elif source.is_dir():
        for kind in ("tar", "parquet"):
            files = sorted(source.rglob(f"*.{kind}"))
            if files:
                return kind, files
        if next(image_files(source), None):
            return "folder", [source]
    else:
        raise DataError(f"no file or folder {source}")
    raise DataError(
        f"{source} cannot be imported",
        expected="a .csv of (path, caption), a .parquet, a .tar, or a folder of .parquet, .tar or"
        " image files",
    )


# -------------------------------------------------------------------------------------- CSV


def _from_csv(path: Path, allow_outside: bool) -> Iterator[Sample]:
    """Yield the rows of a CSV file: (path, caption), or what its header calls so.

    Raises:
        DataError: no UTF-8, quotes that do not close, a row that is not a path and a caption,
            or a path that leads out of the folder of the images.
    """
    csv.field_size_limit(1 << 20)
    columns, width = (0, 1), 2
    try:
        with path.open("r", newline="", encoding="utf-8-sig") as f:
            reader = csv.reader(f, strict=True)
            for number, row in enumerate(reader):
                if number == 0 and (named := _named_columns(row)):
                    columns, width = named, len(row)
                    continue
                if not row:
                    continue
                if len(row) != width:
                    raise DataError(
                        f"{path} line {reader.line_num}",
                        got=f"{len(row)} fields",
                        expected="path,caption" if width == 2 else f"{width}, as in its header",
                        do="put a caption with commas in double quotes",
                    )
                name, text = (row[column].strip() for column in columns)
                if number or "." in name:  # else a header of other words
                    if not allow_outside:
                        require_inside(name, f"{path} line {reader.line_num}")
                    yield Sample(text, name=name)
    except (UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{path} is not a UTF-8 CSV file ({e})") from e


def require_inside(name: str, where: str) -> None:
    """Refuse an image's path that leads out of the folder it is relative to.

    Raises:
        DataError: it does; `where` says which file and row tell it.
    """
    if PurePosixPath(name).is_absolute() or Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(
            f"{where}: the image {name[:120]!r} lies outside of the folder of the images",
            do="give paths relative to it, or add --allow-outside if you trust the file",
        )


def _named_columns(row: Sequence[str]) -> tuple[int, int] | None:
    """Return where path and caption lie by a CSV file's first row; None if it is not a header."""
    names = [cell.strip().lower() for cell in row]
    if not names or names[0].endswith(IMAGES):
        return None
    places_of = [[names.index(n) for n in known if n in names]
                 for known in (PATH_COLUMNS, CAPTION_COLUMNS)]  # fmt: skip
    return (places_of[0][0], places_of[1][0]) if all(places_of) else None


def _roots(path: Path, named: Sequence[Path], allow_outside: bool) -> list[Path]:
    """Return the folders that a CSV file's paths start in: those named, or those beside it."""
    first = next(_from_csv(path, allow_outside), None)
    if first is None:
        return []
    missing = [r for r in named if not r.is_dir()]
    if missing:
        raise DataError(f"no folder {missing[0]}")
    if named:
        return list(named)
    if (path.parent / first.name).is_file():
        return [path.parent]
    beside = [d for d in sorted(path.parent.iterdir()) if d.is_dir() and (d / first.name).is_file()]
    if not beside:
        raise DataError(
            f"{path}: no folder beside it holds {first.name}",
            do="name the folders of the views with --root",
        )
    return beside


# ------------------------------------------------------------------------------------- tars


def _from_tars(files: Sequence[Path]) -> Iterator[Sample]:
    """Yield the samples of webdataset tars: neighbouring members of one stem."""
    for number, path in enumerate(files):
        try:
            with path.open("rb") as f, tarfile.open(fileobj=f) as tar:
                for _, members in groupby(_members(tar), lambda m: m.name.rpartition(".")[0]):
                    by_kind = {"." + m.name.rpartition(".")[2].lower(): m for m in members}
                    image = next((by_kind[k] for k in IMAGES if k in by_kind), None)
                    if image:
                        text, concept = _words(tar, by_kind)
                        yield Sample(text, concept, number, "", image.offset_data, image.size)
        except tarfile.TarError as e:
            raise DataError(f"{path} is not a tar file, or truncated ({e})") from e


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the files of a tar; tarfile itself would remember all it has seen."""
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # not in typeshed
        if member.isfile():
            yield member


def _words(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> tuple[str, str]:
    """Return a sample's caption and concept, "" if there is none."""
    for kind in (".txt", ".caption"):
        if kind in members and (file := tar.extractfile(members[kind])):
            return file.read(LONGEST_TEXT).decode("utf-8", "replace").strip(), ""
    if ".json" in members and (file := tar.extractfile(members[".json"])):
        try:
            values = json.loads(file.read(LONGEST_TEXT))
        except (ValueError, RecursionError):
            return "", ""
        for name in CAPTION_COLUMNS:
            if isinstance(values, dict) and isinstance(values.get(name), str):
                return values[name].strip(), str(values.get("concept") or "")
    return "", ""


# ---------------------------------------------------------------------------- folder of images


def image_files(folder: Path) -> Iterator[Path]:
    """Yield the image files in a folder and those below it, hidden ones left out."""
    for path in folder.rglob("*"):
        if path.suffix.lower() in IMAGES and not path.name.startswith(".") and path.is_file():
            yield path


def _from_folder(folder: Path) -> Iterator[Sample]:
    """Yield the images of a folder, in the order of their paths.

    The caption is what a .txt of the same name holds; else the name of the image's own folder, if
    that lies below `folder`; else the image's name without the number at its end.
    """
    for path in sorted(image_files(folder)):
        words = path.with_suffix(".txt")
        if words.is_file():
            with words.open("rb") as f:
                text, concept = f.read(LONGEST_TEXT).decode("utf-8", "replace").strip(), ""
        else:
            name = _NUMBER.sub("", path.stem) if path.parent == folder else ""
            text = concept = " ".join(re.split(r"[\s_-]+", name or path.parent.name)).strip()
        name = str(path.relative_to(folder))
        if name.isascii() or name.encode("utf-8", "replace").decode() == name:
            yield Sample(text, concept, name=name)
        else:
            yield Sample("")  # a name in no encoding that could be kept


_NUMBER = re.compile(r"[\s_.()-]*\d*[\s_.()-]*$")


# ---------------------------------------------------------------------------------- Parquet


def _from_parquet(files: Sequence[Path]) -> Iterator[Sample]:
    """Yield the rows of Parquet files in the Hugging Face layout."""
    for number, path in enumerate(files):
        with artifacts.readable(path), storage.parquet(path) as file:
            column, columns = _caption_columns(file.schema_arrow, path)
            for group in range(file.num_row_groups):
                batches = file.iter_batches(
                    storage.ROWS_OF_ANYBODY, row_groups=[group], columns=columns
                )
                rows = (row for batch in batches for row in batch.to_pylist())
                for i, row in enumerate(rows):
                    several = isinstance(row[column], list)
                    text = next(iter(row[column]), "") if several else row[column]
                    words = str(text or "").strip()
                    yield Sample(words, str(row.get("concept") or ""), number, "", group, i)


def _caption_columns(schema: pa.Schema, path: Path) -> tuple[str, list[str]]:
    """Return the column of captions, and all that are read beside the images.

    Raises:
        DataError: there are no captions, or no images.
    """
    names = schema.names
    column = next((c for c in CAPTION_COLUMNS if c in names), None)
    if column is None or "image" not in names:
        raise DataError(
            f"{path}: columns",
            got=", ".join(names)[:160],
            expected="image and one of " + ", ".join(CAPTION_COLUMNS),
        )
    kind = schema.field("image").type
    cells = (pa.types.is_struct, pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string)
    if not any(is_kind(kind) for is_kind in cells):
        raise DataError(
            f"{path}: column image", got=kind, expected="encoded images: bytes, or a struct of them"
        )
    return column, [column, *(["concept"] if "concept" in names else [])]
