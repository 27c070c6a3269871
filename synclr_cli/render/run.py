"""`synclr render`: captions -> pictures, several of each, in Parquet (paper, section 3.2).

    captions/1 -> parts of `captions_per_part` captions -> batches -> engine -> encoded rows ->
    part-00000.parquet ... -> manifest.json

A picture depends on (render.seed, caption_id, view) and the engine, never on batches, processes,
shards or where the last run stopped. A part is the unit of resuming and of batching. While the
engine paints, the pictures before are encoded and written by other threads; an engine that says it
is `parallel` is painted by processes instead.
"""

from __future__ import annotations

import json
from collections import deque
from concurrent.futures import Future
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from synclr_cli import artifacts, config as configs, console, engines
from synclr_cli.config import RenderConfig
from synclr_cli.errors import DataError
from synclr_cli.render import painting
from synclr_cli.render.painting import Row, view_seed

MANIFEST = "manifest.json"
CAPTIONS_PER_GROUP = 16  # a row group is what a reader fetches at once; no caption is split
PARTS_IN_FLIGHT = 2  # parts being painted, encoded or written at the same time
LARGEST_CLASS = 254  # mask ids: 0 is background, 255 is left for "ignore"


def run(config: RenderConfig, captions: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Paint every caption of a captions/1 file into the images/1 folder `out`, and return it.

    Raises:
        DataError: no captions/1 file, an empty one, or caption ids that repeat.
        UsageError: `out` was made with other settings, or cannot be written.
        EngineError: the engine is not there or gave up; the disk is full.
    """
    # --- open
    table, origin = _read_captions(captions)
    header = artifacts.Header(
        schema="images",
        config=configs.flatten(config),
        engine=config.engine.name,
        seed=config.seed,
        parents=(origin,),
    )
    if overwrite:
        _clear(out)
    elif (out / MANIFEST).is_file():
        artifacts.require_same("render", artifacts.open_images(out)[1], header, out)
        return out

    # --- build
    engine = engines.load("image", config.engine)
    header = replace(header, revision=engine.revision)
    with artifacts.disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    parts = artifacts.Parts(out, "images", header)
    total_parts = -(-table.num_rows // config.captions_per_part)
    todo = parts.missing(total_parts)
    classes = _class_names(table)

    # --- loop
    total = table.num_rows * config.views
    left = config.views * sum(
        min(config.captions_per_part, table.num_rows - i * config.captions_per_part) for i in todo
    )
    with (
        painting.painter(engine, config, left) as painter,
        console.progress("render", total, done=total - left, unit="pictures") as meter,
    ):
        in_flight: deque[tuple[int, list[Future[Any]]]] = deque()
        for index in todo:
            rows = _rows(table, index, config, classes)
            in_flight.append((index, painter.submit(rows)))
            if len(in_flight) == PARTS_IN_FLIGHT:
                _finish(parts, *in_flight.popleft(), config, meter)
        while in_flight:
            _finish(parts, *in_flight.popleft(), config, meter)

    # --- write
    _write_manifest(parts, total_parts, captions.name, config, classes)
    return out


def _read_captions(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """Return the captions, sorted by id, and what a header says of their file."""
    file, header = artifacts.open_parquet(path, "captions")
    try:
        table = file.read(columns=["caption_id", "caption", "concept"])
    except (pa.ArrowInvalid, OSError) as e:
        raise DataError(f"{path} is truncated or damaged ({e})") from e
    if not table.num_rows:
        raise DataError(f"{path} holds no captions", do="make some with synclr captions")
    ids = table["caption_id"].to_numpy()
    if (np.diff(ids) <= 0).any():
        table = table.sort_by("caption_id")
        ids = table["caption_id"].to_numpy()
        repeated = ids[1:][np.diff(ids) == 0]
        if len(repeated):
            raise DataError(f"{path}: caption_id {repeated[0]} occurs twice")
    return table, artifacts.parent(path, header, artifacts.digest(path))


def _class_names(table: pa.Table) -> list[str]:
    """Return the concept behind each mask id, from id 1 on; one class if there are too many."""
    names = sorted(pc.unique(table["concept"]).to_pylist())
    return names if len(names) <= LARGEST_CLASS else ["object"]


def _rows(table: pa.Table, index: int, config: RenderConfig, classes: list[str]) -> list[Row]:
    """Return the views that part `index` holds, caption by caption."""
    class_ids = {name: i for i, name in enumerate(classes, 1)}
    piece = table.slice(index * config.captions_per_part, config.captions_per_part)
    return [
        Row(
            c["caption_id"],
            view,
            c["caption"],
            c["concept"],
            view_seed(config.seed, c["caption_id"], view),
            class_ids.get(c["concept"], 1),
        )
        for c in piece.to_pylist()
        for view in range(config.views)
    ]


def _finish(
    parts: artifacts.Parts,
    index: int,
    batches: list[Future[Any]],
    config: RenderConfig,
    meter: console.Meter,
) -> None:
    """Wait for a part's pictures and write it."""
    records = []
    for batch in batches:
        made = batch.result()
        records += made
        meter.advance(len(made))
    schema = artifacts.arrow_schema("images")
    table = pa.Table.from_pylist(records, schema=schema)
    parts.write(index, table, rows_per_group=CAPTIONS_PER_GROUP * config.views)


def _write_manifest(
    parts: artifacts.Parts, total: int, captions: str, config: RenderConfig, classes: list[str]
) -> None:
    """Write the list of parts that says the folder is whole."""
    listed = []
    for index in range(total):
        file, _ = artifacts.open_parquet(parts.path(index), "images")
        listed.append(
            {
                "name": parts.path(index).name,
                "rows": file.metadata.num_rows,
                "digest": artifacts.digest(parts.path(index)),
            }
        )
    first = parts.path(0)
    masked = pq.read_table(first, columns=["mask"])["mask"].null_count == 0
    whole = sha256("".join(f"{p['name']}\0{p['digest']}\n" for p in listed).encode())
    manifest = {
        "header": json.loads(parts.header.json()),
        "digest": f"sha256:{whole.hexdigest()}",
        "captions": captions,
        "views": config.views,
        "pictures": sum(p["rows"] for p in listed),
        "classes": classes if masked else [],
        "parts": listed,
    }
    artifacts.write_json(parts.folder / MANIFEST, manifest)


def _clear(out: Path) -> None:
    """Remove what an earlier run made in `out`, the manifest first."""
    with artifacts.disk_errors(out):
        (out / MANIFEST).unlink(missing_ok=True)
        for part in [*out.glob("part-*.parquet"), *out.glob(".part-*.partial")]:
            part.unlink()
