"""Fields of a config: default, bound, unit and meaning in one place, and one check for all of them.

    steps: int = setting(500_000, "[1, 1e9]", "updates of the student")
    head_norm: str = setting("batch", ("batch", "layer"), "norm of the heads")

A bound is an interval in the usual notation (`(0, 1]` excludes 0), a list of words, or a `Form`.
Upper bounds are far above what anybody runs; they are there so that a slip of the finger ends in
one line and not in an allocation of terabytes.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from synclr_cli.errors import UsageError

T = TypeVar("T")
LONGEST_TEXT = 4096  # characters: the longest path of Linux; no name or list is longer
LONGEST_LIST = 100  # values


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, and perhaps one number beside them that means "automatic"."""

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False
    also: float | None = None

    @staticmethod
    def parse(text: str) -> Interval:
        """Read `[low, high]`, `(low, high]`, ..., or `0 or [8, 4096]`."""
        match = re.fullmatch(r"(?:(\S+) or )?([\[(])(\S+), (\S+)([\])])", text)
        assert match, text
        also, left, low, high, right = match.groups()
        top = 2.0**64 if high == "2^64" else float(high)
        return Interval(float(low), top, left == "(", right == ")", float(also) if also else None)

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return value == self.also or (above and below)

    def __str__(self) -> str:
        also = "" if self.also is None else f"{_digits(self.also)} or "
        low = f"{'above' if self.low_open else 'from'} {_digits(self.low)}"
        return f"{also}{low} {'to below' if self.high_open else 'to'} {_digits(self.high)}"


@dataclass(frozen=True)
class Form:
    """Text of a form that only a function can tell."""

    text: str  # what is expected
    matches: Callable[[str], bool]
    hint: str = ""  # what to do; {} is the value


@dataclass(frozen=True)
class Setting:
    """What a field says about itself, beside its type and default."""

    bound: Interval | tuple[str, ...] | Form | None
    meaning: str
    unit: str = ""
    running: bool = False
    grows: bool = False
    same: Callable[[str], str] | None = None

    def require(self, key: str, value: Any, got: str) -> None:
        """Refuse a value of the right type that is out of bounds.

        Raises:
            UsageError: names the key, the value and the bound.
        """
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, str) and len(one) > LONGEST_TEXT:
                raise UsageError(key, got=got, expected=f"at most {LONGEST_TEXT} characters")
            if isinstance(one, str) and "\0" in one:
                raise UsageError(key, got=got, expected="text without NUL characters")
            if isinstance(self.bound, Interval) and one not in self.bound:
                whole = "a whole number " if self.bound.high == 2**64 else ""
                raise UsageError(key, got=got, expected=f"{whole}{self.bound}")
            if isinstance(self.bound, tuple) and one not in self.bound:
                near = difflib.get_close_matches(one[:99], self.bound, n=1)
                hint = f"did you mean {near[0]}?" if near else ""
                raise UsageError(key, got=got, expected=" | ".join(self.bound), do=hint)
            if isinstance(self.bound, Form) and not self.bound.matches(one):
                hint = self.bound.hint.format(one) if len(one) < 60 else ""
                raise UsageError(key, got=got, expected=self.bound.text, do=hint)


def setting(
    default: T,
    bound: str | tuple[str, ...] | Form | None,
    meaning: str,
    *,
    unit: str = "",
    running: bool = False,
    grows: bool = False,
    same: Callable[[str], str] | None = None,
) -> T:
    """Declare a field of a config.

    Args:
        default: of the field; its type is the annotation's.
        bound: an interval such as "(0, 1]", the words allowed, a form, or None; of every element
            where the value is a list.
        meaning: what it does, for the settings page; the special values' meaning too.
        unit: of the number: "px", "min", "images".
        running: how a machine runs the work, not what the work is: no part of presets, nor of what
            an artifact says of its making; it may differ when work is continued.
        grows: part of the recipe, but a larger value continues finished work.
        same: normal form of a text; two values of one form are one setting.
    """
    interval = Interval.parse(bound) if isinstance(bound, str) else bound
    metadata = {"setting": Setting(interval, meaning, unit, running, grows, same)}
    if isinstance(default, dict):
        return typing.cast(T, dataclasses.field(default_factory=dict, metadata=metadata))
    return dataclasses.field(default=default, metadata=metadata)


class Checked:
    """Base of the configs: built only from values of the right types and within their bounds."""

    TABLE: ClassVar[str]  # of the preset: "train", "render.engine"

    def __post_init__(self) -> None:
        """Check every field alone; a config's own `__post_init__` adds rules that join fields.

        Raises:
            UsageError: names the first key that is wrong.
        """
        for name, hint in types_of(type(self)).items():
            if not (isinstance(hint, type) and issubclass(hint, Checked)):
                key, given = f"{self.TABLE}.{name}", getattr(self, name)
                value = coerce(key, given, hint)
                info(type(self), name).require(key, value, shown(given))
                object.__setattr__(self, name, value)


def info(config_type: type, name: str) -> Setting:
    """Return what a field says about itself."""
    return _fields(config_type)[name][1]


def types_of(config_type: type) -> dict[str, Any]:
    """Return the type of every field, by name."""
    return {name: hint for name, (hint, _) in _fields(config_type).items()}


def _fields(config_type: type) -> dict[str, tuple[Any, Setting]]:
    if config_type not in _KNOWN:
        hints = typing.get_type_hints(config_type)
        fields = dataclasses.fields(typing.cast(Any, config_type))
        _KNOWN[config_type] = {f.name: (hints[f.name], f.metadata.get("setting")) for f in fields}
    return _KNOWN[config_type]


_KNOWN: dict[type, dict[str, tuple[Any, Any]]] = {}  # read once for each class


def coerce(key: str, value: Any, hint: Any) -> Any:
    """Return a value as its field's type has it: 1e5 as 100000, a list as a tuple.

    Raises:
        UsageError: the value is of another type, or no finite number.
    """
    if typing.get_origin(hint) is tuple:
        return _tuple(key, value, typing.get_args(hint))
    if hint is int and isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)  # 1e5 is how people write it
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > 2**64:
            raise UsageError(key, got=shown(value), expected="a finite number")
        return float(value)
    if typing.get_origin(hint) is dict:
        if not isinstance(value, Mapping) or not all(_is_option(v) for v in value.values()):
            expected = "a table of text, numbers, true or false, and lists of these"
            raise UsageError(key, got=shown(value), expected=expected)
        return dict(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
        raise UsageError(key, got=shown(value), expected=names[hint])
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(key, got=shown(value), expected="a finite number")
    return value


def _tuple(key: str, value: Any, hints: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a list as a tuple: of any number of values, or of two numbers in rising order."""
    any_number = hints[-1] is ...
    words = hints[0] is str
    if not isinstance(value, list | tuple):
        expected = 'a list, such as ["a", "b"]' if words else "a list of numbers"
        raise UsageError(key, got=shown(value), expected=expected)
    if not any_number and len(value) != len(hints):
        raise UsageError(key, got=shown(value), expected=f"a list of {len(hints)} numbers")
    if len(value) > LONGEST_LIST:
        raise UsageError(key, got=f"{len(value)} values", expected=f"at most {LONGEST_LIST}")
    values = tuple(coerce(key, one, hints[0]) for one in value)
    if not any_number and values[0] > values[1]:
        raise UsageError(key, got=shown(value), expected="two numbers, the smaller first")
    return values


def _is_option(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= LONGEST_LIST and not any(isinstance(v, list | tuple) for v in value) \
            and all(map(_is_option, value))  # fmt: skip
    if isinstance(value, int | float):
        return abs(value) < 2**64  # false for nan
    return isinstance(value, str) and len(value) <= LONGEST_TEXT


def shown(value: object) -> str:
    """Return a value for a message: at most 60 characters, whatever it is."""
    if isinstance(value, int) and value.bit_length() > 100:  # Python itself refuses to print some
        return f"a number of {value.bit_length()} bits"
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return "a value nested too deeply, or too long"
    return text if len(text) <= 60 else text[:57] + "..."


def _digits(number: float) -> str:
    """Return a number as TOML and people write it."""
    if number == 2**64:
        return "2^64"
    return f"{int(number):_}" if number >= 1e5 and number == int(number) else f"{number:g}"


def is_shard(value: str) -> bool:
    """Return whether a text is I/N with I from 0 to N, and N from 1 to a million."""
    number, _, of = value.partition("/")
    short = len(value) <= 15 and number.isdecimal() and of.isdecimal()
    return short and int(number) <= int(of) and 1 <= int(of) <= 1_000_000


def from_one(shard: str) -> str:
    """Return I/N with I from 1 on: who counts from 0, as arrays of jobs do, means N by it.

    So both 1..N and 0..N-1 name every share once.
    """
    number, _, of = shard.partition("/")
    return f"{int(number) or int(of)}/{int(of)}"


def file_names(value: str) -> str:
    """Return `PATH:WEIGHT,PATH+PATH,...` with the files' names alone.

    What a file holds is compared by digest; where it lies is not a setting.
    """
    return re.sub(r"[^,+]*/", "", value)


SHARD = Form("I/N with I from 1 to N, or from 0 to N-1", is_shard)
SCHEME = Form("scheme:target", lambda value: ":" in value, "try {}:")
