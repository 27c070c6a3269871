"""A folder for another library: made by one process, whole or not there, and what it was made from.

with new_folder(out, record, overwrite=overwrite) as folder:
    if folder is not None:          # None: `out` holds this very export
        ... write into folder ...
        record_export(folder, record, source)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from synclr_cli.data import artifacts, locks, storage
from synclr_cli.errors import UsageError

EXPORT_FILE = "export.json"  # what the folder was made from


@contextmanager
def new_folder(out: Path, record: dict[str, Any], *, overwrite: bool) -> Iterator[Path | None]:
    """Give an empty folder that becomes `out` when the block ends well, None if that is done.

    Raises:
        UsageError: another process exports to `out`, or it holds something else.
    """
    if is_exported(out, record, overwrite=overwrite):
        yield None
        return
    name = out.name[:50]
    with locks.locked(out.with_name(f".{name}.lock"), what=out):
        for path in out.parent.glob(".*.partial"):  # of killed processes
            if re.fullmatch(rf"\.{re.escape(name)}\.[0-9a-f]{{16}}\.partial", path.name):
                storage.remove(path)
        if is_exported(out, record, overwrite=overwrite):  # meanwhile
            yield None
            return
        with storage.atomic_folder(out) as partial:
            yield partial


def is_exported(out: Path, record: dict[str, Any], *, overwrite: bool) -> bool:
    """Return whether folder `out` holds the export that `record` names; if not, it is free.

    Raises:
        UsageError: it holds another export, or something else.
    """
    done = out / EXPORT_FILE
    if done.is_file():
        if overwrite:
            return False
        stored = storage.read_json(done)
        if {key: stored.get(key) for key in record} != record:
            raise UsageError(f"{out} holds another export", do="add --overwrite, or choose --out")
        return True
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out} exists and is not an export", do="choose another --out")
    return False


def record_export(
    folder: Path, record: dict[str, Any], source: Mapping[str, Any], **facts: float
) -> None:
    """Write what `is_exported` looks for; `source` is the `parent()` that was exported."""
    header = artifacts.Header("export", {"to": record["to"]}, parents=(source,))
    storage.write_json(folder / EXPORT_FILE, {"header": asdict(header), **record, **facts})
