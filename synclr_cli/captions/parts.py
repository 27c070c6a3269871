"""The parts of captions/, made one after the other by one engine, here or on another machine.

part number --its ids--> rows --prompts, engine, gate--> _rejected/part, then part
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from synclr_cli import engines
from synclr_cli.captions import concepts, prompts
from synclr_cli.captions.generate import generate
from synclr_cli.captions.sampler import RowSampler
from synclr_cli.config import CaptionsConfig
from synclr_cli.data.manifest import PartFacts
from synclr_cli.data.shards import ShardedDataset
from synclr_cli.engines import CaptionEngine

ROWS_PER_GROUP = 65536


@dataclass
class CaptionParts:
    """A worker of `executors`: makes parts, and what the gate refused of them."""

    captions: ShardedDataset
    rejects: ShardedDataset
    config: CaptionsConfig
    pool: concepts.Pool
    bank: prompts.Bank
    backgrounds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # that a model listed
    engine: CaptionEngine | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the engine here: each worker loads its own."""
        return self.__dict__ | {"engine": None}

    def open(self, cores: int | None = None) -> None:
        """Load the engine; see `executors.PartWorker`."""
        del cores  # torch was told how many
        if self.engine is None:
            self.engine = engines.load("caption", self.config.engine)
        for dataset in (self.captions, self.rejects):
            dataset.header = replace(dataset.header, revision=self.engine.revision)

    def make(
        self, parts: Sequence[int], advance: Callable[[int], None]
    ) -> Iterator[dict[str, Any]]:
        """Make parts; yield the engine's revision and what `take` takes in."""
        assert self.engine is not None
        sampler = self.sampler()
        for index in parts:
            for dataset in (self.captions, self.rejects):
                dataset.look_up(index)
            rows = sampler.rows(part_ids(index, self.config))
            accepted, refused = generate(rows, sampler, self.engine, self.config, advance)
            # A part's rejects come first: the captions say that it is done.
            rejects = self.rejects.write(index, refused, rows_per_group=ROWS_PER_GROUP)
            captions = self.captions.write(index, accepted, rows_per_group=ROWS_PER_GROUP)
            yield {
                "revision": self.engine.revision,
                "rejects": asdict(rejects),
                "captions": asdict(captions),
            }

    def take(self, facts: Mapping[str, Any]) -> None:
        """Take in what `make` yielded elsewhere."""
        for dataset, name in ((self.captions, "captions"), (self.rejects, "rejects")):
            dataset.add(PartFacts(**facts[name]))
            dataset.header = replace(dataset.header, revision=facts["revision"])

    def warnings(self) -> list[str]:
        """Return what the engine warns of."""
        return self.engine.warnings() if self.engine else []

    def sampler(self) -> RowSampler:
        """Return what draws the rows."""
        config = self.config
        return RowSampler(
            self.pool,
            self.bank,
            seed=config.seed,
            shares=(config.share_c, config.share_c_bg, config.share_c_rel),
            demonstrations=config.examples,
            block=config.examples_block,
            listed=self.backgrounds,
        )


def count_parts(config: CaptionsConfig) -> int:
    """Return how many parts the captions have."""
    return -(-config.count // config.captions_per_part)


def part_ids(index: int, config: CaptionsConfig) -> np.ndarray:
    """Return the caption ids of a part."""
    start = index * config.captions_per_part
    return np.arange(start, min(start + config.captions_per_part, config.count))
