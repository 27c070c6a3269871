"""Columns of Parquet files of anybody's: encoded images, labels, and the classes they name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from synclr_cli.data import artifacts, json_text, sources, storage
from synclr_cli.errors import DataError

IMAGE_COLUMNS = ("image", "img")


def image_column(files: Sequence[Path]) -> str:
    """Return the column of encoded images that Parquet files have.

    Raises:
        DataError: they have none, or not the same columns.
    """
    schemas = [sources.open_parquet(file).schema_arrow for file in files]
    names = schemas[0].names
    for file, schema in zip(files, schemas, strict=True):
        if schema.names != names:
            raise DataError(f"{file} has other columns than {files[0].name}")
    for column in IMAGE_COLUMNS:
        if names.count(column) == 1:
            require_images(files[0], schemas[0].field(column))
            return column
    raise DataError(f"{files[0]}", got=f"columns {', '.join(names)[:100]}", expected="image")


def require_images(file: Path, column: pa.Field) -> None:
    """Refuse a column of anything but encoded images: bytes, or a struct that holds them."""
    kind = column.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    whole = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_null)
    if not any(is_whole(kind) for is_whole in whole):
        raise DataError(
            f"{file}: column {column.name}", got=f"type {column.type}",
            expected="encoded images (bytes, or struct<bytes, path>)",
            do="name a folder instead, or put the files' bytes into the column",
        )  # fmt: skip


def labels(files: Sequence[Path], name: str) -> np.ndarray:
    """Return a column as [n] of int64 or str."""
    columns = []
    for file in files:
        column = _read_column(file, name)
        if column.null_count:
            row = column.is_null().index(True).as_py()
            raise DataError(f"{file}: column {name} has no value in row {row}")
        columns.append(column)
    column = pa.chunked_array([c for chunked in columns for c in chunked.chunks], columns[0].type)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lists = np.empty(len(column), object)
        lists[:] = column.to_pylist()
        return lists
    if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        try:
            return column.cast(pa.int64()).to_numpy()
        except pa.ArrowInvalid as e:
            raise DataError(f"{files[0]}: column {name} ({str(e)[:80]})") from e
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return np.array(column.to_pylist(), dtype=str)
    raise DataError(
        f"{files[0]}: column {name}", got=f"type {column.type}", expected="whole numbers or text"
    )


LONGEST_LABEL = 1000  # characters


def _read_column(file: Path, name: str) -> pa.ChunkedArray:
    """Return a column of labels of a Parquet file.

    Raises:
        DataError: it is damaged, or a text is too long for a label.
    """
    chunks = []
    with artifacts.readable(file), storage.parquet(file) as opened:
        kind = opened.schema_arrow.field(name).type
        for batch in opened.iter_batches(storage.ROWS_OF_ANYBODY, columns=[name]):
            column: Any = batch.column(0)
            if pa.types.is_dictionary(column.type):
                column = column.dictionary_decode()
            if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
                longest = pc.max(pc.utf8_length(column)).as_py() or 0
                if longest > LONGEST_LABEL:
                    raise DataError(
                        f"{file}: column {name}",
                        got=f"a label of {longest} characters",
                        expected=f"at most {LONGEST_LABEL}",
                    )
            chunks.append(column)
    return pa.chunked_array(chunks, chunks[0].type if chunks else kind)


def class_names(schema: pa.Schema, column: str) -> list[str]:
    """Return the names of a Hugging Face ClassLabel column, [] if there are none."""
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        feature = json_text.parse(text)["info"]["features"][column] if text else {}
        if isinstance(feature, list):  # how older versions of datasets write a list column
            feature = feature[0]
        names = feature.get("feature", feature).get("names", [])
    except (ValueError, LookupError, TypeError, AttributeError):
        return []  # some other program's, or damaged: the labels are numbers then
    return [str(n) for n in names] if isinstance(names, list) else []
