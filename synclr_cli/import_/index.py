"""What lies in a set made elsewhere: where each picture is, and which caption it belongs to.

    CSV | tars | Parquet -> one row a picture, in a database on disk -> captions in the order of
    their first picture, a few at a time

Grouping by caption is a sort of the whole set, so SQLite does it, in a temporary file (TMPDIR, some
200 bytes a picture); memory holds a page cache and nothing else.
"""

from __future__ import annotations

import csv
import json
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from synclr_cli.data import storage
from synclr_cli.errors import DataError

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
PATH_COLUMNS = ("path", "image", "file_name", "filename", "file", "filepath", "image_path")
CAPTION_COLUMNS = ("caption", "text", "prompt", "captions", "sentence")
_TABLES = """
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -65536;
CREATE TABLE picture (
    number INTEGER PRIMARY KEY, key BLOB, text TEXT, concept TEXT,
    file INTEGER, name TEXT, first INTEGER, second INTEGER
);
"""
_GROUPING = """
CREATE INDEX by_key ON picture (key, number);
CREATE TABLE caption AS
    SELECT min(number) AS number, key FROM picture GROUP BY key ORDER BY number;
"""
_CAPTIONS = """
SELECT caption.rowid, text, concept, file, name, first, second
    FROM caption JOIN picture ON picture.key = caption.key
    WHERE caption.rowid > ? AND caption.rowid <= ? ORDER BY caption.rowid, picture.number
"""


class Place(NamedTuple):
    """Where one picture's bytes lie."""

    path: Path
    first: int = -1  # byte in a tar, or row group of a Parquet file; -1: the whole file
    second: int = 0  # length in a tar, or row of the group


class Found(NamedTuple):
    """One picture of a source; without a caption it is only counted."""

    text: str
    concept: str = ""
    file: int = 0  # number of the file it lies in
    name: str = ""  # with a CSV: the picture's path under each root
    first: int = -1
    second: int = 0


@dataclass
class Caption:
    """One caption and its pictures."""

    text: str
    concept: str
    places: list[Place] = field(default_factory=list)


class Catalogue:
    """The captions of a source, numbered in the order of their first picture."""

    def __init__(self, database: sqlite3.Connection, files: Sequence[Path], roots: Sequence[Path]):
        self._database, self._files, self._roots = database, files, roots
        self.without_caption = 0  # pictures

    @property
    def count(self) -> int:
        """Return how many captions there are."""
        return int(self._database.execute("SELECT count(*) FROM caption").fetchone()[0])

    def fill(self, found: Iterable[Found], *, grouped: bool) -> None:
        """Take in all pictures; `grouped` makes those of one text one caption."""
        self._database.executescript(_TABLES)
        rows = (self._row(i, f, grouped) for i, f in enumerate(found) if f.text or self._skip())
        while some := list(islice(rows, 10_000)):
            self._database.executemany("INSERT INTO picture VALUES (?, ?, ?, ?, ?, ?, ?, ?)", some)
        self._database.executescript(_GROUPING)

    def _skip(self) -> bool:
        self.without_caption += 1
        return False

    @staticmethod
    def _row(number: int, found: Found, grouped: bool) -> tuple[Any, ...]:
        own = found.text.encode("utf-8", "replace") if grouped else number.to_bytes(8, "big")
        key = blake2b(own, digest_size=16).digest()
        return number, key, *found

    def captions(self, start: int, stop: int) -> list[Caption]:
        """Return the captions numbered `start` to `stop`."""
        rows = self._database.execute(_CAPTIONS, (start, stop))
        captions = []
        for _, pictures in groupby(rows, itemgetter(0)):
            first, *others = list(pictures)
            caption = Caption(first[1], first[2])
            for _, _, _, file, name, at, second in (first, *others):
                if name:
                    caption.places += [Place(root / name) for root in self._roots]
                else:
                    caption.places.append(Place(self._files[file], at, second))
            captions.append(caption)
        return captions


@contextmanager
def catalogue(kind: str, files: Sequence[Path], roots: Sequence[Path]) -> Iterator[Catalogue]:
    """Look through the files of a source; what was found is forgotten with the block.

    Raises:
        DataError: a file is not what its name says, or a folder is missing.
    """
    with tempfile.TemporaryDirectory(prefix="synclr-") as folder:
        database = sqlite3.connect(Path(folder) / "catalogue.sqlite", isolation_level=None)
        try:
            if kind == "csv":
                roots = _roots(files[0], roots)
                found = Catalogue(database, files, roots)
                # With several roots a row is a caption and its views; with one, a picture.
                found.fill(_from_csv(files[0]), grouped=len(roots) < 2)
            else:
                found = Catalogue(database, files, ())
                look = _from_tars if kind == "tar" else _from_parquet
                found.fill(look(files), grouped=True)
            yield found
        finally:
            database.close()


def kind_of(source: Path) -> tuple[str, list[Path]]:
    """Return what a source is (csv, tar, parquet), and its files.

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
    else:
        raise DataError(f"no file or folder {source}")
    raise DataError(
        f"{source} cannot be imported",
        expected="a .csv of (path, caption), a .parquet, a .tar, or a folder of .parquet or .tar",
    )


# -------------------------------------------------------------------------------------- CSV


def _from_csv(path: Path) -> Iterator[Found]:
    """Yield the rows of a CSV file: (path, caption), or what its header calls so.

    Raises:
        DataError: no UTF-8, quotes that do not close, or a row that is not a path and a caption.
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
                    yield Found(text, name=name)
    except (UnicodeDecodeError, csv.Error) as e:
        raise DataError(f"{path} is no UTF-8 CSV file ({e})") from e


def _named_columns(row: Sequence[str]) -> tuple[int, int] | None:
    """Return where path and caption lie by the first row of a CSV file, None if it is no header."""
    names = [cell.strip().lower() for cell in row]
    if not names or names[0].endswith(PICTURES):
        return None
    places_of = [[names.index(n) for n in known if n in names]
                 for known in (PATH_COLUMNS, CAPTION_COLUMNS)]  # fmt: skip
    return (places_of[0][0], places_of[1][0]) if all(places_of) else None


def _roots(path: Path, named: Sequence[Path]) -> list[Path]:
    """Return the folders that a CSV file's paths start in: those named, or those beside it."""
    first = next(_from_csv(path), None)
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


def _from_tars(files: Sequence[Path]) -> Iterator[Found]:
    """Yield the samples of webdataset tars: neighbouring members of one stem."""
    for number, path in enumerate(files):
        try:
            with path.open("rb") as f, tarfile.open(fileobj=f) as tar:
                for _, members in groupby(_members(tar), lambda m: m.name.rpartition(".")[0]):
                    by_kind = {"." + m.name.rpartition(".")[2].lower(): m for m in members}
                    picture = next((by_kind[k] for k in PICTURES if k in by_kind), None)
                    if picture:
                        text, concept = _words(tar, by_kind)
                        yield Found(
                            text, concept, number, "", picture.offset_data, picture.size
                        )  # fmt: skip
        except tarfile.TarError as e:
            raise DataError(f"{path} is no tar file, or a truncated one ({e})") from e


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the files of a tar; tarfile itself would remember all it has seen."""
    while (member := tar.next()) is not None:
        tar.members.clear()
        if member.isfile():
            yield member


def _words(tar: tarfile.TarFile, parts: dict[str, tarfile.TarInfo]) -> tuple[str, str]:
    """Return a sample's caption and concept, "" if there is none."""
    for kind in (".txt", ".caption"):
        if kind in parts and (file := tar.extractfile(parts[kind])):
            return file.read().decode("utf-8", "replace").strip(), ""
    if ".json" in parts and (file := tar.extractfile(parts[".json"])):
        try:
            values = json.loads(file.read())
        except ValueError:
            return "", ""
        for name in CAPTION_COLUMNS:
            if isinstance(values, dict) and isinstance(values.get(name), str):
                return values[name].strip(), str(values.get("concept") or "")
    return "", ""


# ---------------------------------------------------------------------------------- Parquet


def _from_parquet(files: Sequence[Path]) -> Iterator[Found]:
    """Yield the rows of Parquet files in the Hugging Face layout."""
    for number, path in enumerate(files):
        try:
            file = storage.parquet(path)
        except (pa.ArrowInvalid, OSError) as e:
            raise DataError(f"{path} is no Parquet file, or a truncated one ({e})") from e
        names = file.schema_arrow.names
        column = next((c for c in CAPTION_COLUMNS if c in names), None)
        if column is None or "image" not in names:
            raise DataError(
                f"{path}: columns",
                got=", ".join(names),
                expected="image and one of " + ", ".join(CAPTION_COLUMNS),
            )
        wanted = [column, *(["concept"] if "concept" in names else [])]
        for group in range(file.num_row_groups):
            pieces = file.iter_batches(8192, row_groups=[group], columns=wanted)
            rows = (row for piece in pieces for row in piece.to_pylist())
            for i, row in enumerate(rows):
                several = isinstance(row[column], list)
                text = next(iter(row[column]), "") if several else row[column]
                words = str(text or "").strip()
                yield Found(words, str(row.get("concept") or ""), number, "", group, i)
