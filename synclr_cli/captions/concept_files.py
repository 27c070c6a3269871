"""A user's list of concepts: .txt (one a line), .csv or .parquet (column `concept`).

    file --rows--> cleaned, told apart, repeated ones put together --> ConceptList

`kind` (object, place, texture), `weight` and `backgrounds` are read where they are columns. A BOM,
blank lines, control characters and repeated lines do no harm.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from synclr_cli.data import artifacts, storage
from synclr_cli.errors import DataError

KINDS = ("object", "place", "texture")
SUFFIXES = (".txt", ".csv", ".parquet")
_LONGEST = 200  # characters; a longer line is a text, not a concept


@dataclass
class ConceptList:
    """One source: columns of equal length."""

    source: str
    names: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    glosses: list[str] = field(default_factory=list)
    backgrounds: list[tuple[str, ...]] = field(default_factory=list)  # of the concept's own
    domain: str = ""
    path: Path | None = None
    merged: int = 0  # duplicates that were put together
    skipped: int = 0  # blank lines

    def add(
        self,
        name: str,
        kind: str = "object",
        weight: float = 1.0,
        gloss: str = "",
        backgrounds: tuple[str, ...] = (),
    ) -> None:
        """Append one concept."""
        self.names.append(name)
        self.kinds.append(kind)
        self.weights.append(weight)
        self.glosses.append(gloss)
        self.backgrounds.append(backgrounds)


def read_file(path: Path) -> ConceptList:
    """Read a list of concepts.

    Raises:
        DataError: missing, empty, not UTF-8, no column `concept`, an unknown kind, a weight that is
            no number, a line that is a text.
    """
    if not path.is_file():
        raise DataError(f"no concept file {path}")
    if path.suffix not in SUFFIXES:
        raise DataError(f"concept file {path}", got=path.suffix, expected=" | ".join(SUFFIXES))
    concepts = ConceptList(source=path.stem, path=path)
    rows = _READERS[path.suffix](path)
    place: dict[str, int] = {}
    for where, concept, kind, weight, backgrounds in rows:
        name = clean(concept)
        if not name:
            concepts.skipped += 1
            continue
        if len(name) > _LONGEST:
            raise DataError(
                f"{path}, {where}: a concept of {len(name)} characters",
                expected=f"at most {_LONGEST}",
                got=repr(name[:40] + "..."),
            )
        if (kind := kind.strip().lower() or "object") not in KINDS:
            near = difflib.get_close_matches(kind, KINDS, n=1)
            raise DataError(
                f"{path}, {where}: kind",
                got=repr(kind),
                expected=" | ".join(KINDS),
                do=f"did you mean {near[0]}?" if near else "",
            )
        key = name.casefold()
        if key in place:
            concepts.merged += 1
            if path.suffix != ".txt":
                concepts.weights[place[key]] += weight
            continue
        place[key] = len(concepts.names)
        own = tuple(b for b in map(clean, backgrounds) if b)
        concepts.add(name, kind=kind, weight=weight, backgrounds=own)
    if not concepts.names:
        raise DataError(f"no concept in {path}", do="write one concept per line")
    return concepts


_Row = tuple[str, str, str, float, Sequence[str]]  # where, concept, kind, weight, backgrounds


def _read_text(path: Path) -> Iterator[_Row]:
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.startswith("# "):  # a remark
            continue
        yield f"line {number}", line, "", 1.0, ()


def _read_csv(path: Path) -> Iterator[_Row]:
    reader = csv.DictReader(io.StringIO(_text(path)), strict=True)
    try:
        _require_columns(path, reader.fieldnames or ())
        for row in reader:
            where = f"line {reader.line_num}"
            yield (
                where,
                row["concept"] or "",
                row.get("kind") or "",
                _weight(path, where, row.get("weight")),
                re.split(r"[;|]", row.get("backgrounds") or ""),
            )
    except csv.Error as e:
        raise DataError(f"{path} is not a CSV file ({e})", do="close the quotes it opens") from e


def _read_parquet(path: Path) -> Iterator[_Row]:
    try:
        file = storage.parquet(path)
    except (pa.ArrowInvalid, OSError) as e:
        raise DataError(f"{path} is not a Parquet file (or truncated) ({e})") from e
    columns = _require_columns(path, file.schema_arrow.names)
    number = 0
    batches = file.iter_batches(storage.ROWS_OF_ANYBODY, columns=columns)
    while (batch := _next(batches, path)) is not None:
        for row in batch.to_pylist():
            number += 1
            where = f"row {number}"
            own = row.get("backgrounds") or ()
            if not isinstance(own, str | list | tuple):
                raise DataError(
                    f"{path}: column backgrounds",
                    got=type(own).__name__,
                    expected="text, or lists of texts",
                )
            yield (
                where,
                str(row["concept"] or ""),
                str(row.get("kind") or ""),
                _weight(path, where, row.get("weight")),
                re.split(r"[;|]", own) if isinstance(own, str) else [str(b) for b in own],
            )


def _next(batches: Iterator[pa.RecordBatch], path: Path) -> pa.RecordBatch | None:
    """Return the next batch of a Parquet file, None after the last; a damaged page is refused."""
    with artifacts.readable(path):
        return next(batches, None)


_READERS = {".txt": _read_text, ".csv": _read_csv, ".parquet": _read_parquet}


def _require_columns(path: Path, names: Iterable[str]) -> list[str]:
    names = list(names)
    if "concept" not in names:
        raise DataError(
            f"{path}: columns", got=", ".join(names) or "none", expected="one named concept"
        )
    return [n for n in names if n in ("concept", "kind", "weight", "backgrounds")]


def _weight(path: Path, where: str, value: object) -> float:
    if value is None or value == "":
        return 1.0
    try:
        weight = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        weight = float("nan")
    if not 0 <= weight < float("inf"):
        raise DataError(f"{path}, {where}: weight", got=repr(value), expected="a number, 0 or more")
    return weight


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as e:
        raise DataError(
            f"{path} is not UTF-8 (byte {e.start})", do="save it as UTF-8 and try again"
        ) from e


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060\ufeff\ufffe\uffff]")


def clean(text: str) -> str:
    """Return a word on one line: no control characters, single spaces, composed (NFC)."""
    if text.isascii() and text.isprintable() and "  " not in text:
        return text.strip()  # nearly every line of a list; a million of them should be quick
    return " ".join(_CONTROL.sub(" ", unicodedata.normalize("NFC", text)).split())
