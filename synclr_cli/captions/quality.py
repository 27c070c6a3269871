"""The quality gate: which completions are captions, and why the others are not.

    completion --tidy--> caption --reason (of itself)--> --Neighbours (to others)--> "" | why not

The released script keeps everything, empty lines included. A refused row is drawn again with its
next seed; what was refused is kept beside the artifact, with the reason. What a caption repeats of
its neighbours is `duplicates.py`'s to say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from synclr_cli.captions.concepts import plain_name
from synclr_cli.captions.duplicates import EXACT, NEAR
from synclr_cli.captions.prompts import ARROW, LEAD

EMPTY = "empty"
SHORT = "too short"
LONG = "too long"
PROMPT = "copies the prompt"
EXAMPLE = "copies an example"
SENTENCES = "not one sentence"
REPEATS = "repeats itself"
MISSING = "concept missing"
REASONS = (EMPTY, SHORT, LONG, PROMPT, EXAMPLE, SENTENCES, REPEATS, MISSING, EXACT, NEAR)

_FEWEST_WORDS, _MOST_WORDS = 3, 60
_NAMED_SHARE = 0.6  # of the words of "AM General Hummer SUV car" a caption must say
_COPIED_WORDS = 8  # in a row are no coincidence
_DISTINCT_SHARE = 0.5  # fewer different words than this in a long caption: the model is in a loop
_NEXT_SENTENCE = re.compile(r"(?<![A-Z.])(?<!St)(?<!Mt)(?<!Mr)(?<!Dr)[.!?][\"”')]?\s+[\"“'(]?[A-Z]")
_DANGLING = {
    "and", "or", "the", "a", "an", "of", "with", "in", "on", "at", "to", "by", "for", "from", "its",
}  # fmt: skip
_BETWEEN_WORDS = str.maketrans(dict.fromkeys('.,;:!?"“”()[]…–—-/_*', " "))


def tidy(completion: str) -> str:
    """Return the first line of a completion without quotes, bullets and double spaces around it."""
    line = completion.split("\n", 1)[0]
    return " ".join(line.split()).strip(' "“”*-').strip()


def words_of(caption: str) -> list[str]:
    """Return the words of a caption: in small letters, without marks, hyphens apart."""
    return caption.casefold().translate(_BETWEEN_WORDS).split()


def reason(
    caption: str, concept: str, shown: Sequence[str] = (), words: list[str] | None = None
) -> str:
    """Return why a caption is refused, or "" if it is good.

    Args:
        caption: tidied.
        concept: what it must name.
        shown: captions of the demonstrations in its prompt.
        words: `words_of(caption)`, where they are known.
    """
    if not (caption[:1].isalpha() or any(map(str.isalpha, caption))):
        return EMPTY
    if ARROW.strip() in caption or caption.lower().startswith(("describe a photo", LEAD)):
        return PROMPT
    words = words_of(caption) if words is None else words
    if len(words) < _FEWEST_WORDS:
        return SHORT
    if len(words) > _MOST_WORDS:
        return LONG
    different = set(words)
    if shown and _copies(words, different, tuple(shown)):
        return EXAMPLE
    if caption[-1] in ",;:–-" or (caption[-1] != "." and words[-1] in _DANGLING):
        return SENTENCES
    if (". " in caption or "! " in caption or "? " in caption) and _NEXT_SENTENCE.search(caption):
        return SENTENCES
    if len(words) >= 8 and len(different) < _DISTINCT_SHARE * len(words):
        return REPEATS
    if not _says(words, different, concept):
        return MISSING
    return ""


# ---------------------------------------------------------------------------- naming a concept


def names(caption: str, concept: str) -> bool:
    """Say whether a caption names its concept, in the plural or not, most words of a long name."""
    words = words_of(caption)
    return _says(words, set(words), concept)


def _says(words: list[str], different: set[str], concept: str) -> bool:
    phrase = _phrase(concept)
    text = f" {' '.join(words)} "
    at = text.find(phrase)
    if at >= 0 and len(phrase) > 1:
        end = at + len(phrase)
        if text[end : text.index(" ", end)] in _ENDINGS:
            return True
    joined = phrase.replace(" ", "")
    if len(joined) >= _LONG_ENOUGH and joined in text.replace(" ", ""):
        return True  # "golf cart" and "golfcart"
    name_words = _wanted(concept)
    named = sum(not forms.isdisjoint(different) for forms in name_words)
    return bool(name_words) and named >= math.ceil(_NAMED_SHARE * len(name_words))


_ENDINGS = ("", "s", "es", "'s", "’s")
_LONG_ENOUGH = 6  # letters of a name that do not come together by chance


@lru_cache(maxsize=1 << 16)
def _phrase(concept: str) -> str:
    """Return a concept's words after a space each: where one begins, a word begins."""
    return "".join(f" {word}" for word in words_of(plain_name(concept)))


@lru_cache(maxsize=1 << 14)
def _wanted(concept: str) -> tuple[frozenset[str], ...]:
    """Return the forms of each word of a concept."""
    name = words_of(plain_name(concept))
    significant = [w for w in name if not _YEAR.fullmatch(w)] if len(name) > 3 else name
    return tuple(map(_forms, significant))


_YEAR = re.compile(r"(?:19|20)\d\d")  # of a car's model: no caption says it


def _forms(word: str) -> frozenset[str]:
    """Return how a word may be said: as it is, in the plural, in the singular."""
    forms = {word, word + "s", word + "es", word + "'s", word.removesuffix("s")}
    for one, many in (("y", "ies"), ("f", "ves"), ("fe", "ves"), ("man", "men"), ("", "es")):
        if word.endswith(one):
            forms.add(word[: len(word) - len(one)] + many)
        if word.endswith(many):
            forms.add(word.removesuffix(many) + one)
    for group in _ALSO:
        if word in group:
            forms |= group
    return frozenset(forms)


_ALSO = (
    # The words that were added to disambiguate the names of aircraft and cars.
    {"aircraft", "airplane", "airplanes", "plane", "planes", "jet", "jets", "airliner"},
    {"car", "cars", "vehicle", "vehicles"},
    {"mouse", "mice"}, {"goose", "geese"}, {"foot", "feet"}, {"tooth", "teeth"}, {"ox", "oxen"},
    {"child", "children"}, {"person", "people"},
)  # fmt: skip


# ------------------------------------------------------------------------- copying an example


def _copies(words: list[str], different: set[str], shown: tuple[str, ...]) -> bool:
    table = _examples(shown)
    # Whatever was copied has a whole group of four, so its anchor: nearly every caption has none.
    if different.isdisjoint(table.anchors):
        return False
    return words in table.whole or not table.runs.isdisjoint(_runs(words))


class _Examples(NamedTuple):
    whole: list[list[str]]
    runs: set[tuple[str, ...]]
    anchors: set[str]  # the longest word of each four


@lru_cache(maxsize=4096)
def _examples(shown: tuple[str, ...]) -> _Examples:
    whole = [words_of(example) for example in shown]
    size = _COPIED_WORDS // 2
    fours = [words[i : i + size] for words in whole for i in range(0, len(words), size)]
    runs = {run for words in whole for run in _runs(words)}
    return _Examples(whole, runs, {max(four, key=len) for four in fours})


def _runs(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + _COPIED_WORDS]) for i in range(len(words) - _COPIED_WORDS + 1)}
