"""Plausible backgrounds for the template c, bg -> caption.

    concept (own list | the model's list | domain of source, gloss or name) -> tuple of backgrounds

A random scene makes implausible pairs ("blue whale, football field") and costs accuracy (Table 2),
so each concept draws from a list that fits it: its own, where the concept file has one; one that
the language model writes, if `captions.backgrounds` is "model"; or that of the domain its gloss or
name belongs to, written by hand.

    concepts that c_bg rows draw --prompt--> completions --split, clean--> _backgrounds.parquet

The model's list of a concept is a function of (seed, concept), so a larger count or a restart only
adds lists. What the hand-written lists serve as a whole (cars, aircraft, food, flowers, pets: one
shared list each, as in the paper) is not asked of the model.
"""

from __future__ import annotations

import re
import tomllib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow as pa

from synclr_cli import console, rng
from synclr_cli.captions.concepts import plain_name
from synclr_cli.data import artifacts, storage
from synclr_cli.data.artifacts import Header
from synclr_cli.engines import CaptionEngine, Prompt

FILE = "_backgrounds.parquet"  # of the model's lists, beside the captions
LISTS = 4  # completions for each concept; their union is its list
FEWEST = 4  # a shorter list is not used: the hand-written one of the concept's domain is
CONCEPTS_PER_FILE = 256  # lists that are written to the scratch folder together
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


def of_concept(name: str, gloss: str, own: tuple[str, ...], domain: str) -> tuple[str, ...]:
    """Return the backgrounds a concept may stand before, never empty."""
    return own or by_domain()[domain or domain_of(name, gloss)]


@cache
def by_domain() -> dict[str, tuple[str, ...]]:
    """Return the hand-written lists."""
    return {domain: tuple(table["backgrounds"]) for domain, table in _tables().items()}


def domain_of(name: str, gloss: str) -> str:
    """Return the domain whose words a concept's gloss has, or else its name has.

    The last word of a phrase says what the thing is ("wading bird"), so it is asked first.
    """
    by_word = _domain_by_word()
    for phrase in (gloss, name):
        words = re.findall(r"[a-z']+", phrase.lower())
        for word in reversed(words):
            for form in (word, word.removesuffix("s"), word.removesuffix("es")):
                if form in by_word:
                    return by_word[form]
    return "general"


@cache
def _tables() -> dict[str, dict[str, list[str]]]:
    file = resources.files(__package__) / "banks" / "backgrounds.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


@cache
def _domain_by_word() -> dict[str, str]:
    by_word: dict[str, str] = {}
    for domain, table in _tables().items():
        for word in table["words"]:
            by_word.setdefault(word, domain)
    return by_word


# ---------------------------------------------------------------------- lists of the language model


def known_lists(work: Path, scratch: Path) -> dict[str, tuple[str, ...]]:
    """Return concept -> backgrounds, () where the model had none, of all that was listed so far.

    Args:
        work: folder of the captions.
        scratch: folder of the lists of this and other jobs, until the captions are finished.

    Raises:
        DataError: a file is damaged.
    """
    files = [work / FILE, *sorted(scratch.glob("backgrounds-*.parquet"))]
    lists: dict[str, tuple[str, ...]] = {}
    for path in files:
        if path.exists():
            lists |= read(path)
    return lists


def write_lists(
    scratch: Path, header: Header, engine: CaptionEngine, concepts: Sequence[str], seed: int
) -> None:
    """Have the model list the backgrounds of these concepts, some at a time.

    Raises:
        EngineError: the engine or the disk gave up; what was listed is kept.
    """
    with console.progress("backgrounds", len(concepts), unit="concepts") as meter:
        for start in range(0, len(concepts), CONCEPTS_PER_FILE):
            names = concepts[start : start + CONCEPTS_PER_FILE]
            number = zlib.crc32("\0".join(names).encode())  # jobs list different concepts
            path = scratch / f"backgrounds-{number:08x}.parquet"
            write(path, header, _listed(names, engine, seed))
            meter.advance(len(names))


def write(path: Path, header: Header, lists: Mapping[str, Iterable[str]]) -> None:
    """Write concept -> backgrounds as a file, the concepts in alphabetical order."""
    rows = [(name, entry) for name in sorted(lists) for entry in tuple(lists[name]) or ("",)]
    table = pa.table({"concept": [n for n, _ in rows], "background": [b for _, b in rows]})
    artifacts.write_parquet(path, "backgrounds", header, [table], rows_per_group=_ROWS_PER_GROUP)


def read(path: Path) -> dict[str, tuple[str, ...]]:
    """Return concept -> backgrounds, () where the model had none.

    Raises:
        DataError: it is not a backgrounds file, or a damaged one.
    """
    artifacts.open_parquet(path, "backgrounds")[0].close()
    with artifacts.readable(path):
        rows = storage.table(path, ["concept", "background"]).to_pylist()
    lists: dict[str, list[str]] = {}
    for row in rows:
        lists.setdefault(row["concept"], []).extend(filter(None, [row["background"]]))
    return {concept: tuple(entries) for concept, entries in lists.items()}


def long_enough(lists: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return the lists that are used: a short one gives way to that of the concept's domain."""
    return {concept: entries for concept, entries in lists.items() if len(entries) >= FEWEST}


def split(completion: str, concept: str) -> list[str]:
    """Return the backgrounds a completion lists, cleaned, each once."""
    name = plain_name(concept).casefold()
    items: dict[str, str] = {}
    for item in re.split(r"[,;.|]", completion.split("\n", 1)[0]):
        item = re.sub(r"^\s*(?:and\s+)?(?:(?:in|on|at|by|near)\s+)?(?:(?:an?|the)\s+)?", "", item)
        words = item.split()
        plain = re.fullmatch(r"[^\W\d_][\w' -]*", " ".join(words))
        if words and plain and len(words) <= _MOST_WORDS and name not in item.casefold():
            items.setdefault(" ".join(words).casefold(), " ".join(words))
    return list(items.values())


def _listed(names: Sequence[str], engine: CaptionEngine, seed: int) -> dict[str, tuple[str, ...]]:
    """Return what the model lists for each concept."""
    shown = "\n".join([_HEADING, "", *(f"{c} => {listed}" for c, listed in _EXAMPLES)])
    questions = [Prompt(f"{shown}\n{n} =>", n, "object", "backgrounds", "") for n in names]
    # A name's number is a checksum of it, so that a list does not depend on the pool's order.
    ids = np.array([zlib.crc32(name.encode()) for name in names], dtype=np.int64)
    lists: list[dict[str, str]] = [{} for _ in names]
    for attempt in range(LISTS):
        seeds = rng.seeds("captions.listing", seed, attempt, ids).tolist()
        for entries, completion, name in zip(
            lists, engine.generate(questions, seeds), names, strict=True
        ):
            # The last item may be cut off by the limit of tokens.
            whole = completion if completion.endswith(".") else completion.rpartition(",")[0]
            for background in split(whole or completion, name):
                entries.setdefault(background.casefold(), background)
    return {name: tuple(entries.values()) for name, entries in zip(names, lists, strict=True)}
