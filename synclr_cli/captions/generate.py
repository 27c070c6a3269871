"""Generate the captions of a part: sample, check, sample again what was refused, lose nothing.

    rows --prompts--> engine --gate--> captions | rejects --next seed--> engine ...

A row that no draw satisfies is written by the rule engine, and its `engine` says so.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from synclr_cli import engines
from synclr_cli.captions import quality
from synclr_cli.captions.duplicates import Neighbours
from synclr_cli.captions.sampler import Rows, RowSampler, noise_seeds
from synclr_cli.config import CaptionEngineConfig, CaptionsConfig
from synclr_cli.engines import CaptionEngine, Prompt
from synclr_cli.safe_text import redact

FALLBACK = "template:"
BLOCK = 16_384  # rows of a part among which a caption must be new


@dataclass
class Rejects:
    """What the gate refused: columns of equal length."""

    rows: list[int] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)


def generate(
    rows: Rows,
    sampler: RowSampler,
    engine: CaptionEngine,
    config: CaptionsConfig,
    advance: Callable[[int], None],
) -> tuple[pa.Table, pa.Table]:
    """Return the captions of N rows and what was refused on the way, as tables of their schemas."""
    with _no_search_for_cycles():
        prompts = prompts_of(rows, sampler)
        shown = _shown(rows, sampler)
    count = len(prompts)
    captions, writers = [""] * count, [redact(config.engine.name)] * count
    seeds = np.zeros(count, dtype=np.int64)  # [N]
    rejects = Rejects()
    blocks: list[Neighbours] = []
    pending = np.arange(count)
    for attempt in range(config.attempts):
        tried = noise_seeds(config.seed, rows.ids[pending], attempt)
        seeds[pending] = tried
        texts = _complete(
            engine, prompts, pending, tried, config, advance if attempt == 0 else None
        )
        with _no_search_for_cycles():
            if config.quality_gate:
                words = list(map(quality.words_of, texts))
                if attempt == 0:
                    firsts = [words[s : s + BLOCK] for s in range(0, count, BLOCK)]
                    blocks = [Neighbours(first, config.max_similarity) for first in firsts]
                reasons = _reasons(texts, words, pending, prompts, shown, blocks)
            else:  # the released behaviour, except that no caption is empty
                reasons = ["" if caption else quality.EMPTY for caption in texts]
        for i, caption, why, seed in zip(
            pending.tolist(), texts, reasons, tried.tolist(), strict=True
        ):
            if why:
                rejects.rows.append(i)
                rejects.attempts.append(attempt)
                rejects.reasons.append(why)
                rejects.captions.append(caption)
                rejects.seeds.append(seed)
            else:
                captions[i] = caption
        pending = np.array(
            [i for i, why in zip(pending.tolist(), reasons, strict=True) if why], dtype=np.int64
        )
        if not len(pending):
            break
    if len(pending):
        rule = engines.load("caption", CaptionEngineConfig(name=FALLBACK))
        seeds[pending] = noise_seeds(config.seed, rows.ids[pending], config.attempts)
        written = rule.generate([prompts[i] for i in pending], seeds[pending].tolist())
        for i, caption in zip(pending.tolist(), written, strict=True):
            captions[i], writers[i] = caption, FALLBACK
    return (
        _captions_table(rows, sampler, captions, writers, seeds),
        _rejects_table(rows, sampler, rejects),
    )


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Let Python not look for cycles among the small objects of many rows.

    There are none, they live for a moment, and looking took half of the time of a fast engine.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def prompts_of(rows: Rows, sampler: RowSampler) -> list[Prompt]:
    """Return the prompt of each drawn row."""
    pool, bank = sampler.pool, sampler.bank
    names, kinds, glosses = pool.names, pool.kinds, pool.glosses
    return [
        Prompt(bank.prompt(name, shown, names[c], companion), names[c], kinds[c], template,
               companion, glosses[c])
        for c, template, companion, name, shown in zip(
            rows.concepts.tolist(), rows.templates, rows.companions, rows.banks,
            map(tuple, rows.examples.tolist()), strict=True,
        )
    ]  # fmt: skip


def _complete(
    engine: CaptionEngine,
    prompts: list[Prompt],
    pending: np.ndarray,
    seeds: np.ndarray,
    config: CaptionsConfig,
    advance: Callable[[int], None] | None,
) -> list[str]:
    texts: list[str] = []
    # A chunk is what the engine sees at once: whole blocks, so that prefixes are shared, and some
    # batches, so that rows that end are followed by others most of the time.
    chunk = 4 * max(config.engine.batch_size or engine.batch_size, config.examples_block)
    for start in range(0, len(pending), chunk):
        here = pending[start : start + chunk]
        completions = engine.generate(
            [prompts[i] for i in here], seeds[start : start + chunk].tolist()
        )
        texts += map(quality.tidy, completions)
        if advance:
            advance(len(here))
    return texts


def _reasons(
    texts: list[str],
    words: list[list[str]],
    pending: np.ndarray,
    prompts: list[Prompt],
    shown: list[tuple[str, ...]],
    blocks: list[Neighbours],
) -> list[str]:
    reasons = [
        quality.reason(caption, prompts[i].concept, shown[i], caption_words)
        for i, caption, caption_words in zip(pending.tolist(), texts, words, strict=True)
    ]
    for number, block in enumerate(blocks):
        places = np.flatnonzero(pending // BLOCK == number).tolist()
        alike = block.alike([words[p] for p in places], (pending[places] % BLOCK).tolist())
        for place, why in zip(places, alike, strict=True):
            reasons[place] = reasons[place] or why
    return reasons


def _shown(rows: Rows, sampler: RowSampler) -> list[tuple[str, ...]]:
    """Return the captions of each row's demonstrations; neighbours share them."""
    captions = sampler.bank.captions
    by_examples: dict[tuple[int, ...], tuple[str, ...]] = {}
    shown = []
    for examples in map(tuple, rows.examples.tolist()):
        if examples not in by_examples:
            by_examples[examples] = tuple(captions[e] for e in examples)
        shown.append(by_examples[examples])
    return shown


def _captions_table(
    rows: Rows, sampler: RowSampler, captions: list[str], writers: list[str], seeds: np.ndarray
) -> pa.Table:
    pool, concepts = sampler.pool, rows.concepts.tolist()
    count, shown = rows.examples.shape
    return pa.table(
        {
            "caption_id": rows.ids,
            "caption": captions,
            "concept": [pool.names[c] for c in concepts],
            "source": [pool.sources[c] for c in concepts],
            "template": rows.templates,
            "companion": rows.companions,
            "engine": writers,
            "seed": seeds,
            "examples": pa.ListArray.from_arrays(
                np.arange(count + 1, dtype=np.int32) * shown, rows.examples.reshape(-1)
            ),
            "weight": np.ones(count, dtype=np.float32),
        }
    )


def _rejects_table(rows: Rows, sampler: RowSampler, rejects: Rejects) -> pa.Table:
    pool = sampler.pool
    return pa.table(
        {
            "caption_id": pa.array([int(rows.ids[i]) for i in rejects.rows], pa.int64()),
            "attempt": pa.array(rejects.attempts, pa.int32()),
            "reason": pa.array(rejects.reasons, pa.string()),
            "caption": pa.array(rejects.captions, pa.string()),
            "concept": pa.array([pool.names[rows.concepts[i]] for i in rejects.rows], pa.string()),
            "template": pa.array([rows.templates[i] for i in rejects.rows], pa.string()),
            "companion": pa.array([rows.companions[i] for i in rejects.rows], pa.string()),
            "seed": pa.array(rejects.seeds, pa.int64()),
        }
    )
