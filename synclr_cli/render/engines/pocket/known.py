"""What a `pocket:` model was taught, from the list beside its weights.

    words.txt: a thing a line, "car: car, automobile, sedan, ..."

The model draws any caption; of what no word here names, it has no image to go by.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

WORDS = Path(__file__).with_name("words.txt")


class Known:
    """The things of one list; none, if there is no list."""

    def __init__(self, path: Path):
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        taught = [line.partition(":") for line in lines if ":" in line]
        self.things = tuple(thing.strip() for thing, _, _ in taught)
        nouns = {noun.strip().lower() for _, _, rest in taught for noun in rest.split(",")}
        nouns |= {f"{noun[:-1]}ies" for noun in nouns if noun.endswith("y")}  # puppies
        choices = "|".join(map(re.escape, sorted(nouns, key=len, reverse=True)))
        self._named = re.compile(rf"\b({choices})(e?s)?\b") if nouns else None

    def names_one(self, caption: str) -> bool:
        """Return whether a caption has a word for one of the things; true if there is no list."""
        return self._named is None or bool(self._named.search(caption.lower()))

    def count_unknown(self, captions: Iterable[str]) -> int:
        """Return how many captions name none of the things."""
        return sum(not self.names_one(caption) for caption in captions)
