"""Presets: one TOML file is one whole experiment, a table per stage, a source beside each number.

    resolve("train", preset="vitb", sets=["train.steps=100"]).config   # TrainConfig(...)

Values are joined left to right: `defaults < preset table < flags < --set`; each keeps its origin.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synclr_cli import config as configs, settings
from synclr_cli.errors import UsageError

# Installed packages carry the presets inside (pyproject's force-include); a checkout beside.
_FOLDERS = (Path(__file__).parent / "_presets", Path(__file__).parent.parent / "presets")


@dataclass(frozen=True)
class Resolved:
    """A stage's settings, and by key path where each value came from."""

    stage: str
    preset: str  # the preset's name: file stem
    config: configs.StageConfig
    origins: Mapping[str, str]

    def toml(self) -> str:
        """Return the settings as TOML, each line with its origin as a comment."""
        rows: list[tuple[str, str]] = []
        table = None
        for key, value in settings.flatten(self.config).items():
            head, _, name = key.rpartition(".")
            if head != table:
                table = head
                rows.append((f"[{self.stage}{'.' + head if head else ''}]", ""))
            rows.append((f"{name} = {_toml_value(value)}", self.origins[key]))
        width = max(len(left) for left, origin in rows if origin)
        return "\n".join(f"{left:{width}}  # {o}" if o else f"\n{left}" for left, o in rows).strip()


def names() -> list[str]:
    """Return the names of the shipped presets."""
    return sorted(p.stem for p in _folder().glob("*.toml"))


def resolve(
    stage: str,
    *,
    preset: str,
    flags: Mapping[str, tuple[str, Any]] | None = None,
    sets: Sequence[str] = (),
) -> Resolved:
    """Join defaults, a preset's table, flags and `--set` into one stage's config.

    Args:
        stage: subcommand name, also the preset's table name.
        preset: name of a shipped preset, or a path to a TOML file.
        flags: key path -> (flag as typed, value); None values are flags not given.
        sets: `table.key=value` items; those for other stages are checked and passed over.

    Raises:
        UsageError: unknown preset, table or key, or a value out of range.
    """
    path = _find(preset)
    text = _read(path)
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise UsageError(f"preset {preset} is not valid TOML: {e}") from e
    for table, values in tables.items():
        _require_stage(table, f"preset {preset}")
        if not isinstance(values, dict):
            raise UsageError(f"preset {preset}: key {table} is outside a table")
        settings.build(table, _key_paths(table, values))

    values = _key_paths(stage, tables.get(stage, {}))
    comments = _comments(text)
    origins = dict.fromkeys(settings.keys(configs.STAGES[stage]), "default")
    for key in values:
        source = comments.get(f"{stage}.{key}", "")
        origins[key] = f"preset {path.stem}" + (f": {source}" if source else "")
    for key, (flag, value) in (flags or {}).items():
        if value is not None:
            values[key], origins[key] = value, flag
    for item in sets:
        table, key, value = _parse_set(item, stage)
        if table == stage:
            values[key], origins[key] = value, f"--set {item}"
        else:
            settings.build(table, {key: value})
    return Resolved(stage, path.stem, settings.build(stage, values), origins)


def _parse_set(item: str, stage: str) -> tuple[str, str, Any]:
    path, equals, text = item.partition("=")
    table, dot, key = path.strip().partition(".")
    if not equals:
        raise UsageError("--set", got=repr(item), expected="table.key=value")
    if table not in configs.STAGES and path.strip() in settings.keys(configs.STAGES[stage]):
        raise UsageError(f"--set {item}", do=f"write {stage}.{path.strip()}={text}")
    _require_stage(table, f"--set {item}")
    if not dot or not key:
        raise UsageError("--set", got=repr(item), expected="table.key=value")
    if key not in settings.keys(configs.STAGES[table]):
        raise settings.unknown_key(table, key)
    return table, key, settings.parse_value(text.strip())


def _require_stage(table: str, where: str) -> None:
    if table not in configs.STAGES:
        near = difflib.get_close_matches(table, configs.STAGES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"tables are {', '.join(configs.STAGES)}"
        raise UsageError(f"{where}: unknown table {table}", do=hint)


def _folder() -> Path:
    for folder in _FOLDERS:
        if folder.is_dir():
            return folder
    raise AssertionError(f"no presets in {_FOLDERS}")


def _find(preset: str) -> Path:
    if preset.endswith(".toml") or "/" in preset:
        path = Path(preset)
        if not path.is_file():
            raise UsageError(f"no preset file {preset}")
        return path
    path = _folder() / f"{preset}.toml"
    if not path.is_file():
        near = difflib.get_close_matches(preset, names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"shipped are {', '.join(names())}."
        raise UsageError(f"unknown preset {preset}", do=f"{hint} A path to a .toml works too")
    return path


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"cannot read preset {path}: {e}") from e


def _key_paths(stage: str, table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    known = settings.keys(configs.STAGES[stage])
    flat: dict[str, Any] = {}
    for name, value in table.items():
        key = prefix + name
        if isinstance(value, dict) and key not in known:
            flat |= _key_paths(stage, value, key + ".")
        else:
            flat[key] = value
    return flat


def _comments(text: str) -> dict[str, str]:
    """Return the comment behind each `key = value` line, by `table.key`."""
    found: dict[str, str] = {}
    table = ""
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("["):
            table = line.strip("[]").split("]")[0]
        elif "=" in line and "#" in line and not line.startswith("#"):
            key = line.split("=")[0].strip()
            found[f"{table}.{key}"] = line.rsplit(" # ", 1)[-1].strip("# ")
    return found


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {_toml_value(v)}" for k, v in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False)
