"""The quality gate: which completions are captions, and why the others are not.

    completion --tidy--> caption --reason (of itself), alike (to others)--> "" | why it is refused

The released script keeps everything, empty lines included. A refused row is drawn again with its
next seed; what was refused is kept beside the artifact, with the reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from synclr_cli.captions.concepts import plain_name
from synclr_cli.captions.prompts import ARROW

EMPTY = "empty"
SHORT = "too short"
LONG = "too long"
PROMPT = "copies the prompt"
EXAMPLE = "copies an example"
SENTENCES = "not one sentence"
REPEATS = "repeats itself"
MISSING = "concept missing"
EXACT = "exact duplicate"
NEAR = "near duplicate"
REASONS = (EMPTY, SHORT, LONG, PROMPT, EXAMPLE, SENTENCES, REPEATS, MISSING, EXACT, NEAR)

_FEWEST_WORDS, _MOST_WORDS = 3, 60
_NAMED_SHARE = 0.6  # of the words of "AM General Hummer SUV 2000 car" a caption must say
_COPIED_WORDS = 8  # in a row are no coincidence
_COMMON_WORDS = 5  # different ones, which a copy of _COPIED_WORDS has all but surely
_DISTINCT_SHARE = 0.5  # fewer different words than this in a long caption: the model is in a loop
_WORD = re.compile(r"[^\W_]+")
_NEXT_SENTENCE = re.compile(r"(?<![A-Z.])(?<!St)(?<!Mt)(?<!Mr)(?<!Dr)[.!?][\"”')]?\s+[\"“'(]?[A-Z]")
_DANGLING = {
    "and", "or", "the", "a", "an", "of", "with", "in", "on", "at", "to", "by", "for", "from", "its",
}  # fmt: skip


def tidy(completion: str) -> str:
    """Return the first line of a completion without quotes, bullets and double spaces around it."""
    line = completion.split("\n", 1)[0]
    return " ".join(line.split()).strip(' "“”*-').strip()


def reason(caption: str, concept: str, shown: Sequence[str] = ()) -> str:
    """Return why a caption is refused, or "" if it is good.

    Args:
        caption: tidied.
        concept: what it must name.
        shown: captions of the demonstrations in its prompt.
    """
    if not any(map(str.isalpha, caption)):
        return EMPTY
    if ARROW.strip() in caption or caption.startswith("Describe a photo"):
        return PROMPT
    words = caption.split()
    if len(words) < _FEWEST_WORDS:
        return SHORT
    if len(words) > _MOST_WORDS:
        return LONG
    if shown and _copies(caption, shown):
        return EXAMPLE
    if caption[-1] in ",;:–-" or words[-1].lower() in _DANGLING:
        return SENTENCES
    if (". " in caption or "! " in caption or "? " in caption) and _NEXT_SENTENCE.search(caption):
        return SENTENCES
    different = set(caption.lower().replace(",", "").replace(".", "").split())
    if len(words) >= 8 and len(different) < _DISTINCT_SHARE * len(words):
        return REPEATS
    if not names(caption, concept):
        return MISSING
    return ""


def names(caption: str, concept: str) -> bool:
    """Say whether a caption names its concept, in the plural or not, most words of a long name."""
    text, name = caption.casefold(), plain_name(concept).casefold()
    if name in text:
        return True
    wanted = _WORD.findall(name)
    if not wanted:
        return False
    said = _WORD.findall(text)
    found = sum(any(_same_word(w, s) for s in said) for w in wanted)
    return found >= math.ceil(_NAMED_SHARE * len(wanted))


def _same_word(wanted: str, said: str) -> bool:
    if len(wanted) < 4:
        return said in (wanted, wanted + "s")
    stem = wanted.removesuffix("es").removesuffix("s").removesuffix("y").removesuffix("e")
    return said.startswith(stem) and len(said) <= len(wanted) + 3


def _copies(caption: str, shown: Sequence[str]) -> bool:
    rough = set(caption.casefold().split())
    for example in shown:
        its_rough, its_words, its_runs = _taken_apart(example)
        # A cheap look first: what was copied has words in common, even if it repeats some.
        if len(rough & its_rough) >= min(_COMMON_WORDS, len(its_rough)):
            words = _WORD.findall(caption.casefold())
            if words == its_words or not its_runs.isdisjoint(_runs(words)):
                return True
    return False


def _runs(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + _COPIED_WORDS]) for i in range(len(words) - _COPIED_WORDS + 1)}


@lru_cache(maxsize=4096)
def _taken_apart(example: str) -> tuple[set[str], list[str], set[tuple[str, ...]]]:
    words = _WORD.findall(example.casefold())
    return set(example.casefold().split()), words, _runs(words)


class Window:
    """Neighbouring rows, among which a caption must be new.

    A caption is compared with the *first* draws of the rows before it in the window: they depend on
    nothing but seed and id, so a row stays a function of seed and id. Similarity is the Jaccard
    index of the sets of word pairs, exact (a window is small enough to need no MinHash).
    """

    def __init__(self, first_draws: Sequence[str], similarity: float):
        """Remember N captions; `similarity` from 0 to 1, at which exact duplicates alone count."""
        self._similarity = similarity
        self._first_row: dict[str, int] = {}
        for row, caption in enumerate(first_draws):
            if caption:
                self._first_row.setdefault(caption.casefold(), row)
        self._pairs = self._sizes = None
        if similarity < 1:
            self._pairs = _word_pairs(first_draws)  # [N, features] sparse
            self._sizes = np.asarray(self._pairs.sum(axis=1)).ravel()

    def alike(self, captions: Sequence[str], rows: Sequence[int]) -> list[str]:
        """Return EXACT, NEAR or "" for each caption, drawn for these rows of the window."""
        found = [
            EXACT if caption and self._first_row.get(caption.casefold(), row) < row else ""
            for caption, row in zip(captions, rows, strict=True)
        ]
        if self._pairs is None or not len(captions):
            return found
        asked = _word_pairs(captions)  # [n, features]
        sizes = np.asarray(asked.sum(axis=1)).ravel()
        common = (asked @ self._pairs.T).tocoo()  # [n, N] pairs in common
        share = common.data / (sizes[common.row] + self._sizes[common.col] - common.data)
        earlier = common.col < np.asarray(rows)[common.row]
        for i in set(common.row[(share >= self._similarity) & earlier].tolist()):
            found[i] = found[i] or NEAR
        return found


def _word_pairs(captions: Sequence[str]):
    from sklearn.feature_extraction.text import HashingVectorizer

    hashing = HashingVectorizer(
        ngram_range=(2, 2), binary=True, norm=None, alternate_sign=False, n_features=2**22,
        token_pattern=r"[^\W_]+", dtype=np.float32,
    )  # fmt: skip
    return hashing.transform(captions)
