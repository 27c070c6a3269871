"""The header that each artifact carries: schema, version, settings, engine, seed, and its parents.

A parent is told by name, digest and its own header, so one file tells the chain back to the word
list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from synclr_cli import __version__, config as configs
from synclr_cli.data import json_text
from synclr_cli.errors import DataError, UsageError
from synclr_cli.safe_text import redacted

VERSIONS = {
    "captions": 2,
    "rejects": 1,
    "backgrounds": 1,
    "images": 2,
    "backbone": 1,
    "checkpoint": 1,
    "features": 1,
    "embeddings": 1,
    "model": 1,
    "report": 1,
    "export": 1,
}


@dataclass(frozen=True)
class Header:
    """Where an artifact came from."""

    schema: str
    config: Mapping[str, Any]  # flat, by key path
    engine: str = ""  # scheme:target
    revision: str = ""  # of the engine: package version, file digest
    seed: int = 0
    parents: tuple[Mapping[str, Any], ...] = ()  # of `parent()`
    facts: Mapping[str, Any] | None = None  # what else belongs in it
    version: int = 0  # 0: the one this program writes
    made_by: str = f"synclr {__version__}"

    def __post_init__(self) -> None:
        if self.version == 0:
            object.__setattr__(self, "version", VERSIONS[self.schema])
        for name in ("config", "engine", "revision", "parents", "facts"):
            object.__setattr__(self, name, redacted(vars(self)[name]))

    def json(self) -> str:
        """Return the header as one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @staticmethod
    def parse(text: str | bytes | None, path: Path) -> Header:
        """Read a header back; refuse schemas and versions this program does not know."""
        if text is None:
            raise DataError(f"{path} has no synclr header", do="make it with synclr")
        try:
            full = json_text.parse(text)
            _require_header(full)
            header = Header(**{**full, "parents": tuple(full["parents"])})
        except (ValueError, TypeError, KeyError) as e:
            raise DataError(f"{path} has an unreadable synclr header ({str(e)[:100]})") from e
        if header.schema not in VERSIONS:
            raise DataError(
                f"{path}: schema", got=repr(header.schema), expected=" | ".join(VERSIONS)
            )
        if header.version != VERSIONS[header.schema]:
            raise DataError(
                f"{path}: version of {header.schema}",
                got=header.version,
                expected=VERSIONS[header.schema],
                do="read it with the synclr that wrote it: " + header.made_by,
            )
        return header


_HEADER_KINDS: dict[str, tuple[type, ...]] = {
    "schema": (str,),
    "config": (dict,),
    "engine": (str,),
    "revision": (str,),
    "seed": (int,),
    "parents": (list,),
    "facts": (dict, type(None)),
    "version": (int,),
    "made_by": (str,),
}


def _require_header(value: Any) -> None:
    """Refuse JSON that is not a header, or whose parents, theirs included, are none.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, dict):
        raise ValueError(f"got {type(value).__name__}, expected a JSON object")
    for name in ("schema", "config", "parents"):
        if name not in value:
            raise ValueError(f"it lacks {name}")
    for name, known in value.items():
        kinds = _HEADER_KINDS.get(name, (object,))
        if not isinstance(known, kinds) or isinstance(known, bool):
            raise ValueError(f"{name} is a {type(known).__name__}")
    for ancestor in value["parents"]:
        if not isinstance(ancestor, dict) or not all(
            isinstance(ancestor.get(name), str) for name in ("name", "digest")
        ):
            raise ValueError("a parent has no name or digest")
        if ancestor.get("header") is not None:
            _require_header(ancestor["header"])


def parent(path: Path, header: Header | None, digest: str) -> dict[str, Any]:
    """Describe an input for the header of what is made from it."""
    text = json.loads(header.json()) if header else None
    return {"name": path.name, "digest": digest, "header": text}


def require_same(stage: str, found: Header, wanted: Header, where: Path) -> None:
    """Refuse to continue work that another config or another input began.

    Raises:
        UsageError: names the keys that differ, a few with their values, or the input.
    """
    differing = configs.differing_keys(stage, found.config, wanted.config)
    keys = [key.removeprefix(f"{stage}.") for key in differing]
    here, there = (
        ", ".join(json.dumps(config.get(key)) for key in keys) if len(keys) < 4 else ""
        for config in (wanted.config, found.config)
    )
    if found.engine != wanted.engine and f"{stage}.engine.name" not in differing:
        differing.append("engine")
    known = [p["digest"] for p in found.parents]
    if known != [p["digest"] for p in wanted.parents]:
        new = [p for p in wanted.parents if p["digest"] not in known] or wanted.parents
        differing.append("the input " + ", ".join(str(p["name"]) for p in new))
    elif "train.init" in differing:  # the same start by another name
        differing.remove("train.init")
    if differing:
        do = "add --overwrite to replace it, or --out for another place"
        if "train.steps" in differing:
            do += f", or --init {where} with another --out to train it further"
        raise UsageError(
            f"{where} was made with other settings ({', '.join(differing)} differ)",
            got=here or None,
            expected=there or None,
            do=do,
        )
