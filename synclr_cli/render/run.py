"""`synclr render`: captions -> pictures, several of each, in Parquet.

    captions/1 -> parts of `captions_per_part` captions -> batches -> engine -> gate -> encoded
    rows -> part-00000.parquet ... -> manifest.json (and rejected.jsonl)

A picture depends on (render.seed, caption_id, view) and the engine, never on batches, processes,
shards or where the last run stopped. A part is the unit of resuming and of batching. While the
engine paints, the pictures before are encoded by other threads; an engine that says it is
`parallel` is painted by processes instead. Parts are written between batches, by this thread.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from synclr_cli import artifacts, config as configs, console, engines
from synclr_cli.config import RenderConfig
from synclr_cli.errors import DataError, UsageError
from synclr_cli.render import manifest, painting
from synclr_cli.render.manifest import MANIFEST
from synclr_cli.render.part import Part, Plan

CAPTIONS_PER_GROUP = 16  # a row group is what a reader fetches at once; no caption is split
PARTS_IN_FLIGHT = 2  # parts being painted, encoded or written at the same time


def run(
    config: RenderConfig,
    captions: Path,
    out: Path,
    *,
    overwrite: bool = False,
) -> Path:
    """Paint every caption of a captions/1 file into the images/1 folder `out`, and return it.

    A folder that was finished with fewer views or captions is continued: what it has is kept.
    Of N jobs that share the folder each paints every N-th part (`config.shard`); whichever ends
    last writes the manifest.

    Raises:
        DataError: no captions/1 file, an empty one, or caption ids that repeat.
        UsageError: `out` was made with other settings, or cannot be written.
        EngineError: the engine is not there or gave up; the disk is full.
    """
    # --- open
    table, origin = _read_captions(captions)
    plan = Plan(table, config)
    header = artifacts.Header(
        schema="images",
        config=configs.flatten(replace(config, shard="1/1")),  # the parts are no job's
        engine=config.engine.name,
        seed=config.seed,
        parents=(origin,),
    )
    parts = artifacts.Parts(out, "images", header)
    # Before anything is cleared: the engine may not be there.
    engine = engines.load("image", config.engine) if overwrite else None
    if overwrite:
        manifest.clear(parts)
    found = _found_header(out)
    if found:
        _require_continuable(found, header, out)
        if (out / MANIFEST).is_file() and _is_finished(found, header):
            return out
    todo = _todo(parts, plan)

    # --- build
    engine = engine or engines.load("image", config.engine)
    parts.header = header = replace(header, revision=engine.revision)
    if found and found.revision != engine.revision:
        console.warn(
            f"{out} was begun with {found.revision}; what is painted now is by {engine.revision}"
        )
    with artifacts.disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        if todo:
            (out / MANIFEST).unlink(missing_ok=True)  # not whole until it is written again
    number, _, jobs = config.shard.partition("/")
    mine = [i for i in todo if i % int(jobs) == int(number) - 1]

    # --- loop
    total = table.num_rows * config.views
    left = len(mine) * config.captions_per_part * config.views
    with (
        painting.painter(engine, config, left) as painter,
        console.progress("render", total, done=max(total - left, 0), unit="pictures") as meter,
    ):
        in_flight: deque[tuple[Part, list[Future[Any]]]] = deque()
        for index in mine:
            part = Part(plan, index)
            if parts.path(index).exists():
                part.keep(parts.path(index))
            in_flight.append((part, painter.submit(part.missing())))
            if len(in_flight) == PARTS_IN_FLIGHT:
                _finish(parts, *in_flight.popleft(), painter, meter)
        while in_flight:
            _finish(parts, *in_flight.popleft(), painter, meter)
    if truncated := len(getattr(engine, "truncated", ())):
        console.warn(f"{truncated} captions were longer than the text encoder reads")

    # --- write
    unfinished = len(_todo(parts, plan))
    if unfinished:
        console.note(f"{unfinished} of {plan.parts} parts are for the other jobs to paint")
    else:
        manifest.write(
            parts,
            plan.parts,
            captions=captions.name,
            views=config.views,
            classes=plan.classes,
        )
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


def _found_header(out: Path) -> artifacts.Header | None:
    """Return the header of what an earlier run left in `out`, finished or not."""
    if (out / MANIFEST).is_file():
        return artifacts.open_images(out)[1]
    first = next(iter(sorted(out.glob("part-*.parquet"))), None)
    return artifacts.open_parquet(first, "images")[1] if first else None


def _is_finished(found: artifacts.Header, wanted: artifacts.Header) -> bool:
    """Return whether a manifest's header is of just what is asked for."""
    same_config = not configs.differing_keys("render", found.config, wanted.config)
    return same_config and [p["digest"] for p in found.parents] == [
        p["digest"] for p in wanted.parents
    ]


def _require_continuable(found: artifacts.Header, wanted: artifacts.Header, out: Path) -> None:
    """Refuse to continue what other settings began; more views and more captions are welcome.

    Raises:
        UsageError: names the settings that differ.
    """
    views = found.config.get("views", 0)
    config = dict(wanted.config)
    if views <= config["views"]:
        config["views"] = views
    same_parents = replace(wanted, config=config, parents=found.parents)
    artifacts.require_same("render", found, same_parents, out)


def _todo(parts: artifacts.Parts, plan: Plan) -> list[int]:
    """Return the numbers of the parts that do not hold what they should.

    Raises:
        UsageError: the folder holds other captions, or more.
    """
    beyond = parts.path(plan.parts).name
    if any(p.name >= beyond for p in parts.present()):
        raise UsageError(
            f"{parts.folder} holds pictures of more captions than there are now",
            do="continue with the captions file it began with, or add --overwrite",
        )
    todo = [i for i in range(plan.parts) if not _holds(parts.path(i), plan.mark(i))]
    for index in todo:
        if parts.path(index).exists():
            Part(plan, index).require_own_captions(parts.path(index))
    return todo


def _holds(path: Path, mark: str) -> bool:
    if not path.exists():
        return False
    facts = artifacts.open_parquet(path, "images")[1].facts or {}
    return facts.get("mark") == mark


def _finish(
    parts: artifacts.Parts,
    part: Part,
    batches: list[Future[Any]],
    painter: painting.Painter,
    meter: console.Meter,
) -> None:
    """Wait for a part's pictures, have the rejected ones painted again, and write the part."""
    advanced = False
    while True:
        painted = [record for batch in batches for record in batch.result()]
        if not advanced:
            meter.advance(len(painted))
            advanced = True
        again = part.settle(painted)
        if not again:
            break
        batches = painter.submit(again)
    artifacts.write_parquet(
        parts.path(part.index),
        "images",
        replace(parts.header, facts=part.facts()),
        [part.table()],
        rows_per_group=CAPTIONS_PER_GROUP * part.plan.config.views,
    )
