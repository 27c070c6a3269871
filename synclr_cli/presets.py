"""Presets: one TOML file is one whole recipe, a table per stage, a source beside each number.

    resolve("train", preset="vitb", sets=["train.steps=100"]).config   # TrainConfig(...)

Values are joined left to right: `defaults < preset table < flags < --set`; each keeps its origin.
How a machine runs a recipe (`fields.setting(running=True)`) is in no shipped preset.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synclr_cli import config as configs, console
from synclr_cli.errors import UsageError
from synclr_cli.fields import shown

if TYPE_CHECKING:  # imported where a file is read: `--help` reads none
    from tomlkit.container import Container
    from tomlkit.items import Item

# Installed packages carry the presets inside (pyproject's force-include); a checkout beside.
_FOLDERS = (Path(__file__).parent / "_presets", Path(__file__).parent.parent / "presets")
LARGEST_FILE = 1 << 20  # bytes


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
        for key, value in configs.flatten(self.config).items():
            head, _, name = key.rpartition(".")
            if head != table:
                table = head
                rows.append((f"[{self.stage}{'.' + head if head else ''}]", ""))
            rows.append((f"{name} = {toml_value(value)}", self.origins[key]))
        width = max(len(left) for left, origin in rows if origin)
        return "\n".join(f"{left:{width}}  # {o}" if o else f"\n{left}" for left, o in rows).strip()


@dataclass(frozen=True)
class Preset:
    """A preset file: by stage and key path, the values and their sources."""

    name: str
    values: Mapping[str, Mapping[str, Any]]
    sources: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class SettingRow:
    """One setting, as the settings page shows it."""

    key: str  # train.steps
    type: str  # whole number | number | true or false | text | list | table
    bound: str  # "from 1 to 1_000"; "" where any value of the type will do
    unit: str
    meaning: str
    running: bool  # how a machine runs it: in no preset
    default: str  # as TOML
    presets: Mapping[str, tuple[str, str]]  # name -> (value as TOML, source)


def names() -> list[str]:
    """Return the names of the shipped presets."""
    return sorted(p.stem for p in folder().glob("*.toml"))


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
    file = read(preset)
    for table, table_values in file.values.items():
        configs.build(table, table_values)  # a mistake in another stage's table is one, too
    values = dict(file.values.get(stage, {}))
    sources = file.sources.get(stage, {})
    origins = dict.fromkeys(configs.keys(stage), "default")
    for key in values:
        source = sources.get(key, "")
        origins[key] = f"preset {file.name}" + (f": {source}" if source else "")
    for key, (flag, value) in (flags or {}).items():
        if value is not None:
            values[key], origins[key] = value, flag
    others: dict[str, dict[str, Any]] = {}  # by table, what the user set of it
    for item in sets:
        table, key, value = _parse_set(item, stage)
        if table == stage:
            values[key], origins[key] = value, f"--set {' '.join(item.split())}"
        else:
            others.setdefault(table, {})[key] = value
    for table, own in others.items():  # a mistake there is one, too
        preset_values = file.values.get(table, {})
        joined = {**preset_values, **own}
        joined |= _scaled_warmup(table, joined, preset_values, set(own))
        configs.build(table, joined)
    preset_values = file.values.get(stage, {})
    changed = {key for key, origin in origins.items() if not origin.startswith("preset ")}
    for key, value in _scaled_warmup(stage, values, preset_values, changed).items():
        length = _WARMUPS[stage][1]
        what = f"{preset_values[key]:g} of {preset_values[length]:g} {length}"
        values[key], origins[key] = value, f"scaled with {stage}.{length}; the preset: {what}"
        console.note(f"{stage}.{key} = {value:g}: scaled with {length}, from {what}")
    return Resolved(stage, file.name, configs.build(stage, values), origins)


# A stage's warm-up and the length it is a part of.
_WARMUPS = {
    "train": ("warmup_steps", "steps"),
    "finetune": ("warmup_epochs", "epochs"),
    "segment": ("warmup_steps", "steps"),
}


def _scaled_warmup(
    stage: str, values: Mapping[str, Any], preset: Mapping[str, Any], changed: set[str]
) -> dict[str, Any]:
    """Return a preset's warm-up, shortened, where the user set a length it does not fit into.

    It keeps its share of the preset's length. A warm-up that the user set is left as it is.
    """
    warmup, length = _WARMUPS.get(stage, ("", ""))
    own = values.get(length)
    if (
        warmup not in preset
        or length not in preset
        or warmup in changed
        or isinstance(own, bool)
        or not isinstance(own, int | float)
        or not 0 < own <= preset[warmup] < preset[length]
    ):
        return {}
    scaled = preset[warmup] * own / preset[length]
    return {warmup: int(scaled) if isinstance(preset[warmup], int) else scaled}


def read(preset: str) -> Preset:
    """Read a shipped preset by its name, or a file by its path.

    Raises:
        UsageError: it is not there, is not TOML, or has a table that is not a stage.
    """
    import tomlkit

    path = _find(preset)
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise UsageError(f"preset {path}", expected=f"at most {LARGEST_FILE} bytes")
        document = tomlkit.parse(path.read_text(encoding="utf-8"))
        tables = document.unwrap()
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"cannot read preset {path}: {e}") from e
    except (tomlkit.exceptions.TOMLKitError, ValueError, RecursionError) as e:
        raise UsageError(f"preset {path} is not valid TOML: {_reason(e)}") from e
    values: dict[str, dict[str, Any]] = {}
    sources: dict[str, dict[str, str]] = {}
    for table, content in tables.items():
        _require_stage(table, f"preset {path}")
        if not isinstance(content, dict):
            raise UsageError(f"preset {path}: key {table} is outside a table")
        values[table] = _key_paths(content, set(configs.keys(table)))
        sources[table] = {}
    for key, item in _items(document):
        stage, _, name = key.partition(".")
        sources[stage][name] = item.trivia.comment.strip("# \t")
    return Preset(path.stem, values, sources)


def setting_rows(stage: str) -> Iterator[SettingRow]:
    """Yield every setting of a stage: type, bound, unit, meaning, default, value in each preset."""
    defaults = configs.flatten(configs.TABLES[stage]())
    shipped = {name: read(name) for name in names()}
    for key, setting in configs.keys(stage).items():
        bound = setting.bound
        yield SettingRow(
            key=f"{stage}.{key}",
            type=_type_name(defaults[key]),
            bound=" | ".join(map(str, bound)) if isinstance(bound, tuple) else str(bound or ""),
            unit=setting.unit,
            meaning=setting.meaning,
            running=setting.running,
            default=toml_value(defaults[key]),
            presets={
                name: (toml_value(file.values[stage][key]), file.sources[stage].get(key, ""))
                for name, file in shipped.items()
                if key in file.values[stage]
            },
        )


def toml_value(value: Any) -> str:
    """Return a setting's value as TOML on one line."""
    import tomlkit

    if isinstance(value, dict):
        table = tomlkit.inline_table()
        table.update(value)
        return str(table.as_string())
    return str(tomlkit.item(value).as_string())


def parse_value(text: str) -> Any:
    """Read the right side of `--set key=value` as TOML, and as a plain string if it is none."""
    import tomlkit

    try:
        return tomlkit.parse(f"value = {text}\n").unwrap()["value"]
    except (tomlkit.exceptions.TOMLKitError, ValueError, RecursionError):
        return text


def folder() -> Path:
    """Return where the shipped presets lie."""
    for candidate in _FOLDERS:
        if candidate.is_dir():
            return candidate
    raise AssertionError(f"no presets in {_FOLDERS}")


def _parse_set(item: str, stage: str) -> tuple[str, str, Any]:
    path, equals, text = item.partition("=")
    table, dot, key = path.strip().partition(".")
    if not equals:
        raise UsageError("--set", got=shown(item), expected="table.key=value")
    if table not in configs.TABLES and path.strip() in configs.keys(stage):
        raise UsageError(
            f"--set {path.strip()} without its table", do=f"write {stage}.{path.strip()}={text}"
        )
    _require_stage(table, "--set")
    if not dot or not key:
        raise UsageError("--set", got=shown(item), expected="table.key=value")
    if key not in configs.keys(table):
        raise configs.unknown_key(table, key)
    return table, key, parse_value(text.strip())


def _require_stage(table: str, where: str) -> None:
    if table not in configs.TABLES:
        near = difflib.get_close_matches(table[:99], configs.TABLES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"tables are {', '.join(configs.TABLES)}"
        raise UsageError(f"{where}: unknown table {table if len(table) < 60 else '...'}", do=hint)


def _find(preset: str) -> Path:
    if preset.endswith(".toml") or "/" in preset:
        path = Path(preset)
        if not path.is_file():
            raise UsageError(f"no preset file {preset}")
        return path
    path = folder() / f"{preset}.toml"
    if not path.is_file():
        near = difflib.get_close_matches(preset, names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"shipped are {', '.join(names())}."
        raise UsageError(f"unknown preset {preset}", do=f"{hint} A path to a .toml works too")
    return path


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = str(error)
    return text if len(text) < 120 else f"{text[:117]}..."


def _key_paths(table: Mapping[str, Any], known: set[str], prefix: str = "") -> dict[str, Any]:
    """Return a table's values by key path; a table that is itself a setting stays whole."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        key = prefix + name
        if isinstance(value, dict) and key not in known:
            flat |= _key_paths(value, known, key + ".")
        else:
            flat[key] = value
    return flat


def _items(container: Container, prefix: str = "") -> Iterator[tuple[str, Item]]:
    """Yield (key path, item) of everything below, outer tables' own lines before inner ones."""
    from tomlkit.items import Table

    for key, item in container.body:
        if key is None:  # a blank line or a comment of its own
            continue
        path = prefix + ".".join(part.key for part in key)
        if isinstance(item, Table):
            yield from _items(item.value, f"{path}.")
        else:
            yield path, item


def _type_name(value: Any) -> str:
    for kind, name in (
        (bool, "true or false"), (int, "whole number"), (float, "number"), (str, "text"),
        (list, "list"),
    ):  # fmt: skip
        if isinstance(value, kind):
            return name
    return "table"
