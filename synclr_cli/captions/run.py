"""`synclr captions`: words -> captions.

    concepts --sample--> prompts --engine--> completions --gate--> captions/part-00000.parquet ...

Row = f(seed, caption_id): its concept, template, companion, demonstrations and sampling noise are
functions of its own id, so neither the number of captions nor shards, batches or interruptions
change it, and the first 1,000 of 100,000 captions are the same 1,000. Beside the parts lies what
the gate refused (`_rejected/`, parts as well) and, if the model was asked for backgrounds, its
lists (`_backgrounds.parquet`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from synclr_cli import config as configs, console, executors
from synclr_cli.captions import backgrounds, concepts, prompts
from synclr_cli.captions.parts import CaptionParts, count_parts, part_ids
from synclr_cli.captions.sampler import RowSampler
from synclr_cli.config import CaptionsConfig
from synclr_cli.data import manifest, storage
from synclr_cli.data.artifacts import Header, parent
from synclr_cli.data.shards import ShardedDataset, shard_numbers
from synclr_cli.errors import UsageError

REJECTED = "_rejected"  # folder of what the gate refused, in that of the captions
COVERAGE = "_coverage.png"  # what `synclr inspect` draws there
_IDS_AT_ONCE = 1 << 20  # whose concepts are looked up together


def run(config: CaptionsConfig, out: Path, *, overwrite: bool = False) -> Path:
    """Write the captions of ids 0 to `config.count` to the folder `out`, and return it.

    Of N jobs that share the folder each writes every N-th part (`config.shard`); whichever ends
    last writes the manifest. A finished folder of fewer captions is continued.

    Raises:
        UsageError: unknown source or engine; `out` was made with other settings or holds more.
        DataError: a concept or demonstration file is not usable, or a part is damaged.
        EngineError: the engine, a package or the disk is not there or gave up.
    """
    # --- open
    _require_folder(out)
    pool = concepts.read(config.concepts, config.concept_cap)
    bank = prompts.read(config.examples_file)
    bank.require(config.examples)
    captions = ShardedDataset(
        out,
        "captions",
        _header(config, pool),
        varying=("count",),
        sidecars=(REJECTED, backgrounds.FILE, COVERAGE),
    )
    if not overwrite:
        if captions.state() == "finished" == _rejects(captions).state():
            return out
        _require_no_more(captions, config)
    with captions.claim(overwrite=overwrite, shard=config.shard):
        whole = _write_parts(captions, config, pool, bank)
        # --- write
        if not whole or not captions.finish(count_parts(config)):
            console.note(f"{out} is not whole yet: other parts of it are for the other jobs")
    return out


def _write_parts(
    captions: ShardedDataset, config: CaptionsConfig, pool: concepts.Pool, bank: prompts.Bank
) -> bool:
    """Write this shard's parts and what goes with them; return whether all parts are there."""
    total = count_parts(config)
    rejects = _rejects(captions)
    with rejects.claim(shard=config.shard):
        todo = _lacking(captions, rejects, config)
        for line in pool.notes:
            console.note(line)

        # --- build, loop
        parts = CaptionParts(captions, rejects, config, pool, bank)
        if todo:
            if config.backgrounds == "model":
                parts.backgrounds = _list_backgrounds(parts)
            waiting = sum(len(part_ids(i, config)) for i in todo)
            with console.progress("captions", waiting, unit="captions") as meter:
                executors.run(
                    todo, parts, config.executor, meter, written=parts.take, places=[captions.work]
                )
        facts = captions.complete(total)
        if facts is None or any(_is_short(part, i, config) for i, part in enumerate(facts)):
            return False
        if not rejects.finish(total):
            return False
        if config.backgrounds == "model":
            _keep_backgrounds(captions, parts.sampler(), config)
    return True


def _lacking(
    captions: ShardedDataset, rejects: ShardedDataset, config: CaptionsConfig
) -> list[int]:
    """Return the numbers of this shard's parts to make."""
    missing = {*captions.missing(count_parts(config), config.shard)}
    missing |= {*rejects.missing(count_parts(config), config.shard)}
    for index in shard_numbers(count_parts(config), config.shard):
        part = captions.facts(index)
        if part is not None and _is_short(part, index, config):
            missing.add(index)
    return sorted(missing)


def _is_short(part: manifest.PartFacts, index: int, config: CaptionsConfig) -> bool:
    """Return whether a part was the last of a smaller count."""
    return part.rows != len(part_ids(index, config))


# --------------------------------------------------------------------- backgrounds of the model


def _list_backgrounds(parts: CaptionParts) -> Mapping[str, tuple[str, ...]]:
    """Have the model list what this shard's captions need and nobody listed yet; return lists.

    It is done by this process, wherever the parts are made: lists are few beside captions.
    """
    captions, config = parts.captions, parts.config
    parts.open()
    assert parts.engine is not None
    captions.begin()
    blocks = (part_ids(i, config) for i in shard_numbers(count_parts(config), config.shard))
    lists = backgrounds.known_lists(captions.work, captions.scratch)
    new = [name for name in _needed(parts.sampler(), blocks) if name not in lists]
    header = _of_schema(captions.header, "backgrounds")
    backgrounds.write_lists(captions.scratch, header, parts.engine, new, config.seed)
    return backgrounds.long_enough(backgrounds.known_lists(captions.work, captions.scratch))


def _keep_backgrounds(
    captions: ShardedDataset, sampler: RowSampler, config: CaptionsConfig
) -> None:
    """Write the lists that the captions need, of all jobs, as one file."""
    lists = backgrounds.known_lists(captions.work, captions.scratch)
    starts = range(0, config.count, _IDS_AT_ONCE)
    blocks = (np.arange(s, min(s + _IDS_AT_ONCE, config.count)) for s in starts)
    needed = {name: lists[name] for name in _needed(sampler, blocks)}
    header = _of_schema(captions.header, "backgrounds")
    backgrounds.write(captions.work / backgrounds.FILE, header, needed)


def _needed(sampler: RowSampler, blocks: Iterator[np.ndarray]) -> Sequence[str]:
    """Return the concepts for which captions of these ids need a list, in alphabetical order."""
    numbers = {number for ids in blocks for number in sampler.needing_backgrounds(ids)}
    return sorted({sampler.pool.names[n] for n in numbers})


# ------------------------------------------------------------------------- settings and refusals


def _header(config: CaptionsConfig, pool: concepts.Pool) -> Header:
    return Header(
        "captions",
        configs.recipe(config),
        engine=config.engine.name,
        seed=config.seed,
        parents=tuple(parent(path, None, digest) for path, digest in pool.files),
        facts={"concepts": len(pool)},
    )


def _rejects(captions: ShardedDataset) -> ShardedDataset:
    """Return the folder of what the gate refused, where the captions are being made."""
    header = _of_schema(captions.header, "rejects")
    return ShardedDataset(captions.work / REJECTED, "rejects", header, varying=("count",))


def _of_schema(header: Header, schema: str) -> Header:
    """Return the header of what lies beside the captions."""
    return replace(header, schema=schema, version=0)


def _require_folder(out: Path) -> None:
    """Refuse a file, and the name of one.

    Raises:
        UsageError: `out` is one.
    """
    if out.suffix in (".parquet", ".csv", ".tsv", ".txt") or (
        storage.is_local(out) and out.is_file()
    ):
        raise UsageError(
            f"--out {out}", got="a file", expected="a folder, which captions are",
            do=f"try --out {out.with_suffix('')}" if out.suffix else "choose another --out",
        )  # fmt: skip


def _require_no_more(captions: ShardedDataset, config: CaptionsConfig) -> None:
    """Refuse a finished folder of the same settings that holds more captions.

    Raises:
        UsageError: it does.
    """
    header = captions.require_same()
    if header is None or not (captions.folder / manifest.MANIFEST).is_file():
        return
    count = int(header.config["count"])
    if count > config.count:
        raise UsageError(
            f"{captions.folder} holds more captions",
            got=f"-n {config.count}",
            expected=f"at least {count}",
            do="take its first rows, which are those of a smaller set, or choose another --out",
        )
