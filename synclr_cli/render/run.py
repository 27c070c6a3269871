"""`synclr render`: captions -> pictures, several of each, in Parquet.

    captions/1 -> parts of `captions_per_part` captions -> batches -> engine -> gate -> encoded
    rows -> part-00000.parquet ... -> manifest.json (and rejected.jsonl)

A picture depends on (render.seed, caption_id, view) and the engine, never on batches, processes,
shards or where the last run stopped. A part is the unit of resuming and of batching. While the
engine generates, the images before are encoded by other threads, and the part before is written by
another; an engine that says it is `parallel` runs in processes instead. Of the captions only
those of a few parts are in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from synclr_cli import config as configs, console
from synclr_cli.config import RenderConfig
from synclr_cli.data import artifacts, images_manifest as shards, storage
from synclr_cli.data.artifacts import MANIFEST
from synclr_cli.engines import ImageEngine
from synclr_cli.errors import UsageError
from synclr_cli.render import generate
from synclr_cli.render.captions_reader import CaptionsReader
from synclr_cli.render.part import LARGEST_CLASS, Part, Plan
from synclr_cli.render.writing import Writer

PARTS_IN_FLIGHT = 2  # parts being generated, encoded or written at the same time


def run(
    config: RenderConfig,
    captions: Path,
    out: Path,
    *,
    overwrite: bool = False,
) -> Path:
    """Generate images of all captions of a captions/1 file into the folder `out`, and return it.

    A folder that was finished with fewer views or captions is continued: what it has is kept.
    Of N jobs that share the folder each generates every N-th part (`config.shard`); whichever ends
    last writes the manifest.

    Raises:
        DataError: no captions/1 file, an empty one, or caption ids that repeat.
        UsageError: `out` was made with other settings, or cannot be written.
        EngineError: the engine is not there or gave up; the disk is full.
    """
    # --- open
    source = CaptionsReader(captions, LARGEST_CLASS)
    plan = Plan(source, config)
    header = artifacts.Header(
        schema="images",
        config=configs.recipe(config),
        engine=config.engine.name,
        seed=config.seed,
        parents=(source.parent,),
    )
    parts = artifacts.Parts(out, "images", header)
    if overwrite and config.shard != "1/1":
        raise UsageError(
            f"--overwrite with --shard {config.shard} would remove what the other jobs made",
            do="remove the folder before the first job starts",
        )
    if not overwrite and _is_finished(parts):
        return out
    with shards.one_at_a_time(out, config.shard):
        return _make(parts, plan, captions.name, overwrite=overwrite)


def _make(parts: artifacts.Parts, plan: Plan, captions: str, *, overwrite: bool) -> Path:
    """Make what is not there of this job's parts, and the manifest when all are."""
    config, out, header = plan.config, parts.folder, parts.header
    if overwrite:
        shards.require_clearable(parts)
    # Before anything is cleared: a model may not be there.
    models = generate.load(config) if overwrite else None
    if overwrite:
        shards.clear(parts)
    found = _found_header(out)
    if found:
        _require_continuable(found, header, out)
        parts.header = replace(header, revision=found.revision)
    _require_no_more(parts, plan)
    number, _, jobs = config.shard.partition("/")
    mine = list(_lacking(parts, plan, range(int(number) - 1, plan.parts, int(jobs))))

    # --- build, loop
    if mine and models is None:
        models = generate.load(config)
    storage.make_folder(out)
    if models and mine:
        engine, score = models
        if found and found.revision != engine.revision:
            console.warn(
                f"{out} was begun with {found.revision}; what is generated now is by "
                f"{engine.revision}"
            )
        parts.header = replace(header, revision=engine.revision)
        (out / MANIFEST).unlink(missing_ok=True)  # not whole until it is written again
        _generate(parts, plan, mine, engine, score)

    # --- write
    if next(_lacking(parts, plan, range(plan.parts)), None) is not None:
        console.note(f"{out} is not whole yet: other parts of it are for the other jobs")
        return out
    try:
        shards.write(
            parts,
            plan.parts,
            captions=captions,
            views=config.views,
            classes=plan.classes,
        )
    except FileNotFoundError:  # another job wrote it at the same moment
        if not (out / MANIFEST).is_file():
            raise
    return out


def _generate(
    parts: artifacts.Parts,
    plan: Plan,
    mine: list[int],
    engine: ImageEngine,
    score: generate.Score | None,
) -> None:
    """Generate and write these parts, each one's views that are not there yet."""
    config = plan.config
    total = plan.captions.count * config.views
    left = min(len(mine) * config.captions_per_part * config.views, total)
    with (
        generate.image_generator(engine, config, left, score) as generator,
        Writer(parts) as writer,
        console.progress("render", total, done=total - left, unit="pictures") as meter,
    ):
        in_flight: deque[tuple[Part, list[Future[Any]]]] = deque()
        for index in mine:
            part = Part(plan, index)
            if parts.path(index).exists():
                meter.advance(part.keep(parts.path(index)))
            in_flight.append((part, generator.submit(part.missing(), meter.advance)))
            if len(in_flight) == PARTS_IN_FLIGHT:
                writer.write(_settled(*in_flight.popleft(), generator))
        while in_flight:
            writer.write(_settled(*in_flight.popleft(), generator))
    for warning in engine.warnings():
        console.warn(warning)


def _found_header(out: Path) -> artifacts.Header | None:
    """Return the header of what an earlier run left in `out`, finished or not."""
    if (out / MANIFEST).is_file():
        return artifacts.read_manifest(out)[1]
    first = min(out.glob("part-*.parquet"), default=None, key=lambda p: p.name)
    return artifacts.open_parquet(first, "images")[1] if first else None


def _is_finished(parts: artifacts.Parts) -> bool:
    """Return whether a folder holds just what is asked for, whole."""
    if not shards.is_whole(parts):
        return False
    found, wanted = artifacts.read_manifest(parts.folder)[1], parts.header
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


def _require_no_more(parts: artifacts.Parts, plan: Plan) -> None:
    """Refuse a folder that holds parts beyond the last.

    Raises:
        UsageError: it was made of more captions.
    """
    if any(int(p.name[5:].partition(".")[0]) >= plan.parts for p in parts.present()):
        raise UsageError(
            f"{parts.folder} holds pictures of more captions than there are now",
            do="continue with the captions file it began with, or add --overwrite",
        )


def _lacking(parts: artifacts.Parts, plan: Plan, indices: Iterable[int]) -> Iterator[int]:
    """Yield the numbers of the parts that do not hold what they should.

    Raises:
        UsageError: a part holds pictures of other captions.
    """
    there = {p.name for p in parts.present()}
    for index in indices:
        path = parts.path(index)
        if path.name not in there:
            yield index
            continue
        facts = artifacts.open_parquet(path, "images")[1].facts or {}
        if facts.get("mark") != plan.mark(plan.captions_of(index)):
            Part(plan, index).require_own_captions(path)
            yield index


def _settled(part: Part, batches: list[Future[Any]], generator: generate.ImageGenerator) -> Part:
    """Wait for a part's images, have the rejected ones generated again, and return the part."""
    while again := part.settle([record for batch in batches for record in batch.result()]):
        batches = generator.submit(again)
    return part
