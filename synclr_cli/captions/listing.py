"""Backgrounds written by the language model, a list per concept.

    concepts that c_bg rows draw --prompt--> completions --split, clean--> backgrounds.parquet

The artifact is a cache beside the captions: a concept's list is a function of (seed, concept), so a
larger count or a restart only adds to it. What the hand-written lists serve as a whole (cars,
aircraft, food, flowers, pets: one shared list each, as in the paper) is not asked for.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from synclr_cli import console, rng
from synclr_cli.captions.concepts import Pool, plain_name
from synclr_cli.captions.pieces import beside, remove
from synclr_cli.data import artifacts, storage
from synclr_cli.engines import CaptionEngine, Prompt

LISTS = 4  # completions asked for per concept; their union is its list
FEWEST = 4  # a shorter list is not used: the hand-written one of the concept's domain is
_CONCEPTS_PER_PART = 256
_ROWS_PER_GROUP = 65536
_MOST_WORDS = 5

_HEADING = "List places where a photo of each thing could have been taken."
_EXAMPLES = (
    ("heron", "misty pond, reed bed, river bank, rocky shore, flooded meadow, harbour wall"),
    ("espresso machine", "café counter, kitchen shelf, office canteen, hotel bar, shop window"),
    ("tractor", "ploughed field, farmyard, country road, barn, muddy lane, harvest festival"),
    ("snowboard", "ski slope, chalet porch, mountain hut, sports shop, roof of a car, half-pipe"),
    ("cello", "rehearsal room, concert stage, living room, church, music school, subway passage"),
)


def path_beside(out: Path) -> Path:
    """Return where the backgrounds of a captions file lie."""
    return beside(out, "backgrounds")


def parts_folder(path: Path) -> Path:
    """Return where the lists lie that were made before an interruption."""
    return path.with_name(path.name + ".parts")


def write(
    path: Path,
    header: artifacts.Header,
    engine: CaptionEngine,
    pool: Pool,
    numbers: Sequence[int],
    seed: int,
) -> None:
    """Make sure that `path` lists the backgrounds of these concepts of the pool.

    Raises:
        UsageError: `path` was made with other settings.
        EngineError: the engine or the disk gave up; what was listed is kept.
    """
    header = replace(header, schema="backgrounds")
    folder = parts_folder(path)
    parts = artifacts.Parts(folder, "backgrounds", header)
    known: set[str] = set()
    if path.exists():
        _, found = artifacts.open_parquet(path, "backgrounds")
        artifacts.require_same("captions", found, header, path)
        known |= set(storage.table(path, ["concept"])["concept"].to_pylist())
    parts.missing(1)  # refuses parts of other settings
    for part in parts.present():
        known |= set(storage.table(part, ["concept"])["concept"].to_pylist())
    todo = sorted({pool.names[n] for n in numbers} - known)
    if not todo and not parts.present() and path.exists():
        return
    following = len(parts.present())
    with console.progress("backgrounds", len(todo), unit="concepts") as meter:
        for start in range(0, len(todo), _CONCEPTS_PER_PART):
            names = todo[start : start + _CONCEPTS_PER_PART]
            parts.write(following, _listed(names, engine, seed), rows_per_group=_ROWS_PER_GROUP)
            following += 1
            meter.advance(len(names))
    artifacts.write_parquet(
        path, "backgrounds", header, _all(path, parts), rows_per_group=_ROWS_PER_GROUP
    )
    remove(folder)


def read(path: Path) -> Mapping[str, tuple[str, ...]]:
    """Return concept -> backgrounds, of lists that are long enough.

    Raises:
        DataError: it is no backgrounds file.
    """
    file, _ = artifacts.open_parquet(path, "backgrounds")
    lists: dict[str, list[str]] = {}
    for batch in file.iter_batches(columns=["concept", "background"]):
        for concept, background in zip(
            batch["concept"].to_pylist(), batch["background"].to_pylist(), strict=True
        ):
            if background:
                lists.setdefault(concept, []).append(background)
    return {c: tuple(found) for c, found in lists.items() if len(found) >= FEWEST}


def joined(paths: Sequence[Path]) -> pa.Table:
    """Return the lists of several files as one, by concept; those of one concept are alike."""
    lists: dict[str, list[str]] = {}
    for path in paths:
        mine: dict[str, list[str]] = {}
        artifacts.open_parquet(path, "backgrounds")
        for row in storage.table(path, ["concept", "background"]).to_pylist():
            mine.setdefault(row["concept"], []).append(row["background"])
        lists |= mine
    rows = [(concept, background) for concept in sorted(lists) for background in lists[concept]]
    return pa.table({"concept": [c for c, _ in rows], "background": [b for _, b in rows]})


def split(completion: str, concept: str) -> list[str]:
    """Return the backgrounds a completion lists, cleaned, each once."""
    name = plain_name(concept).casefold()
    found: dict[str, str] = {}
    for item in re.split(r"[,;.|]", completion.split("\n", 1)[0]):
        item = re.sub(r"^\s*(?:and\s+)?(?:(?:in|on|at|by|near)\s+)?(?:(?:an?|the)\s+)?", "", item)
        words = item.split()
        plain = re.fullmatch(r"[^\W\d_][\w' -]*", " ".join(words))
        if words and plain and len(words) <= _MOST_WORDS and name not in item.casefold():
            found.setdefault(" ".join(words).casefold(), " ".join(words))
    return list(found.values())


def _listed(names: Sequence[str], engine: CaptionEngine, seed: int) -> pa.Table:
    shown = "\n".join([_HEADING, "", *(f"{c} => {listed}" for c, listed in _EXAMPLES)])
    asked = [Prompt(f"{shown}\n{name} =>", name, "object", "backgrounds", "") for name in names]
    # A name's number is a checksum of it, so that a list does not depend on the pool's order.
    ids = np.array([zlib.crc32(name.encode()) for name in names], dtype=np.int64)
    lists: list[dict[str, str]] = [{} for _ in names]
    for attempt in range(LISTS):
        seeds = rng.seeds("captions.listing", seed, attempt, ids).tolist()
        for found, completion, name in zip(
            lists, engine.generate(asked, seeds), names, strict=True
        ):
            # The last item may be cut off by the limit of tokens.
            whole = completion if completion.endswith(".") else completion.rpartition(",")[0]
            for background in split(whole or completion, name):
                found.setdefault(background.casefold(), background)
    rows = [(n, b) for n, found in zip(names, lists, strict=True) for b in found.values() or ("",)]
    return pa.table({"concept": [n for n, _ in rows], "background": [b for _, b in rows]})


def _all(path: Path, parts: artifacts.Parts) -> Iterator[pa.Table]:
    if path.exists():
        yield storage.table(path).replace_schema_metadata(None)
    for part in parts.present():
        yield storage.table(part).replace_schema_metadata(None)
