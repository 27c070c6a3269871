"""How a captions file is made of parts: which ids a part has, whose it is, and joining them.

ids 0 ... count --parts of equal size--> every N-th is a shard's --in order--> one file
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from synclr_cli.data import artifacts, storage
from synclr_cli.errors import UsageError

ROWS_PER_GROUP = 65536  # of the finished files


def require_place(out: Path, *, overwrite: bool) -> None:
    """Refuse to write where something else is.

    Raises:
        UsageError: `out` is a folder, or no name of a Parquet file; it (with `overwrite`) or what
            would lie beside it is something else.
    """
    if not out.name or out.is_dir():
        raise UsageError(
            f"--out {str(out)!r}", got="a folder", expected="a file",
            do=f"try --out {out / 'captions.parquet'}",
        )  # fmt: skip
    if out.suffix != ".parquet":
        raise UsageError(
            f"--out {out}", expected="the name of a Parquet file", do=f"try --out {out}.parquet"
        )
    if overwrite and out.is_file():
        artifacts.require_replaceable(out, "captions")
    for schema in ("rejects", "backgrounds"):
        if beside(out, schema).is_file():
            artifacts.require_replaceable(beside(out, schema), schema)


def rejects_path(out: Path) -> Path:
    """Return where the rejects of a captions file lie."""
    return beside(out, "rejects")


def beside(out: Path, what: str) -> Path:
    """Return where the file lies that holds something else of a captions file's making."""
    return out.with_name(f"{out.stem}.{what}.parquet")


def part_numbers(count: int, size: int, shard: str = "1/1", first: int = 0) -> list[int]:
    """Return the numbers of the parts of so many captions that a shard makes, from `first` on."""
    number, _, of = shard.partition("/")
    return [i for i in range(first, -(-count // size)) if i % int(of) == int(number) - 1]


def ids_of(index: int, count: int, size: int) -> np.ndarray:
    """Return the caption ids of a part."""
    return np.arange(index * size, min((index + 1) * size, count))


def continued(old: Path, before: int, parts: Iterable[Path]) -> Iterator[pa.Table]:
    """Yield the rows of `old` with ids below `before`, then the parts."""
    if before and old.exists():
        for batch in storage.parquet(old).iter_batches(ROWS_PER_GROUP):
            kept = batch.filter(pc.less(batch["caption_id"], before))
            yield pa.Table.from_batches([kept]).replace_schema_metadata(None)
            if kept.num_rows < batch.num_rows:
                break
    for path in parts:
        yield storage.table(path).replace_schema_metadata(None)


def grouped(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows of all parts again, in tables of whole row groups but for the last.

    So the file does not tell which parts it was made of.
    """
    waiting: list[pa.Table] = []
    rows = 0
    for part in parts:
        waiting.append(part)
        rows += part.num_rows
        while rows >= ROWS_PER_GROUP:
            together = pa.concat_tables(waiting)
            yield together.slice(0, ROWS_PER_GROUP).combine_chunks()
            waiting = [together.slice(ROWS_PER_GROUP)]
            rows -= ROWS_PER_GROUP
    if rows:
        yield pa.concat_tables(waiting).combine_chunks()


def remove(*paths: Path) -> None:
    """Remove files and folders, wherever they lie, if they are there."""
    for path in paths:
        with storage.disk_errors(path):
            if not path.exists():
                continue
            if not storage.is_local(path):
                path.fs.rm(path.path, recursive=True)  # type: ignore[attr-defined]
            elif path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
