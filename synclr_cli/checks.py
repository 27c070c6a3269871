"""Checks of single settings: each refuses with the key, what was got, and what was expected."""

from __future__ import annotations

import difflib

from synclr_cli.errors import UsageError


def at_least(key: str, value: float, low: float) -> None:
    """Refuse a number below `low`."""
    if value < low:
        raise UsageError(key, got=f"{value:g}", expected=f"at least {low:g}")


def within(
    key: str,
    value: float,
    low: float,
    high: float,
    *,
    low_open: bool = False,
    high_open: bool = False,
) -> None:
    """Refuse a number outside the range, whose ends are in it unless they are open."""
    if not (low <= value <= high) or (low_open and value == low) or (high_open and value == high):
        bounds = f"{'above' if low_open else 'from'} {low:g} {'to below' if high_open else 'to'}"
        raise UsageError(key, got=f"{value:g}", expected=f"{bounds} {high:g}")


def seed(key: str, value: int) -> None:
    """Refuse what torch's generators do not take."""
    if not 0 <= value < 1 << 64:
        raise UsageError(key, got=value, expected="a whole number from 0 to below 2^64")


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
