"""A folder of parts in the place of another one: the old goes only when the new is whole.

    folder/.new/ is finished --old parts removed--> .new/swap --files moved--> folder/

Each step may be taken twice, so whoever claims the folder next goes on with a swap that was killed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from synclr_cli.data import manifest, storage
from synclr_cli.data.manifest import MANIFEST, PARTS, UNFINISHED, is_part, note_name
from synclr_cli.errors import DataError, UsageError

NEW = ".new"  # folder of the new result, in the old one's
_SWAP = "swap"  # in it: the old result has gone, the new one is being moved to its place


def require_own(folder: Path, schema: str) -> None:
    """Refuse to overwrite a folder with parts, or a manifest, that synclr did not make.

    Raises:
        UsageError: names one.
    """
    names = storage.sizes(folder)
    try:
        header = manifest.read_header(folder, schema)
        own = _own_parts(folder)
    except DataError as e:
        raise UsageError(
            f"{folder} is not a folder of {schema} ({e})", do="choose another --out"
        ) from e
    foreign = [name for name in names if is_part(name) and name not in own]
    if foreign or (header is None and NEW not in names):
        raise UsageError(
            f"{folder / min(foreign, default='')} was not made by synclr here",
            do="move or delete it, or choose another --out",
        )


def is_due(folder: Path) -> bool:
    """Return whether a whole new result waits to be, or is being, put in the old one's place."""
    return (folder / NEW / MANIFEST).is_file() or (folder / NEW / _SWAP).is_file()


def swap(folder: Path, sidecars: Sequence[str]) -> None:
    """Put the new result in the place of the old one, of which these names go with the parts."""
    new = folder / NEW
    if not (new / _SWAP).is_file():
        storage.remove(folder / MANIFEST)
        names = storage.sizes(folder)
        storage.remove(*(folder / name for name in _own_parts(folder) if name in names))
        storage.remove(*(folder / name for name in (UNFINISHED, PARTS, *sidecars)))
        storage.write_json(new / _SWAP, {})
    staged = storage.sizes(new)
    for name in sorted(staged, key=lambda name: name == MANIFEST):  # it comes last
        if name != _SWAP:
            storage.move(new / name, folder / name)
    storage.remove(new)


def _own_parts(folder: Path) -> set[str]:
    """Return the names of the parts that a folder's list or notes tell of."""
    names = storage.sizes(folder)
    listed = manifest.names_of(manifest.read_parts(folder)) if PARTS in names else ()
    notes = storage.sizes(folder / UNFINISHED) if UNFINISHED in names else {}
    return {*listed, *(n for n in names if is_part(n) and note_name(n) in notes)}
