"""Settings as people write them: key paths and values, checked and made into a stage's config.

{"engine.steps": 50, ...} --build--> config of a stage --flatten--> the same, complete
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from typing import Any

from synclr_cli.config import RUNNING_KEYS, STAGES, StageConfig
from synclr_cli.errors import UsageError


def differing_keys(stage: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return the key paths in which two flat configs of a stage differ, those of running aside."""
    every = dict.fromkeys([*wanted, *found])
    absent = object()
    return [
        f"{stage}.{k}"
        for k in every
        if k not in RUNNING_KEYS[stage] and found.get(k, absent) != wanted.get(k, absent)
    ]


def keys(config_type: type, prefix: str = "") -> dict[str, Any]:
    """Return every key path of a config class with the type of its value."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(config_type)
    for f in dataclasses.fields(config_type):
        if dataclasses.is_dataclass(hints[f.name]):
            found |= keys(typing.cast(type, hints[f.name]), f"{prefix}{f.name}.")
        else:
            found[prefix + f.name] = hints[f.name]
    return found


def flatten(config: object, prefix: str = "") -> dict[str, Any]:
    """Return a config's values by key path; the order is the dataclass's."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value, f"{prefix}{f.name}.")
        else:
            flat[prefix + f.name] = list(value) if isinstance(value, tuple) else value
    return flat


def build(stage: str, values: Mapping[str, Any]) -> StageConfig:
    """Build a stage's config from values by key path, the rest by default.

    Raises:
        UsageError: unknown key (the nearest one is named), wrong type, value out of range.
    """
    types_by_key = keys(STAGES[stage])
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in types_by_key:
            raise unknown_key(stage, key)
        checked[key] = _coerce(f"{stage}.{key}", value, types_by_key[key])
    return typing.cast(StageConfig, _construct(STAGES[stage], checked))


def unknown_key(stage: str, key: str) -> UsageError:
    """Return the error for a key that no config has, with the nearest that exists."""
    known = list(keys(STAGES[stage]))
    # "lr" means "peak_lr" more likely than what spelling alone finds.
    near = [k for k in known if key.split(".")[-1] in k.split(".")[-1].split("_")][:2]
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    named = " or ".join(f"{stage}.{k}" for k in near)
    hint = f"did you mean {named}?" if near else f"its keys are {', '.join(known)}"
    return UsageError(f"unknown key {stage}.{key}", do=hint)


def parse_value(text: str) -> Any:
    """Read the right side of `--set key=value` as TOML, and as a plain string if it is none."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _construct(config_type: type, values: Mapping[str, Any]) -> object:
    hints = typing.get_type_hints(config_type)
    arguments: dict[str, Any] = {}
    for f in dataclasses.fields(config_type):
        hint = hints[f.name]
        if dataclasses.is_dataclass(hint):
            inner = {
                k[len(f.name) + 1 :]: v for k, v in values.items() if k.startswith(f.name + ".")
            }
            arguments[f.name] = _construct(typing.cast(type, hint), inner)
        elif f.name in values:
            arguments[f.name] = values[f.name]
    return config_type(**arguments)


def _coerce(key: str, value: Any, hint: Any) -> Any:
    def wrong(expected: str) -> UsageError:
        return UsageError(key, got=f"{value!r}", expected=expected)

    if hint is bool:
        if not isinstance(value, bool):
            raise wrong("true or false")
        return value
    if hint is int:
        if isinstance(value, float) and value.is_integer():
            return int(value)  # 1e5 is how people write it
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong("a whole number")
        return value
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong("a number")
        if not math.isfinite(value):
            raise wrong("a finite number")
        return float(value)
    if hint is str:
        if not isinstance(value, str):
            raise wrong("text")
        return value
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)
        if not isinstance(value, list | tuple):
            raise wrong('a list, such as ["a", "b"]' if inner[0] is str else "a list of numbers")
        if inner[-1] is ...:  # any number of them
            inner = inner[:1] * len(value)
        if len(value) != len(inner):
            raise wrong(f"a list of {len(inner)} numbers")
        return tuple(_coerce(key, v, t) for v, t in zip(value, inner, strict=True))
    assert typing.get_origin(hint) is dict or isinstance(hint, types.GenericAlias), hint
    if not isinstance(value, dict):
        raise wrong("a table")
    return value
