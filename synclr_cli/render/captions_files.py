"""Anybody's captions -> Parquet files with the columns that `render` reads.

    captions/2 folder, Parquet file -------> as they lie
    CSV, TSV, text --checked, copied-------> one Parquet file in TMPDIR, gone with this process

A foreign file needs a column `caption`; a text file has a caption on each line. `caption_id`
(default: the number of the row, from 0) and `concept` (default: "") are optional. What cannot be
rendered (no caption, ids that are no whole numbers, text that is not UTF-8) is refused before the
first image is made, with the row that holds it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from synclr_cli.data import artifacts, manifest, storage
from synclr_cli.errors import DataError

LONGEST = 10_000  # characters of a caption; text encoders read 77 to 512 tokens
TEXT_ROWS = 8192  # lines of a text file copied at once
CSV_BLOCK = 16 << 20  # bytes of a CSV file parsed at once; no row may be longer
ROWS_PER_GROUP = 16_384  # of the copy
HEADER_KEY = b"synclr"  # of a Parquet file that synclr wrote
DELIMITERS = {".csv": ",", ".tsv": "\t"}
KINDS = "a folder of synclr captions, or a .parquet, .csv, .tsv or .txt file"
COLUMN_TYPES: dict[str, pa.DataType] = {
    "caption_id": pa.int64(),
    "caption": pa.large_string(),
    "concept": pa.large_string(),
}
SCHEMA = pa.schema(COLUMN_TYPES)


@dataclass(frozen=True)
class CaptionFiles:
    """Where the rows of a set of captions lie."""

    folder: Path
    names: Any  # a sequence of texts, in Arrow for a folder
    rows: NDArray[np.int64]  # of each file
    parent: dict[str, Any]  # what the header of what is made from them says
    in_order: bool = False  # synclr wrote them: the ids rise from row to row
    temporary: tempfile.TemporaryDirectory[str] | None = None  # that holds the files, if one does

    def path(self, number: int) -> Path:
        """Return where file `number` lies."""
        return self.folder / str(self.names[number])


def open_files(path: Path) -> CaptionFiles:
    """Open a set of captions, whoever wrote it.

    Raises:
        DataError: it is not there, none of these, damaged, or holds no captions.
    """
    if not path.exists():
        raise DataError(f"no file or folder {path}", do="make it with synclr captions")
    if path.is_dir():
        opened = _open_folder(path)
    elif _is_parquet(path):
        with _open(path) as file:
            rows, header = file.metadata.num_rows, _header(file, path)
        parent = {**artifacts.parent(path, None, storage.digest(path)), **header}
        opened = CaptionFiles(path.parent, [path.name], np.array([rows]), parent)
    else:
        temporary = tempfile.TemporaryDirectory(prefix="synclr-")
        copy = Path(temporary.name, "captions.parquet")
        rows = _copy(path, copy)
        parent = artifacts.parent(path, None, storage.digest(path))
        opened = CaptionFiles(copy.parent, [copy.name], np.array([rows]), parent, False, temporary)
    if not opened.rows.sum():
        raise DataError(f"{path} holds no captions", do="make some with synclr captions")
    return opened


def _open_folder(path: Path) -> CaptionFiles:
    """Open what `synclr captions` wrote; its parts are not opened."""
    dataset = manifest.open_dataset(path, "captions", ("name", "rows"))
    parent = artifacts.parent(path, dataset.header, dataset.digest)
    return CaptionFiles(path, dataset.parts["name"], dataset.parts["rows"].to_numpy(), parent, True)


def uniform(batch: pa.RecordBatch, first: int, where: Path) -> pa.RecordBatch:
    """Return a foreign batch as (caption_id, caption, concept), checked.

    Args:
        first: number of its first row in the file, from 0.

    Raises:
        DataError: a column is missing or of another type, or a row cannot be rendered.
    """
    names = batch.schema.names
    caption_name, id_name, concept_name = required_columns(names, where)
    captions: Any = pc.utf8_trim_whitespace(_text(batch[caption_name], "caption", where))
    ids: Any = pa.array(np.arange(first, first + len(batch)))
    concepts: Any = pa.array([""] * len(batch), pa.large_string())
    if id_name is not None:
        ids = _whole_numbers(batch[id_name], where)
    if concept_name is not None:
        concepts = pc.fill_null(_text(batch[concept_name], "concept", where), "")
    lengths = pc.fill_null(pc.utf8_length(captions), 0).to_numpy(zero_copy_only=False)
    for wrong, what in (
        (lengths == 0, "has no caption"),
        (lengths > LONGEST, f"has a caption of more than {LONGEST:,} characters"),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            name = f"row {first + row + 1}" if id_name is None else f"caption_id {ids[row]}"
            raise DataError(f"{where}: {name} {what}", do="remove that row, or mend it")
    return pa.RecordBatch.from_arrays([ids, captions, concepts], schema=SCHEMA)


def required_columns(names: Sequence[str], where: Path) -> tuple[str, str | None, str | None]:
    """Return what a file calls its captions, ids and concepts; None for what it lacks.

    Raises:
        DataError: it has no captions, or two columns of one name.
    """
    known = ("caption", "caption_id", "concept")
    columns = [[n for n in names if n.strip().lower() == k] for k in known]
    for name, same in zip(known, columns, strict=True):
        if len(same) > 1:
            raise DataError(f"{where}: {len(same)} columns are called {name}", expected="one")
    if not columns[0]:
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise DataError(
            f"{where}: columns",
            got=shown[:160],
            expected="one called caption",
            do="name the column of captions so",
        )
    return columns[0][0], *(same[0] if same else None for same in columns[1:])  # type: ignore[return-value]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what pyarrow says of a damaged or foreign file into one line."""
    try:
        yield
    except UnicodeDecodeError as e:
        raise DataError(f"{path} is not UTF-8 text ({e})", do="save it as UTF-8") from e
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"cannot read {path} ({_one_line(e)})") from e


def _one_line(e: BaseException) -> str:
    return " ".join(str(e).split())[:160]


def _is_parquet(path: Path) -> bool:
    if path.suffix.lower() == ".parquet":
        return True
    with readable(path), path.open("rb") as f:
        return bool(f.read(4) == b"PAR1")


def _open(path: Path) -> pq.ParquetFile:
    try:
        return storage.parquet(path)
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{path} is not a Parquet file, or truncated ({_one_line(e)})") from e


def _header(file: pq.ParquetFile, path: Path) -> dict[str, Any]:
    """Return the header of a file that synclr wrote, as a parent holds it; {} of a foreign one.

    Raises:
        DataError: synclr wrote it, and not as captions.
    """
    text = (file.schema_arrow.metadata or {}).get(HEADER_KEY)
    if text is None:
        return {}
    try:
        header = json.loads(text)
        schema = header["schema"]
    except (ValueError, TypeError, KeyError):
        return {}  # some other program's key
    if schema != "captions":
        raise DataError(f"{path}", got=f"{schema}/{header.get('version')}", expected="captions")
    return {"header": header}


def _text(column: Any, name: str, where: Path) -> Any:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not any(is_text(kind) for is_text in texts) and not pa.types.is_null(kind):
        raise DataError(f"{where}: column {name}", got=kind, expected="text")
    return column.cast(pa.large_string())


def _whole_numbers(column: Any, where: Path) -> Any:
    if not pa.types.is_integer(column.type):
        raise DataError(
            f"{where}: column caption_id", got=column.type, expected="whole numbers",
            do="leave the column out, and rows are numbered from 0",
        )  # fmt: skip
    if column.null_count:
        raise DataError(f"{where}: a row has no caption_id")
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid as e:
        raise DataError(f"{where}: column caption_id ({_one_line(e)})") from e


# ------------------------------------------------------------------------------ CSV and text


def _copy(path: Path, copy: Path) -> int:
    """Write the rows of a CSV, TSV or text file as Parquet, checked; return how many.

    Raises:
        DataError: it is none of these, or a row of it cannot be rendered.
    """
    suffix = path.suffix.lower()
    if suffix in DELIMITERS:
        batches = _from_csv(path, DELIMITERS[suffix])
    elif suffix == ".txt":
        batches = _from_text(path)
    else:
        raise DataError(f"{path} is not a set of captions", expected=KINDS)
    rows = 0
    with pq.ParquetWriter(copy, SCHEMA, compression="zstd") as sink:
        for batch in batches:
            sink.write_batch(uniform(batch, rows, path), ROWS_PER_GROUP)
            rows += len(batch)
    return rows


def _from_csv(path: Path, delimiter: str) -> Iterator[pa.RecordBatch]:
    """Yield the columns of a CSV file that matter, as text and whole numbers."""
    reading = pacsv.ReadOptions(use_threads=False, block_size=CSV_BLOCK)
    parsing = pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    with readable(path), path.open("rb") as f:
        # An open quote takes in all that follows, and pyarrow lets it.
        if sum(block.count(b'"') for block in iter(lambda: f.read(CSV_BLOCK), b"")) % 2:
            raise DataError(
                f"{path}: a double quote is not closed",
                do='put captions with quotes in double quotes, and double those inside: "a ""b"""',
            )
        f.seek(0)
        with pacsv.open_csv(f, reading, parsing) as reader:
            columns = required_columns(reader.schema.names, path)
        f.seek(0)
        types = (pa.string(), pa.int64(), pa.string())
        kinds = {name: kind for name, kind in zip(columns, types, strict=True) if name is not None}
        converting = pacsv.ConvertOptions(column_types=kinds, include_columns=list(kinds))
        with pacsv.open_csv(f, reading, parsing, converting) as reader:
            yield from reader


def _from_text(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the lines of a text file; empty ones at its end are no captions."""
    lines: list[str] = []
    empty = 0  # lines seen since the last caption
    with readable(path), path.open("r", encoding="utf-8-sig") as f:
        while line := f.readline(4 * LONGEST):
            if not line.strip():
                empty += 1
                continue
            lines += [""] * empty  # in between: `uniform` says which
            empty = 0
            lines.append(line)
            if len(lines) >= TEXT_ROWS or len(line) > LONGEST:  # too long: refused at once
                yield pa.record_batch({"caption": lines})
                lines = []
    if lines:
        yield pa.record_batch({"caption": lines})
