"""The parts of images/, made one after the other by one engine, here or on another machine.

    part number --its captions--> rows --engine, gate--> records --> _rejected/, then the part

While the engine generates, the images before are encoded by other threads, and the part before is
written by another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from synclr_cli import console
from synclr_cli.data import image_facts
from synclr_cli.data.manifest import PartFacts
from synclr_cli.data.shards import ShardedDataset
from synclr_cli.engines import ImageEngine
from synclr_cli.render import generate
from synclr_cli.render.part import Part, Plan

CAPTIONS_PER_GROUP = 16  # a row group is what a reader fetches at once; no caption is split
PARTS_IN_FLIGHT = 2  # parts being generated and encoded at the same time
PARTS_WAITING = 2  # parts to be written; the engine waits for the disk if there are more


@dataclass
class ImageParts:
    """A worker of `executors`: makes parts, of each the views that are not there yet."""

    dataset: ShardedDataset
    plan: Plan
    engine: ImageEngine | None = None
    score: generate.Score | None = None
    cores: int | None = None

    def __post_init__(self) -> None:
        self._begun_with = self.dataset.header.revision

    def __getstate__(self) -> dict[str, Any]:
        """Leave the models here: each worker loads its own."""
        return self.__dict__ | {"engine": None, "score": None}

    def open(self, cores: int | None = None) -> None:
        """Load the engine; see `executors.PartWorker`."""
        self.cores = cores
        if self.engine is None:
            self.engine, self.score = generate.load(self.plan.config)
        self.dataset.header = replace(self.dataset.header, revision=self.engine.revision)

    def make(
        self, parts: Sequence[int], advance: Callable[[int], None]
    ) -> Iterator[dict[str, Any]]:
        """Make parts; yield the engine's revision and what `take` takes in."""
        assert self.engine is not None
        config = self.plan.config
        images = len(parts) * config.captions_per_part * config.views
        with (
            generate.image_generator(
                self.engine, config, images, self.score, cores=self.cores
            ) as generator,
            _writer(self.dataset) as writer,
        ):
            in_flight: deque[tuple[Part, list[Future[Any]]]] = deque()
            for index in parts:
                part = Part(self.plan, index)
                self.dataset.look_up(index)
                if self.dataset.facts(index) is not None:
                    rejected = image_facts.rejected_views(self.dataset.work, index)
                    advance(part.keep(self.dataset.path(index), rejected))
                in_flight.append((part, generator.submit(part.missing(), advance)))
                if len(in_flight) == PARTS_IN_FLIGHT:
                    writer.write(_settled(*in_flight.popleft(), generator))
                    yield from self._told(writer.written())
            while in_flight:
                writer.write(_settled(*in_flight.popleft(), generator))
            yield from self._told(writer.wait())

    def _told(self, written: Iterator[PartFacts]) -> Iterator[dict[str, Any]]:
        assert self.engine is not None
        return ({"revision": self.engine.revision, "part": asdict(p)} for p in written)

    def take(self, facts: Mapping[str, Any]) -> None:
        """Take in what `make` yielded; warn once if another revision began the folder."""
        revision = facts["revision"]
        if self._begun_with not in ("", revision):
            console.warn(
                f"{self.dataset.folder} was begun with {self._begun_with}; what is generated now is"
                f" by {revision}"
            )
            self._begun_with = ""
        self.dataset.add(PartFacts(**facts["part"]))
        self.dataset.header = replace(self.dataset.header, revision=revision)

    def warnings(self) -> list[str]:
        """Return what the engine warns of."""
        return self.engine.warnings() if self.engine else []


def _settled(part: Part, batches: list[Future[Any]], generator: generate.ImageGenerator) -> Part:
    """Wait for a part's images, have the rejected ones generated again, and return the part."""
    while again := part.settle([record for batch in batches for record in batch.result()]):
        batches = generator.submit(again)
    return part


class _Writer:
    """Writes parts in a thread, in the order they come; an error shows at the next call."""

    def __init__(self, dataset: ShardedDataset, pool: ThreadPoolExecutor):
        self._dataset, self._pool = dataset, pool
        self._waiting: deque[Future[PartFacts]] = deque()

    def write(self, part: Part) -> None:
        """Hand in a part whose views are settled."""
        self._waiting.append(self._pool.submit(self._write, part))

    def written(self) -> Iterator[PartFacts]:
        """Yield the parts that were written since; wait if too many are not."""
        while self._waiting and (self._waiting[0].done() or len(self._waiting) > PARTS_WAITING):
            yield self._waiting.popleft().result()

    def wait(self) -> Iterator[PartFacts]:
        """Wait until all is written, and yield it."""
        while self._waiting:
            yield self._waiting.popleft().result()

    def _write(self, part: Part) -> PartFacts:
        views, captions = part.rejected(), part.set_aside()
        image_facts.write_rejected(self._dataset.work, part.index, views, captions)
        table = part.table()
        return self._dataset.write(
            part.index,
            table,
            rows_per_group=CAPTIONS_PER_GROUP * part.plan.config.views,
            facts={**part.marks(), **image_facts.of_part(table, views, captions)},
        )


@contextmanager
def _writer(dataset: ShardedDataset) -> Iterator[_Writer]:
    """Give a writer; with the block's end all is written, what is settled also after Ctrl-C."""
    with ThreadPoolExecutor(1, "writer") as pool:
        yield _Writer(dataset, pool)
