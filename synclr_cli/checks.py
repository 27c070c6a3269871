"""Checks of single settings: each refuses with the key, what was got, and what was expected."""

from __future__ import annotations

import difflib

from synclr_cli.errors import UsageError


def at_least(key: str, value: float, low: float) -> None:
    """Refuse a number below `low`."""
    if value < low:
        raise UsageError(key, got=f"{value:g}", expected=f"at least {low:g}")


def within(key: str, value: float, low: float, high: float, *, low_open: bool = False) -> None:
    """Refuse a number outside the range."""
    if not (low <= value <= high) or (low_open and value == low):
        bound = f"above {low:g}" if low_open else f"from {low:g}"
        raise UsageError(key, got=f"{value:g}", expected=f"{bound} to {high:g}")


def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a word that is none of the allowed ones, with the nearest."""
    if value not in allowed:
        near = difflib.get_close_matches(value, allowed, n=1)
        hint = f"did you mean {near[0]}?" if near else ""
        raise UsageError(key, got=repr(value), expected=" | ".join(allowed), do=hint)


def shard(key: str, value: str) -> None:
    """Refuse what is no `I/N`."""
    number, _, of = value.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise UsageError(key, got=repr(value), expected="I/N with I from 1 to N")


def scheme(key: str, value: str) -> None:
    """Refuse what is no `scheme:target`."""
    if ":" not in value:
        raise UsageError(key, got=repr(value), expected="scheme:target", do=f"try {value}:")
