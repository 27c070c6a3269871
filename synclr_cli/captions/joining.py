"""`synclr join`: the shards of a captions file, made on several machines -> the whole file.

    captions-1.parquet ... captions-N.parquet --part by part--> captions.parquet (and what lies
    beside: rejects, listed backgrounds)

The whole is, byte for byte, what one machine would have written. Every shard must be there once,
and all of one run: the same settings, engine, inputs and count. A few rows of each shard are in
memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from synclr_cli import console
from synclr_cli.captions import listing
from synclr_cli.captions.pieces import (
    ROWS_PER_GROUP,
    grouped,
    ids_of,
    part_numbers,
    rejects_path,
    require_place,
)
from synclr_cli.data import artifacts, storage
from synclr_cli.errors import DataError, UsageError

_BATCH = 4096  # rows of a shard in memory


def run(shards: Sequence[Path], out: Path, *, overwrite: bool = False) -> Path:
    """Join all shards of a run to `out`; return it.

    Args:
        shards: captions files; the rejects and backgrounds beside them may be named, too.

    Raises:
        UsageError: `out` is something else, or one of the shards.
        DataError: a shard is missing, there twice, of another run, or not whole.
    """
    require_place(out, overwrite=overwrite)
    by_number, header = _opened(shards)
    if storage.resolved(out) in map(storage.resolved, shards):
        raise UsageError(f"{out} is one of the shards", do="choose another --out")
    if out.exists() and not overwrite:
        _, found = artifacts.open_parquet(out, "captions")
        artifacts.require_same("captions", found, header, out)
        if found.config["count"] == header.config["count"]:
            return out
    count, size = int(header.config["count"]), int(header.config["captions_per_part"])
    files = [by_number[n] for n in sorted(by_number)]
    beside = [rejects_path(file) for file in files]
    if absent := [str(path) for path in beside if not path.exists()]:
        raise DataError(f"no file {absent[0]}", do="keep it beside its shard")
    if header.config["backgrounds"] == "model":
        lists = [listing.path_beside(file) for file in files]
        kept = listing.path_beside(out)
        artifacts.write_parquet(
            kept, "backgrounds", replace(header, schema="backgrounds"),
            [listing.joined(lists)], rows_per_group=ROWS_PER_GROUP,
        )  # fmt: skip
    with console.progress("join", count, unit="captions") as meter:
        for schema, paths, made in (
            ("rejects", beside, rejects_path(out)),
            ("captions", files, out),
        ):
            parts = _parts(paths, schema, count, size, meter if schema == "captions" else None)
            artifacts.write_parquet(
                made, schema, replace(header, schema=schema), grouped(parts),
                rows_per_group=ROWS_PER_GROUP,
            )  # fmt: skip
    return out


def _opened(shards: Sequence[Path]) -> tuple[dict[int, Path], artifacts.Header]:
    """Return the shards by number, and the header of the whole."""
    by_number: dict[int, Path] = {}
    whole: artifacts.Header | None = None
    for path in shards:
        file, found = artifacts.open_any_parquet(path)
        if found.schema in ("rejects", "backgrounds"):
            continue  # captions-*.parquet finds what lies beside the shards as well
        artifacts.require_schema(file, found, "captions", path)
        number, _, of = str(found.config["shard"]).partition("/")
        header = replace(found, config={**found.config, "shard": f"1/{of}"})
        if whole is None:
            whole, first, total = header, path, int(of)
        elif (differing := _differing(whole, header)) is not None:
            raise DataError(f"{path} is not of the run of {first} ({differing} differs)")
        if int(number) in by_number:
            raise DataError(
                f"shard {number}/{of} is there twice: {by_number[int(number)]} and {path}"
            )
        by_number[int(number)] = path
    if whole is None:
        raise UsageError("nothing to join", do="name the shards: synclr join captions-*.parquet")
    if missing := sorted(set(range(1, total + 1)) - set(by_number)):
        some = ", ".join(f"{n}/{total}" for n in missing[:5]) + (" ..." if missing[5:] else "")
        raise DataError(
            f"{len(missing)} of {total} shards are missing: {some}",
            do=f"make them with synclr captions --shard {missing[0]}/{total}",
        )
    return by_number, replace(whole, config={**whole.config, "shard": "1/1"})


def _differing(one: artifacts.Header, other: artifacts.Header) -> str | None:
    for name in ("engine", "revision", "seed", "facts"):
        if getattr(one, name) != getattr(other, name):
            return name
    if [p["digest"] for p in one.parents] != [p["digest"] for p in other.parents]:
        return "a concept file"
    for key in {**one.config, **other.config}:
        if one.config.get(key) != other.config.get(key):
            return f"captions.{key}"
    return None


def _parts(
    paths: Sequence[Path], schema: str, count: int, size: int, meter: console.Meter | None
) -> Iterator[pa.Table]:
    """Yield the parts of the whole in order, each from the shard it belongs to."""
    rows = [_Rows(path, schema) for path in paths]
    for index in part_numbers(count, size):
        ids = ids_of(index, count, size)
        shard = rows[index % len(paths)]
        part = shard.below(int(ids[-1]) + 1)
        if schema == "captions" and not np.array_equal(part["caption_id"].to_numpy(), ids):
            raise DataError(
                f"{shard.path} lacks captions of ids {ids[0]} to {ids[-1]}",
                do="make this shard again",
            )
        yield part
        if meter:
            meter.advance(len(ids))
    for shard in rows:
        if shard.below(None).num_rows:
            raise DataError(f"{shard.path} holds captions of other shards")


class _Rows:
    """Reads the rows of a file in order of their ids, a few at a time."""

    def __init__(self, path: Path, schema: str):
        self.path = path
        file, _ = artifacts.open_parquet(path, schema)
        self._empty = file.schema_arrow.remove_metadata().empty_table()
        self._batches = file.iter_batches(_BATCH)
        self._waiting: list[pa.Table] = []

    def below(self, limit: int | None) -> pa.Table:
        """Return the rows not yet returned of ids below `limit`."""
        taken: list[pa.Table] = []
        while True:
            table = self._waiting.pop() if self._waiting else self._next()
            if table is None:
                break
            fits = (
                table.num_rows
                if limit is None
                else int(np.searchsorted(table["caption_id"].to_numpy(), limit))
            )
            taken.append(table.slice(0, fits))
            if fits < table.num_rows:
                self._waiting.append(table.slice(fits))
                break
        return pa.concat_tables(taken or [self._empty])

    def _next(self) -> pa.Table | None:
        batch = next(self._batches, None)
        if batch is None:
            return None
        return pa.Table.from_batches([batch]).replace_schema_metadata(None)
