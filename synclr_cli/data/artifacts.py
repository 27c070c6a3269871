"""What the stages hand each other: files that say what they are, and are whole or not there.

    captions/2    folder of part-*.parquet       words and the caption written for them
    rejects/1     folder of part-*.parquet       completions the quality gate refused, and why
    backgrounds/1 one Parquet file               where a photo of a concept could be taken
    images/2      folder of part-*.parquet       images in the Hugging Face `Image` layout
    backbone/1    safetensors + config.json      a ViT under timm's key names
    checkpoint/1  folder of safetensors + JSON   everything a training run needs to go on
    features/1    safetensors                    frozen features and labels
    embeddings/1  Parquet, or .npy and JSON      features of images, for search and clustering
    model/1       safetensors                    a fine-tuned classifier or segmenter
    report/1      JSON                           a grade and what it was measured on
    export/1      folder of another library's    a backbone or image engine, and export.json

Each carries a `Header`: schema, version, the resolved config, engine and revision, seed, and its
parent's digest *and* header, so one file tells the chain back to the word list. How they are
written, and where they may lie, is in `places`. No pickle, ever.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synclr_cli.data import storage
from synclr_cli.data.header import (
    VERSIONS as VERSIONS,
    Header as Header,  # those who open a file want its header
    parent as parent,
    require_same as require_same,
)
from synclr_cli.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# Column -> Arrow type, by schema. `image` is the Hugging Face Image layout.
COLUMNS = {
    "captions": {
        "caption_id": "int64",
        "caption": "string",
        "concept": "string",
        "source": "string",  # concept list the concept came from
        "template": "string",  # c | c_bg | c_rel
        "companion": "string",  # the background or relation word; "" for c
        "engine": "string",
        "seed": "int64",  # of the engine's sampling noise for this row
        "examples": "ids",  # demonstrations shown in the prompt
        "weight": "float32",  # of the caption, for samplers that honour it
    },
    "rejects": {
        "caption_id": "int64",
        "attempt": "int32",  # which draw of the row it was, from 0
        "reason": "string",  # one of captions/quality.py's REASONS
        "caption": "string",
        "concept": "string",
        "template": "string",
        "companion": "string",
        "seed": "int64",
    },
    "backgrounds": {
        "concept": "string",
        "background": "string",  # "" says that a concept was asked for and nothing came
    },
    "images": {
        "caption_id": "int64",
        "view": "int32",
        "caption": "string",
        "concept": "string",
        "image": "image",
        "width": "int32",
        "height": "int32",
        "seed": "int64",  # of this view's starting noise
        "mask": "image",  # PNG of class ids; null if the engine yields none
        "score": "float32",  # of image against caption by `render.score_model`, or null
    },
}
OPTIONAL = {"score"}  # columns that files of earlier days may lack

HEADER_KEY = "synclr"  # of the metadata of Parquet and safetensors files


# ------------------------------------------------------------------------------------ Parquet


def arrow_schema(schema: str, header: Header | None = None) -> pa.Schema:
    """Return a schema's Arrow form, with the header and Hugging Face's feature types inside."""
    import pyarrow as pa

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    special = {"image": image, "ids": pa.list_(pa.int32())}
    fields = [
        pa.field(name, special.get(kind) or pa.type_for_alias(kind))
        for name, kind in COLUMNS[schema].items()
    ]
    # datasets reads this key to know that a struct of bytes is an image.
    features = {
        name: {"_type": "Image"}
        if kind == "image"
        else {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "List"}
        if kind == "ids"
        else {"dtype": kind, "_type": "Value"}
        for name, kind in COLUMNS[schema].items()
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    if header:
        metadata[HEADER_KEY] = header.json()
    return pa.schema(fields, metadata=metadata)


def write_parquet(
    path: Path, schema: str, header: Header, batches: Iterable[pa.Table], *, rows_per_group: int
) -> None:
    """Write tables of a schema as one Parquet file, whole or not at all."""
    with storage.atomic_file(path) as partial:
        write_tables(partial, schema, header, batches, rows_per_group=rows_per_group)


def write_tables(
    path: Path, schema: str, header: Header, batches: Iterable[pa.Table], *, rows_per_group: int
) -> None:
    """Write tables of a schema to a file of this machine, a checksum with each page."""
    import pyarrow.parquet as pq

    arrow = arrow_schema(schema, header)
    with pq.ParquetWriter(path, arrow, compression="zstd", write_page_checksum=True) as sink:
        for batch in batches:
            table = batch.select(arrow.names).cast(arrow.remove_metadata())
            sink.write_table(table.replace_schema_metadata(arrow.metadata), rows_per_group)


def open_parquet(path: Path, schema: str) -> tuple[pq.ParquetFile, Header]:
    """Open a Parquet file of a schema.

    Raises:
        DataError: missing, truncated, not Parquet, no header, another schema, a column that is
            missing or holds something else.
    """
    file, header = open_any_parquet(path)
    require_schema(file, header, schema, path)
    return file, header


def require_schema(file: pq.ParquetFile, header: Header, schema: str, path: Path) -> None:
    """Refuse an open Parquet file that is none of a schema; errors as `open_parquet`."""
    if header.schema != schema:
        raise DataError(f"{path}", got=f"{header.schema}/{header.version}", expected=schema)
    columns = {*file.schema_arrow.names, *OPTIONAL}
    missing = [c for c in COLUMNS[schema] if c not in columns]
    maker = STAGE_OF.get(schema, schema)
    if missing:
        raise DataError(
            f"{path} lacks column {', '.join(missing)}", do=f"make it with synclr {maker}"
        )
    wrong = [
        f"{name} is {kind}"
        for name in COLUMNS[schema]
        if name in file.schema_arrow.names
        and not _is_kind(kind := file.schema_arrow.field(name).type, COLUMNS[schema][name])
    ]
    if wrong:
        raise DataError(f"{path}: column {', '.join(wrong)}", do=f"make it with synclr {maker}")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what pyarrow says of a damaged Parquet file into one line."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"cannot read {path} ({e})", do="make or copy it again") from e


def _is_kind(found: pa.DataType, wanted: str) -> bool:
    """Return whether a column's type is one of the kind: whole numbers, or text of any width."""
    import pyarrow as pa

    if wanted.startswith("int"):
        return bool(pa.types.is_integer(found))
    if wanted == "string":
        texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_dictionary)
        return any(is_text(found) for is_text in texts)
    return True


def open_any_parquet(path: Path) -> tuple[pq.ParquetFile, Header]:
    """Open a Parquet file of any schema of ours; errors as `open_parquet`."""
    import pyarrow as pa

    if not path.is_file():
        raise DataError(f"no file {path}")
    try:
        file = storage.parquet(path)
    except (pa.ArrowInvalid, OSError) as e:
        raise DataError(f"{path} is not a Parquet file (or truncated) ({e})") from e
    return file, Header.parse((file.schema_arrow.metadata or {}).get(HEADER_KEY.encode()), path)


class Parts:
    """Numbered Parquet files in one folder, each whole; those that are there are not made again.

    `parts.missing(n)` are the numbers still to make; `parts.write(i, table)` makes one.
    """

    def __init__(self, folder: Path, schema: str, header: Header):
        self.folder, self.schema, self.header = folder, schema, header

    def path(self, index: int) -> Path:
        """Return where part `index` lies."""
        return self.folder / f"part-{index:05d}.parquet"

    def present(self) -> list[Path]:
        """Return the parts that are there, in order."""
        return sorted(self.folder.glob("part-*.parquet"))

    def missing(self, total: int) -> list[int]:
        """Return the numbers below `total` that are still to make.

        Raises:
            UsageError: the parts that are there were made with other settings.
        """
        present = self.present()
        if present:
            _, found = open_parquet(present[0], self.schema)
            require_same(STAGE_OF[self.schema], found, self.header, self.folder)
        return [i for i in range(total) if not self.path(i).exists()]

    def write(self, index: int, table: pa.Table, *, rows_per_group: int) -> None:
        """Write part `index`."""
        write_parquet(
            self.path(index), self.schema, self.header, [table], rows_per_group=rows_per_group
        )


STAGE_OF = {
    "captions": "captions",
    "rejects": "captions",
    "backgrounds": "captions",
    "images": "render",
    "backbone": "train",
    "checkpoint": "train",
}


# -------------------------------------------------------------------------------- safetensors


def write_tensors(path: Path, tensors: Mapping[str, Any], header: Header) -> None:
    """Write torch tensors as safetensors with the header in the metadata."""
    from safetensors.torch import save_file

    contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    with storage.atomic_file(path) as partial:
        # One entry, since safetensors writes several in any order and the bytes would differ.
        save_file(contiguous, partial, metadata={HEADER_KEY: header.json()})


def read_tensors(path: Path, schema: str) -> tuple[dict[str, Any], Header]:
    """Read safetensors written by `write_tensors`.

    Raises:
        DataError: missing, truncated, not safetensors, another schema.
    """
    header = tensors_header(path)
    if header.schema != schema:
        raise DataError(f"{path}", got=header.schema, expected=schema)
    return tensors_of(path), header


def tensors_of(path: Path) -> dict[str, Any]:
    """Read the torch tensors of anybody's safetensors file.

    Raises:
        DataError: missing, truncated, not safetensors, or of numbers that torch has not.
    """
    from safetensors import SafetensorError, safe_open

    _metadata(path)  # refuses what is not safetensors
    try:
        with safe_open(path, framework="pt") as f:
            return {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError, AttributeError) as e:
        raise DataError(f"cannot read the tensors of {path} ({str(e)[:120]})") from e


def tensors_header(path: Path) -> Header:
    """Read only the header of a safetensors file."""
    return Header.parse(_metadata(path).get(HEADER_KEY), path)


def is_ours(path: Path) -> bool:
    """Return whether a safetensors file was written by `write_tensors`."""
    return HEADER_KEY in _metadata(path)


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise DataError(f"no file {path}")
    try:
        with safe_open(path, framework="np") as f:
            return f.metadata() or {}
    except (SafetensorError, OSError) as e:
        raise DataError(f"{path} is not a safetensors file, or truncated ({str(e)[:120]})") from e
