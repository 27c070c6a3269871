"""What a folder for another library says of itself: the same export again returns at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from synclr_cli.data import artifacts, storage
from synclr_cli.errors import UsageError

EXPORT_FILE = "export.json"  # what the folder was made from


def is_exported(out: Path, record: dict[str, Any], *, overwrite: bool) -> bool:
    """Return whether folder `out` holds the export that `record` names; if not, it is free.

    Raises:
        UsageError: it holds another export, or something else.
    """
    done = out / EXPORT_FILE
    if done.is_file():
        if overwrite:
            return False
        found = storage.read_json(done)
        if {key: found.get(key) for key in record} != record:
            raise UsageError(f"{out} holds another export", do="add --overwrite, or choose --out")
        return True
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} is there, and is no export", do="choose another --out")
    return False


def record_export(
    folder: Path, record: dict[str, Any], source: Mapping[str, Any], **facts: float
) -> None:
    """Write what `is_exported` looks for; `source` is the `parent()` that was exported."""
    header = artifacts.Header("export", {"to": record["to"]}, parents=(source,))
    storage.write_json(folder / EXPORT_FILE, {"header": asdict(header), **record, **facts})
