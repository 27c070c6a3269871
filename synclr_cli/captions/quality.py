"""The quality gate: which completions are captions, and why the others are not.

completion --tidy--> caption --reason--> "" | why it is refused
"""

from __future__ import annotations

import math
import re

from synclr_cli.captions.concepts import plain_name

# A caption must name its concept: of "AM General Hummer SUV 2000 car" this share of the words.
_NAMED_SHARE = 0.6
_WORD = re.compile(r"[^\W_]+")


def tidy(completion: str) -> str:
    """Return the first line of a completion without quotes, bullets and double spaces around it."""
    line = completion.split("\n", 1)[0]
    return " ".join(line.split()).strip(' "“”*-').strip()


def reason(caption: str, concept: str) -> str:
    """Return why a caption is refused, or "" if it is good."""
    if not any(c.isalpha() for c in caption):
        return "empty"
    if not names(caption, concept):
        return "concept missing"
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
