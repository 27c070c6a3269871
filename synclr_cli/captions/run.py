"""`synclr captions`: words -> captions.

    concepts --draw--> prompts --engine--> completions --gate--> captions.parquet

Row = f(seed, caption_id): its concept, template, companion, demonstrations and sampling noise are
drawn from its own id, so neither the number of captions nor shards, batches or interruptions change
it, and the first 1,000 of 100,000 captions are the same 1,000. Beside them lies what the gate
refused (`captions.rejects.parquet`) and, if the model was asked for backgrounds, its lists
(`captions.backgrounds.parquet`). Finished parts lie in `<out>.parts/` until all are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from synclr_cli import config as configs, console, engines
from synclr_cli.captions import concepts, listing, prompts
from synclr_cli.captions.generate import complete
from synclr_cli.captions.pieces import (
    ROWS_PER_GROUP,
    continued,
    grouped,
    ids_of,
    part_numbers,
    rejects_path,
    remove,
    require_place,
)
from synclr_cli.captions.sampler import Drawer
from synclr_cli.config import CaptionsConfig
from synclr_cli.data import artifacts, locks, storage
from synclr_cli.errors import UsageError


def run(config: CaptionsConfig, out: Path, *, overwrite: bool = False) -> Path:
    """Write the captions of ids 0 to `config.count` (of one shard of them) to `out`; return it.

    Raises:
        UsageError: unknown source or engine; `out` was made with other settings or holds more.
        DataError: a concept or demonstration file is not usable.
        EngineError: the engine, a package or the disk is not there or gave up.
    """
    # Open: what is asked, and what of it is there.
    require_place(out, overwrite=overwrite)
    pool = concepts.read(config.concepts, config.concept_cap)
    bank = prompts.read(config.examples_file)
    bank.require(config.examples)
    header = _header(config, pool, "captions")
    if not overwrite and _count_there(out, header, config) == config.count:
        _tidy(out, config.count)
        return out
    with locks.locked(_lock(out)):
        return _make(config, out, pool, bank, header, overwrite=overwrite)


def _make(
    config: CaptionsConfig,
    out: Path,
    pool: concepts.Pool,
    bank: prompts.Bank,
    header: artifacts.Header,
    *,
    overwrite: bool,
) -> Path:
    """Make what is not there of the parts, and of them the file."""
    folder = _folder(out)
    refused, beside = rejects_path(out), listing.path_beside(out)
    # Before anything is removed: the engine may not be there.
    engine = engines.load("caption", config.engine) if overwrite else None
    if overwrite:
        remove(out, refused, folder, beside, listing.parts_folder(beside))
    earlier = _count_there(out, header, config)
    for line in pool.notes:
        console.note(line)

    # Build: the engine, and the parts to make. A part that a smaller count cut short is made again,
    # so that the result is that of one run.
    engine = engine or engines.load("caption", config.engine)
    header = _header(config, pool, "captions", engine.revision)
    parts = artifacts.Parts(folder, "captions", header)
    reject_parts = artifacts.Parts(
        folder / "rejects", "rejects", _header(config, pool, "rejects", engine.revision)
    )
    size = config.captions_per_part
    kept = earlier // size  # parts below are whole in `out`
    mine = part_numbers(config.count, size, config.shard, first=kept)
    todo = _missing(parts, mine, config.count, size)
    drawer = _drawer(config, pool, bank)
    if config.backgrounds == "model":
        wanted = [drawer.needing_backgrounds(ids_of(i, config.count, size)) for i in mine]
        listing.write(
            beside, header, engine, pool, sorted({c for some in wanted for c in some}), config.seed
        )
        drawer = _drawer(config, pool, bank, listing.read(beside))

    # Loop. A part's rejects come first: the captions say that it is done.
    waiting = sum(len(ids_of(i, config.count, size)) for i in todo)
    with console.progress("captions", waiting, unit="captions") as meter:
        for index in todo:
            rows = drawer.rows(ids_of(index, config.count, size))
            captions, rejects = complete(rows, drawer, engine, config, meter.advance)
            reject_parts.write(index, rejects, rows_per_group=ROWS_PER_GROUP)
            parts.write(index, captions, rows_per_group=ROWS_PER_GROUP)

    # Write.
    for path, made in ((refused, reject_parts), (out, parts)):
        tables = grouped(continued(path, kept * size, map(made.path, mine)))
        artifacts.write_parquet(
            path, made.schema, made.header, tables, rows_per_group=ROWS_PER_GROUP
        )
    remove(folder)
    return out


def _tidy(out: Path, count: int) -> None:
    """Remove the parts of a finished file, which a kill at the very end leaves."""
    first = min(_folder(out).glob("part-*.parquet"), default=None, key=lambda part: part.name)
    if first and artifacts.open_parquet(first, "captions")[1].config.get("count") == count:
        with suppress(UsageError), locks.locked(_lock(out)):  # another process tidies
            remove(_folder(out))


def _lock(out: Path) -> Path:
    return out.with_name(f".{out.name}.lock")


def _folder(out: Path) -> Path:
    """Return where the parts lie until they are whole."""
    return out.with_name(out.name + ".parts")


def _drawer(
    config: CaptionsConfig,
    pool: concepts.Pool,
    bank: prompts.Bank,
    listed: Mapping[str, tuple[str, ...]] | None = None,
) -> Drawer:
    return Drawer(
        pool,
        bank,
        seed=config.seed,
        shares=(config.share_c, config.share_c_bg, config.share_c_rel),
        demonstrations=config.examples,
        block=config.examples_block,
        listed=listed or {},
    )


def _header(
    config: CaptionsConfig, pool: concepts.Pool, schema: str, revision: str = ""
) -> artifacts.Header:
    return artifacts.Header(
        schema,
        configs.recipe(config),
        engine=config.engine.name,
        revision=revision,
        seed=config.seed,
        parents=tuple(artifacts.parent(path, None, digest) for path, digest in pool.files),
        facts={"concepts": len(pool)},
    )


def _count_there(out: Path, header: artifacts.Header, config: CaptionsConfig) -> int:
    """Return the count that a finished `out` was made for, 0 if it is not there."""
    if not out.exists():
        return 0
    _, found = artifacts.open_parquet(out, "captions")
    artifacts.require_same("captions", found, header, out)
    count = int(found.config["count"])
    if count > config.count:
        raise UsageError(
            f"{out} holds more captions than asked for",
            got=f"-n {count}",
            expected=f"at most {config.count}",
            do="take its first rows, which are those of a smaller file, or choose another --out",
        )
    return count


def _missing(parts: artifacts.Parts, mine: list[int], count: int, size: int) -> list[int]:
    missing = set(parts.missing(max(mine, default=-1) + 1))

    def rows(index: int) -> int:
        with storage.parquet(parts.path(index)) as file:
            return int(file.metadata.num_rows)

    return [i for i in mine if i in missing or rows(i) != len(ids_of(i, count, size))]
