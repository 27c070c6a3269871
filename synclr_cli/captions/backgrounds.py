"""Plausible backgrounds for the template c, bg -> caption.

    concept (own list | source's domain | gloss and name) -> tuple of backgrounds

A random scene makes implausible pairs ("blue whale, football field") and costs accuracy (Table 2),
so each concept draws from a list that fits it: its own, where the concept file has one, or else
that of the domain its gloss or name belongs to. The lists of the domains are written by hand.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib import resources


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
    found: dict[str, str] = {}
    for domain, table in _tables().items():
        for word in table["words"]:
            found.setdefault(word, domain)
    return found
