"""Concept lists: the words a backbone will be made from (Table 11).

    "in1k:0.47,aircraft:0.05" --read--> Pool: every concept with its kind, share, gloss, backgrounds

A source is a name of `SOURCES`, or a file: .txt (one concept a line), .csv or .parquet (column
`concept`; `kind`, `weight` and `backgrounds` if they are there). `A:2,B:1` mixes sources by share,
`A+B` makes one list of two. `synclr` is the paper's own mix.

The ImageNet names are timm's metadata, read as files: importing timm would import torch.
The other names are the class names of the public data sets; `banks/README.md` says what was done
to them.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from synclr_cli.captions.concept_files import SUFFIXES, ConceptList, read_file
from synclr_cli.data import storage
from synclr_cli.errors import DataError, EngineError, UsageError

# The paper's sampling probabilities (Table 11). Its "IN-21k" are the 13k most frequent synsets;
# timm's 12k subset (11,821, also chosen by frequency) stands for them.
SYNCLR_MIX = (
    "in1k:0.47,aircraft:0.05,cars:0.05,food101:0.05,flowers:0.03,"
    "places365+sun397:0.09,in12k+caltech101+pets+dtd:0.26"
)

_IMAGENET = {
    "in1k": "imagenet_synsets.txt",
    "in12k": "imagenet12k_synsets.txt",
    "in21k": "imagenet21k_goog_synsets.txt",
}


@dataclass(frozen=True)
class _Bank:
    kind: str = "object"
    suffix: str = ""  # the paper disambiguates "DC-10" and "Corvette" so
    domain: str = ""  # of banks/backgrounds.toml; "" lets each concept find its own
    gloss: str = ""


_BANKS = {
    "aircraft": _Bank(suffix=" aircraft", domain="aircraft", gloss="aircraft"),
    "cars": _Bank(suffix=" car", domain="vehicle", gloss="car"),
    "dtd": _Bank(kind="texture"),
    "flowers": _Bank(domain="flower", gloss="flower"),
    "pets": _Bank(domain="pet"),
    "sun397": _Bank(kind="place"),
    "caltech101": _Bank(),
    "food101": _Bank(domain="food", gloss="dish"),
    "places365": _Bank(kind="place"),
    "cifar10": _Bank(),
    "cifar10-words": _Bank(),
    "cifar100": _Bank(),
    "stl10": _Bank(),
    "cub200": _Bank(domain="bird", gloss="bird"),
    "voc2007": _Bank(),
    "eurosat": _Bank(kind="place"),
    "resisc45": _Bank(kind="place"),
    "gtsrb": _Bank(domain="sign", gloss="road sign"),
}
SOURCES = (*_IMAGENET, *_BANKS, "synclr")


@dataclass(frozen=True)
class Pool:
    """All concepts of a mix, in drawing order: group after group, C concepts in all."""

    names: list[str]
    sources: list[str]
    kinds: list[str]
    glosses: list[str]
    backgrounds: list[tuple[str, ...]]  # a concept's own; () where there are none
    domains: list[str]
    group_edges: np.ndarray  # [G] cumulative share of the groups, last is 1
    group_starts: np.ndarray  # [G + 1] concept numbers
    concept_edges: np.ndarray  # [C] cumulative probability of the concepts, last is 1
    files: tuple[tuple[Path, str], ...]  # files read, with their digests
    notes: tuple[str, ...]  # what was merged and skipped, for the user

    def __len__(self) -> int:
        return len(self.names)

    def draw(self, group_uniform: np.ndarray, concept_uniform: np.ndarray) -> np.ndarray:
        """Return concept numbers [N] for two columns of uniform numbers in [0, 1)."""
        group = np.searchsorted(self.group_edges, group_uniform, side="right")
        group = np.minimum(group, len(self.group_edges) - 1)
        starts = self.group_starts[group]
        low = np.where(starts > 0, self.concept_edges[starts - 1], 0.0)
        high = self.concept_edges[self.group_starts[group + 1] - 1]
        numbers = np.searchsorted(
            self.concept_edges, low + concept_uniform * (high - low), side="right"
        )
        return np.clip(numbers, starts, self.group_starts[group + 1] - 1)

    def shares(self) -> np.ndarray:
        """Return each concept's probability [C]."""
        return np.diff(self.concept_edges, prepend=0.0)


def read(spec: str, cap: float = 1.0) -> Pool:
    """Read the concepts a `--concepts` value names.

    Args:
        spec: sources and weights.
        cap: highest probability of one concept within its list; see `capped`.

    Raises:
        UsageError: unknown source (the nearest is named), a weight that is no positive number.
        DataError: a file that is missing, empty, not UTF-8, or lacks its columns.
    """
    groups = _parse(SYNCLR_MIX if spec.strip() == "synclr" else spec)
    total = sum(weight for _, weight in groups)
    names: list[str] = []
    columns: defaultdict[str, list[Any]] = defaultdict(list)
    probabilities: list[np.ndarray] = []
    group_starts = [0]
    files: list[tuple[Path, str]] = []
    notes: list[str] = []
    for parts, weight in groups:
        lists = [_load(part) for part in parts]
        group_weights: list[float] = []
        seen: set[str] = set()
        for one in lists:
            domain = one.domain
            for i, name in enumerate(one.names):
                if len(lists) > 1:
                    if (key := name.casefold()) in seen:
                        continue
                    seen.add(key)
                names.append(name)
                columns["sources"].append(one.source)
                columns["kinds"].append(one.kinds[i])
                columns["glosses"].append(one.glosses[i])
                columns["own"].append(one.backgrounds[i])
                columns["domains"].append(domain)
                group_weights.append(one.weights[i])
            if one.path:
                files.append((one.path, storage.digest(one.path)))
            if one.merged:
                notes.append(f"{one.source}: {one.merged} repeated concepts were put together")
        shares = np.asarray(group_weights, dtype=np.float64)
        if shares.sum() <= 0:
            raise DataError(f"the weights in {' + '.join(parts)} sum to zero")
        group = weight / total
        probabilities.append(capped(shares / shares.sum(), cap / group) * group)
        group_starts.append(len(names))
    edges = np.cumsum(np.concatenate(probabilities))
    edges /= edges[-1]
    return Pool(
        names=names,
        sources=columns["sources"],
        kinds=columns["kinds"],
        glosses=columns["glosses"],
        backgrounds=columns["own"],
        domains=columns["domains"],
        group_edges=np.cumsum([weight / total for _, weight in groups]),
        group_starts=np.asarray(group_starts),
        concept_edges=edges,
        files=tuple(files),
        notes=tuple(notes),
    )


def capped(shares: np.ndarray, cap: float) -> np.ndarray:
    """Return shares [C] none of which is above `cap`; the excess goes to the others in proportion.

    MetaCLIP (Xu et al. 2024) balances its data so, with a cap on the entries of a concept; a cap
    on the probability leaves each caption a function of its own id, and small sets nested in large
    ones. Where not even equal shares are below the cap, they are made equal.
    """
    nonzero = shares > 0
    if cap * nonzero.sum() <= 1:
        return nonzero / nonzero.sum()
    full = np.zeros(len(shares), dtype=bool)
    result = shares.copy()
    while (over := (result > cap * (1 + 1e-12)) & ~full).any():
        full |= over
        result[full] = cap
        rest = nonzero & ~full
        result[rest] = shares[rest] / shares[rest].sum() * (1 - cap * full.sum())
    return result


def plain_name(concept: str) -> str:
    """Return a concept without its gloss in brackets: what a caption of it must say."""
    head = concept.split(" (", 1)[0].strip()
    return head or concept


# -------------------------------------------------------------------------------- the mix


def _parse(spec: str) -> list[tuple[tuple[str, ...], float]]:
    if _suffix(spec) in SUFFIXES and storage.place(spec).exists():
        return [((spec,), 1.0)]
    groups: list[tuple[tuple[str, ...], float]] = []
    weighted = 0
    for item in spec.split(","):
        item = item.strip()
        head, colon, tail = item.rpartition(":")
        weight = 1.0
        if colon and not tail.startswith("//"):  # "s3://..." is a place
            weighted += 1
            try:
                weight = float(tail)
            except ValueError:
                weight = float("nan")
            if not 0 <= weight < float("inf"):
                raise UsageError(
                    f"--concepts {spec}: weight of {head}",
                    got=repr(tail),
                    expected="a number, 0 or more",
                    do="write NAME:WEIGHT,NAME:WEIGHT",
                )
            item = head.strip()
        parts = (
            (item,) if storage.place(item).exists() else tuple(p.strip() for p in item.split("+"))
        )
        for part in parts:
            _require_source(part)
        groups.append((parts, weight))
    if 0 < weighted < len(groups):
        raise UsageError(
            f"--concepts {spec}", got="weights for some sources", expected="for all or none"
        )
    if sum(weight for _, weight in groups) <= 0:
        raise UsageError(f"--concepts {spec}: the weights sum to zero", do="make one positive")
    return [group for group in groups if group[1] > 0]


def _require_source(name: str) -> None:
    if name == "synclr":
        raise UsageError(
            "synclr is a whole mix and cannot be part of one", do=f"spell it out: {SYNCLR_MIX}"
        )
    if name in SOURCES or _is_file(name):
        return
    near = difflib.get_close_matches(name, SOURCES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "sources are " + ", ".join(SOURCES)
    raise UsageError(
        f"unknown concept source {name!r}", do=f"{hint} (a .txt, .csv or .parquet file works too)"
    )


def _is_file(name: str) -> bool:
    return _suffix(name) in SUFFIXES or "/" in name


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix


def _load(name: str) -> ConceptList:
    if name in _IMAGENET:
        return _imagenet(name)
    if name in _BANKS:
        return _bank(name)
    return read_file(storage.place(name))


# ------------------------------------------------------------------------------- by name


@cache
def _bank(name: str) -> ConceptList:
    bank = _BANKS[name]
    concepts = ConceptList(source=name, domain=bank.domain)
    text = (resources.files(__package__) / "banks" / f"{name}.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        concepts.add(line + bank.suffix, kind=bank.kind, gloss=bank.gloss)
    return concepts


@cache
def _imagenet(name: str) -> ConceptList:
    """First lemma of each synset; where two synsets share it, the definition's first words too."""
    concepts = ConceptList(source=name)
    synsets = _timm_info(_IMAGENET[name]).split()
    lemmas = dict(line.split("\t", 1) for line in _timm_info(_LEMMAS).splitlines())
    definitions = dict(line.split("\t", 1) for line in _timm_info(_DEFINITIONS).splitlines())
    first = [lemmas[s].split(",", 1)[0].strip() for s in synsets]
    counts: dict[str, int] = {}
    for lemma in first:
        counts[lemma.casefold()] = counts.get(lemma.casefold(), 0) + 1
    taken: set[str] = set()
    for synset, lemma in zip(synsets, first, strict=True):
        definition = definitions.get(synset, "")
        concept = lemma
        if counts[lemma.casefold()] > 1:
            words = re.sub(r"\([^)]*\)", " ", definition).split(";")[0].split()
            length = 5
            while words:  # as many words of the definition as it takes
                concept = f"{lemma} ({_TRAILING.sub('', ' '.join(words[:length]))})"
                if concept.casefold() not in taken or length >= len(words):
                    break
                length += 3
        if concept.casefold() in taken:
            concepts.merged += 1  # two synsets with the very same words: one concept
            continue
        taken.add(concept.casefold())
        concepts.add(concept, gloss=genus(definition))
    concepts.merged = 0  # not the user's doing, so not worth a note
    return concepts


_LEMMAS, _DEFINITIONS = "imagenet_synset_to_lemma.txt", "imagenet_synset_to_definition.txt"


def _timm_info(file: str) -> str:
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        raise EngineError("the ImageNet concept lists come with timm", do="run pip install timm")
    path = Path(spec.submodule_search_locations[0]) / "data" / "_info" / file
    try:
        return path.read_text(encoding="utf-8")
    except OSError as e:
        raise EngineError(
            f"this timm has no {file} ({e.strerror})", do="run pip install 'timm>=1.0.15'"
        ) from e


# A definition's genus ("large wading bird") ends where one of these begins.
_CUT = re.compile(
    r"[;,(:`]|\b(?:of|that|which|with|having|used|for|in|from|to|on|by|where|who|whose|native"
    r"|usually|formerly|especially|made|consisting|and|or|at|resembling|containing|as|when"
    r"|designed|found|related|closely|bearing|held|worn|covered|characterized|growing|producing"
    r"|grown|near|between|during|without|similar|like|is|are|was|were|has|such|cultivated|valued"
    r"|descended|widely|often|about|into|over|under|up|so|being|built|capable|consists|lifts"
    r"|trained|employed|authorized|permitted|considered)\b"
)
_ARTICLE = re.compile(
    r"^(?:(?:an?|the|any|several|various|one|some|numerous|either)\s+)(?:of\s+)?"
    r"(?:(?:the|various|several|numerous|many|two|three)\s+)*"
)
_TRAILING = re.compile(
    r"(?:[\s,]|\b(?:of|that|which|with|for|in|to|on|by|an?|the|is|and|or|from|used|any|at|as|has))+$"
)
_EMPTY_GENERA = {
    "", "something", "someone", "one", "kind", "part", "type", "form", "piece", "member", "name",
    "group", "set", "number", "variety", "genus", "family", "species", "any", "act", "place",
}  # fmt: skip


def genus(definition: str) -> str:
    """Return a definition's first noun phrase without its article, or "" where it says nothing."""
    phrase = _CUT.split(_ARTICLE.sub("", definition.strip()), maxsplit=1)[0].strip()
    words = phrase.split()
    if len(words) > 5 or not words or words[-1].lower() in _EMPTY_GENERA:
        return ""
    return phrase
