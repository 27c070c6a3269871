"""`synclr render`: captions -> images, several of each, in Parquet.

    captions -> parts of `captions_per_part` captions -> batches -> engine -> gate -> encoded
    rows -> part-00000.parquet ... (and _rejected/) -> _manifest.json

An image depends on (render.seed, caption_id, view) and the engine, never on batches, processes,
shards or where the last run stopped. A part is the unit of resuming and of batching. While the
engine generates, the images before are encoded by other threads, and the part before is written by
another; an engine that says it is `parallel` runs in processes instead. Of the captions only those
of a few parts are in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from synclr_cli import config as configs, console
from synclr_cli.config import RenderConfig
from synclr_cli.data import artifacts, image_facts
from synclr_cli.data.shards import ShardedDataset
from synclr_cli.engines import ImageEngine
from synclr_cli.render import generate
from synclr_cli.render.captions_reader import CaptionsReader
from synclr_cli.render.part import LARGEST_CLASS, Part, Plan

CAPTIONS_PER_GROUP = 16  # a row group is what a reader fetches at once; no caption is split
PARTS_IN_FLIGHT = 2  # parts being generated and encoded at the same time
PARTS_WAITING = 2  # parts to be written; the engine waits for the disk if there are more


def run(config: RenderConfig, captions: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Generate images of all captions into the images/2 folder `out`, and return it.

    A folder that was finished with fewer views or captions is continued: what it has is kept.
    Of N jobs that share the folder each generates every N-th part (`config.shard`); whichever ends
    last writes the manifest.

    Args:
        captions: a captions/2 folder, or anybody's file of captions (`captions_files`).

    Raises:
        DataError: no captions, or some that cannot be rendered.
        UsageError: `out` was made with other settings, or cannot be written.
        EngineError: the engine is not there or gave up; the disk is full.
    """
    # --- open
    reader = CaptionsReader(captions, LARGEST_CLASS)
    plan = Plan(reader, config)
    header = artifacts.Header(
        schema="images",
        config=configs.recipe(config),
        engine=config.engine.name,
        seed=config.seed,
        parents=(reader.parent,),
    )
    dataset = ShardedDataset(
        out,
        "images",
        header,
        varying=("views",),
        sidecars=(image_facts.REJECTED,),
        require_continuable=_require_continuable,
    )
    if not overwrite and dataset.state() == "finished":
        return out

    with dataset.claim(overwrite=overwrite, shard=config.shard):
        # --- build, loop
        todo = plan.todo(dataset)
        if todo:
            engine, score = generate.load(config)
            begun_with = dataset.header.revision
            if begun_with not in ("", engine.revision):
                console.warn(
                    f"{out} was begun with {begun_with}; what is generated now is by"
                    f" {engine.revision}"
                )
            dataset.header = replace(dataset.header, revision=engine.revision)
            _generate(dataset, plan, todo, engine, score)

        # --- write
        if not dataset.finish(plan.parts, partial(plan.facts, source=captions.name)):
            console.note(f"{out} is not whole yet: other parts of it are for the other jobs")
    return out


def _generate(
    dataset: ShardedDataset,
    plan: Plan,
    todo: Sequence[int],
    engine: ImageEngine,
    score: generate.Score | None,
) -> None:
    """Generate and write these parts, of each the views that are not there yet."""
    config = plan.config
    total = plan.captions.count * config.views
    left = min(len(todo) * config.captions_per_part * config.views, total)
    with (
        generate.image_generator(engine, config, left, score) as generator,
        _writer(dataset) as writer,
        console.progress("render", total, done=total - left, unit="images") as meter,
    ):
        in_flight: deque[tuple[Part, list[Future[Any]]]] = deque()
        for index in todo:
            part = Part(plan, index)
            if dataset.facts(index) is not None:
                rejected = image_facts.rejected_views(dataset.work, index)
                meter.advance(part.keep(dataset.path(index), rejected))
            in_flight.append((part, generator.submit(part.missing(), meter.advance)))
            if len(in_flight) == PARTS_IN_FLIGHT:
                writer.write(_settled(*in_flight.popleft(), generator))
        while in_flight:
            writer.write(_settled(*in_flight.popleft(), generator))
    for warning in engine.warnings():
        console.warn(warning)


def _settled(part: Part, batches: list[Future[Any]], generator: generate.ImageGenerator) -> Part:
    """Wait for a part's images, have the rejected ones generated again, and return the part."""
    while again := part.settle([record for batch in batches for record in batch.result()]):
        batches = generator.submit(again)
    return part


class _Writer:
    """Writes parts in a thread, in the order they come; an error shows at the next `write`."""

    def __init__(self, dataset: ShardedDataset, pool: ThreadPoolExecutor):
        self._dataset, self._pool = dataset, pool
        self._waiting: deque[Future[None]] = deque()

    def write(self, part: Part) -> None:
        """Hand in a part whose views are settled."""
        while self._waiting and (self._waiting[0].done() or len(self._waiting) >= PARTS_WAITING):
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._write, part))

    def wait(self) -> None:
        """Wait until all is written."""
        while self._waiting:
            self._waiting.popleft().result()

    def _write(self, part: Part) -> None:
        views, captions = part.rejected(), part.set_aside()
        image_facts.write_rejected(self._dataset.work, part.index, views, captions)
        table = part.table()
        self._dataset.write(
            part.index,
            table,
            rows_per_group=CAPTIONS_PER_GROUP * part.plan.config.views,
            facts={**part.marks(), **image_facts.of_part(table, views, captions)},
        )


@contextmanager
def _writer(dataset: ShardedDataset) -> Iterator[_Writer]:
    """Give a writer; with the block's end all is written, what is settled also after Ctrl-C."""
    with ThreadPoolExecutor(1, "writer") as pool:
        writer = _Writer(dataset, pool)
        yield writer
        writer.wait()


def _require_continuable(begun: artifacts.Header, header: artifacts.Header, folder: Path) -> None:
    """Refuse to continue what other settings began; more views and more captions are welcome.

    Raises:
        UsageError: names the settings that differ.
    """
    views = begun.config.get("views", 0)
    config = dict(header.config)
    if views <= config["views"]:
        config["views"] = views
    same_parents = replace(header, config=config, parents=begun.parents)
    artifacts.require_same("render", begun, same_parents, folder)
