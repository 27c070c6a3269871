"""Prompts: an instruction, a few demonstrations, and the open line a model completes.

    Describe, in one sentence, a photo of the object.

    heron, misty pond => caption with heron: A heron stands motionless at the edge of a ...
    ... (two more)
    whippet, garden lawn => caption with whippet:

The concept is said again before the caption: a small model then names it more often (with SmolLM2
68 % instead of 56 % of first draws passed the gate, docs/captions.md).
Three templates: c (concept), c_bg (and background), c_rel (and positional relation); c has its own
demonstrations for objects, places and textures, so there are five banks. The demonstrations are
ours (examples.toml); a user may bring others in the same form.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources

from synclr_cli.captions.concepts import plain_name
from synclr_cli.data import storage
from synclr_cli.errors import DataError

ARROW = " =>"
LEAD = "caption with"

# Bank -> fields of a demonstration, and the line that opens its prompts.
BANKS = {
    "object": (2, "Describe a photo of the object in one vivid sentence."),
    "place": (2, "Describe a photo of the place in one vivid sentence."),
    "texture": (2, "Describe a photo that shows the texture in one vivid sentence."),
    "background": (
        3, "Describe a photo of the object in front of the given background in one vivid sentence."
    ),
    "relation": (
        3, "Describe a photo of the object in the given position to other things in one sentence."
    ),
}  # fmt: skip


class Bank:
    """All demonstrations, numbered through: objects, places, textures, backgrounds, relations."""

    names = tuple(BANKS)

    def __init__(self, tables: dict[str, list[list[str]]], where: str):
        self._lines: list[str] = []
        self.captions: list[str] = []
        self._spans: dict[str, tuple[int, int]] = {}
        for name, (fields, _) in BANKS.items():
            rows = tables.get(name, [])
            for number, row in enumerate(rows, start=1):
                good = isinstance(row, list) and len(row) == fields
                if not good or not all(isinstance(x, str) and x.strip() for x in row):
                    raise DataError(
                        f"{where}: {name} demonstration {number}",
                        got=row,
                        expected=f"a list of {fields} texts",
                    )
            self._spans[name] = (len(self._lines), len(rows))
            self._lines += [f"{_line(row[0], ', '.join(row[1:-1]))} {row[-1]}" for row in rows]
            self.captions += [row[-1] for row in rows]
        self._prefixes: dict[tuple[str, tuple[int, ...]], str] = {}
        self._where = where

    def span(self, name: str) -> tuple[int, int]:
        """Return a bank's first id and size."""
        return self._spans[name]

    def require(self, count: int) -> None:
        """Refuse a file with fewer demonstrations than a prompt shows.

        Raises:
            DataError: names the bank.
        """
        for name, (_, size) in self._spans.items():
            if size < count:
                raise DataError(
                    f"{self._where}: {name} demonstrations",
                    got=size,
                    expected=f"at least {count} (captions.examples)",
                )

    def prefix(self, name: str, examples: tuple[int, ...]) -> str:
        """Return a prompt up to its open line: what all prompts with these examples share."""
        key = (name, examples)
        if key not in self._prefixes:
            if len(self._prefixes) > 4096:  # a bounded cache: blocks come and go in order
                self._prefixes.clear()
            shown = [self._lines[i] for i in examples]
            self._prefixes[key] = "\n".join([BANKS[name][1], "", *shown, ""])
        return self._prefixes[key]

    def prompt(self, name: str, examples: tuple[int, ...], concept: str, companion: str) -> str:
        """Return a whole prompt; it ends with a colon, and the model writes on from there."""
        return self.prefix(name, examples) + _line(concept, companion)


def _line(concept: str, companion: str) -> str:
    subject = f"{concept}, {companion}" if companion else concept
    return f"{subject}{ARROW} {LEAD} {plain_name(concept)}:"


@cache
def shipped() -> Bank:
    """Return the demonstrations that come with the package."""
    file = resources.files(__package__) / "examples.toml"
    return Bank(tomllib.loads(file.read_text(encoding="utf-8")), "examples.toml")


def read(path: str) -> Bank:
    """Read a user's demonstrations; "" means those of the package.

    Raises:
        DataError: no file, not TOML, a row of the wrong form, an unknown table.
    """
    if not path:
        return shipped()
    try:
        tables = tomllib.loads(storage.place(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise DataError(f"cannot read demonstrations {path} ({e})") from e
    unknown = [name for name in tables if name not in BANKS]
    if unknown:
        raise DataError(f"{path}: tables", got=", ".join(unknown), expected=" | ".join(BANKS))
    return Bank(tables, path)
