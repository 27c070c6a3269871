"""`synclr captions`: words -> captions (paper section 3.1).

    concepts --draw--> prompts --engine--> completions --gate--> captions.parquet

Row = f(seed, caption_id): its concept, template, companion, demonstrations and sampling noise are
drawn from its own id, so neither the number of captions nor batches nor interruptions change it,
and the first 1,000 of 100,000 captions are the same 1,000. Finished parts lie in `<out>.parts/`
until all are there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from synclr_cli import artifacts, config as configs, console, engines
from synclr_cli.captions import concepts, prompts, quality
from synclr_cli.captions.draws import Drawer, Rows, noise_seeds
from synclr_cli.config import CaptionEngineConfig, CaptionsConfig
from synclr_cli.engines import CaptionEngine, Prompt
from synclr_cli.errors import UsageError

ROWS_PER_GROUP = 65536  # of the finished file
FALLBACK = "template:"  # writes the rows a language model failed at; their `engine` column says so


def run(config: CaptionsConfig, out: Path, *, overwrite: bool = False) -> Path:
    """Write `config.count` captions to `out` and return it.

    Raises:
        UsageError: unknown source or engine; `out` was made with other settings or holds more.
        DataError: a concept or demonstration file is not usable.
        EngineError: the engine, a package or the disk is not there or gave up.
    """
    # Open: what is asked, and what of it is there.
    pool = concepts.read(config.concepts)
    bank = prompts.read(config.examples_file)
    bank.require(config.examples)
    header = _header(config, pool)
    parts_folder = out.with_name(out.name + ".parts")
    if overwrite:
        _remove(out, parts_folder)
    kept = _rows_there(out, header, config)
    if kept == config.count:
        return out
    for line in pool.notes:
        console.note(line)

    # Build: the engine, and the rows to draw. A part that was cut short by a smaller count is made
    # again, so that the result is that of one run.
    engine = engines.load("caption", config.engine)
    header = _header(config, pool, engine.revision)
    size = config.captions_per_part
    whole = kept // size * size
    parts = artifacts.Parts(parts_folder, "captions", header)
    todo = [i for i in _missing(parts, config.count, size) if i * size >= whole]
    drawer = Drawer(
        pool,
        bank,
        seed=config.seed,
        shares=(config.share_c, config.share_c_bg, config.share_c_rel),
        demonstrations=config.examples,
        block=config.examples_block,
    )

    # Loop.
    waiting = sum(min(size, config.count - i * size) for i in todo)
    with console.progress(
        "captions", config.count, done=config.count - waiting, unit="captions"
    ) as meter:
        for index in todo:
            ids = np.arange(index * size, min((index + 1) * size, config.count))
            table = _write_captions(drawer.rows(ids), drawer, engine, config, meter)
            parts.write(index, table, rows_per_group=ROWS_PER_GROUP)

    # Write.
    artifacts.write_parquet(
        out,
        "captions",
        header,
        _join(out if whole else None, whole, parts, config.count, size),
        rows_per_group=ROWS_PER_GROUP,
    )
    shutil.rmtree(parts_folder)
    return out


def _header(config: CaptionsConfig, pool: concepts.Pool, revision: str = "") -> artifacts.Header:
    return artifacts.Header(
        "captions",
        configs.flatten(config),
        engine=config.engine.name,
        revision=revision,
        seed=config.seed,
        parents=tuple(artifacts.parent(path, None, digest) for path, digest in pool.files),
        facts={"concepts": len(pool)},
    )


def _remove(out: Path, parts_folder: Path) -> None:
    with artifacts.disk_errors(out):
        out.unlink(missing_ok=True)
        if parts_folder.is_dir():
            shutil.rmtree(parts_folder)


def _rows_there(out: Path, header: artifacts.Header, config: CaptionsConfig) -> int:
    if not out.exists():
        return 0
    file, found = artifacts.open_parquet(out, "captions")
    artifacts.require_same("captions", found, header, out)
    rows = file.metadata.num_rows
    if rows > config.count:
        raise UsageError(
            f"{out} holds more captions than asked for",
            got=rows,
            expected=f"at most {config.count}",
            do=f"ask for -n {rows} or more, or for another --out; its first rows are those of a "
            "smaller file",
        )
    return rows


def _missing(parts: artifacts.Parts, count: int, size: int) -> list[int]:
    total = -(-count // size)
    missing = set(parts.missing(total))
    for index in range(total):
        if index not in missing:
            rows = pq.read_metadata(parts.path(index)).num_rows
            if rows != min(size, count - index * size):
                missing.add(index)
    return sorted(missing)


def _write_captions(
    rows: Rows,
    drawer: Drawer,
    engine: CaptionEngine,
    config: CaptionsConfig,
    meter: console.Meter,
) -> pa.Table:
    """Complete the prompts of N rows; redraw what the gate refuses with the row's next seed."""
    asked = _prompts(rows, drawer)
    captions = [""] * len(asked)
    seeds = np.zeros(len(asked), dtype=np.int64)  # [N]
    pending = np.arange(len(asked))
    chunk = max(config.engine.batch_size, config.examples_block)
    for attempt in range(config.attempts):
        refused: list[int] = []
        for start in range(0, len(pending), chunk):
            here = pending[start : start + chunk]
            tried = noise_seeds(config.seed, rows.ids[here], attempt)
            seeds[here] = tried
            completions = engine.complete([asked[i] for i in here], tried.tolist())
            for i, completion in zip(here.tolist(), completions, strict=True):
                caption = quality.tidy(completion)
                if quality.reason(caption, asked[i].concept):
                    refused.append(i)
                else:
                    captions[i] = caption
            if attempt == 0:
                meter.advance(len(here))
        pending = np.array(refused, dtype=np.int64)
        if not refused:
            break
    names = [config.engine.name] * len(asked)
    if len(pending):
        fallback = engines.load("caption", CaptionEngineConfig(name=FALLBACK))
        seeds[pending] = noise_seeds(config.seed, rows.ids[pending], config.attempts)
        completions = fallback.complete([asked[i] for i in pending], seeds[pending].tolist())
        for i, completion in zip(pending.tolist(), completions, strict=True):
            captions[i], names[i] = completion, FALLBACK
    return _table(rows, drawer, captions, names, seeds)


def _prompts(rows: Rows, drawer: Drawer) -> list[Prompt]:
    pool, bank = drawer.pool, drawer.bank
    examples = list(map(tuple, rows.examples.tolist()))
    return [
        Prompt(
            text=bank.prompt(name, shown, pool.names[c], companion),
            concept=pool.names[c],
            kind=pool.kinds[c],
            template=template,
            companion=companion,
            gloss=pool.glosses[c],
        )
        for c, template, companion, name, shown in zip(
            rows.concepts.tolist(), rows.templates, rows.companions, rows.banks, examples,
            strict=True,
        )
    ]  # fmt: skip


def _table(
    rows: Rows, drawer: Drawer, captions: list[str], names: list[str], seeds: np.ndarray
) -> pa.Table:
    pool, drawn = drawer.pool, rows.concepts.tolist()
    count, shown = rows.examples.shape
    return pa.table(
        {
            "caption_id": rows.ids,
            "caption": captions,
            "concept": [pool.names[c] for c in drawn],
            "source": [pool.sources[c] for c in drawn],
            "template": rows.templates,
            "companion": rows.companions,
            "engine": names,
            "seed": seeds,
            "examples": pa.ListArray.from_arrays(
                np.arange(count + 1, dtype=np.int32) * shown, rows.examples.reshape(-1)
            ),
            "weight": np.ones(count, dtype=np.float32),
        }
    )


def _join(
    old: Path | None, whole: int, parts: artifacts.Parts, count: int, size: int
) -> Iterator[pa.Table]:
    """Yield the kept rows, then the parts, in tables of about ROWS_PER_GROUP rows."""
    waiting: list[pa.Table] = []
    rows = 0
    for table in _pieces(old, whole, parts, count, size):
        waiting.append(table.replace_schema_metadata(None))
        rows += table.num_rows
        if rows >= ROWS_PER_GROUP:
            yield pa.concat_tables(waiting)
            waiting, rows = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


def _pieces(
    old: Path | None, whole: int, parts: artifacts.Parts, count: int, size: int
) -> Iterator[pa.Table]:
    if old:
        left = whole
        for batch in pq.ParquetFile(old).iter_batches(ROWS_PER_GROUP):
            yield pa.Table.from_batches([batch.slice(0, left)])
            left -= min(left, batch.num_rows)
            if not left:
                break
    for index in range(whole // size, -(-count // size)):
        yield pq.read_table(parts.path(index))
