"""The manifest: what says that an images/1 folder is whole, and lists what was left out of it.

part headers (rejected views, captions set aside) and digests -> rejected.jsonl -> manifest.json

The digest of a part is noted in a hidden file beside it by whoever wrote it, so that the last of a
thousand jobs need not read what all the others wrote. The manifest takes the notes' place.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from synclr_cli import console
from synclr_cli.data import artifacts, locks, storage
from synclr_cli.data.artifacts import MANIFEST
from synclr_cli.errors import DataError, UsageError

REJECTED = "rejected.jsonl"


def write(
    parts: artifacts.Parts, total: int, *, captions: str, views: int, classes: Sequence[str]
) -> None:
    """Write the manifest of `total` finished parts, last of all.

    Args:
        captions: name of the file the captions came from.
        views: pictures of each caption that were asked for.
        classes: concept by mask id, from 1 on; kept only if there are masks.
    """
    listed: list[dict[str, Any]] = []
    reasons: Counter[str] = Counter()
    set_aside = 0
    masked = False
    with (
        storage.atomic_file(parts.folder / REJECTED) as partial,
        partial.open("w", encoding="utf-8") as left_out,
    ):
        for index in range(total):
            path = parts.path(index)
            file, header = artifacts.open_parquet(path, "images")
            facts = header.facts or {}
            for what, key in (("rejected view", "rejected"), ("caption set aside", "set_aside")):
                for entry in facts.get(key, []):
                    line = json.dumps({"what": what, **entry}, ensure_ascii=False)
                    left_out.write(line + "\n")
            reasons.update(r["reason"].split(" of ")[0] for r in facts.get("rejected", []))
            set_aside += len(facts.get("set_aside", []))
            if not masked and file.metadata.num_rows:
                masked = storage.table(path, ["mask"])["mask"].null_count == 0
            listed.append(
                {"name": path.name, "rows": file.metadata.num_rows, "digest": _digest(path)}
            )
    if reasons or set_aside:
        console.note(
            f"{reasons.total()} views rejected, {set_aside} captions set aside: see {REJECTED}"
        )
    else:
        (parts.folder / REJECTED).unlink()
    whole = sha256("".join(f"{p['name']}\0{p['digest']}\n" for p in listed).encode())
    manifest = {
        "header": json.loads(parts.header.json()),
        "digest": f"sha256:{whole.hexdigest()}",
        "captions": captions,
        "views": views,
        "pictures": sum(p["rows"] for p in listed),
        "rejected": dict(reasons),
        "set_aside": set_aside,
        "classes": list(classes) if masked else [],
        "parts": listed,
    }
    storage.write_json(parts.folder / MANIFEST, manifest)
    for index in range(total):
        forget_digest(parts.path(index))


def is_whole(parts: artifacts.Parts) -> bool:
    """Return whether there is a manifest, and every part that it lists."""
    if not (parts.folder / MANIFEST).is_file():
        return False
    there = {part.name for part in parts.present()}
    return there.issuperset(artifacts.read_manifest(parts.folder)[0])


def note_digest(path: Path) -> None:
    """Note the digest of a part that was just written."""
    digest = storage.digest(path)
    with storage.atomic_file(_note(path)) as partial:
        partial.write_text(digest, encoding="utf-8")


def forget_digest(path: Path) -> None:
    """Remove the note of a part's digest, before the part is written anew."""
    _note(path).unlink(missing_ok=True)


def _note(path: Path) -> Path:
    return path.with_name(f".{path.stem}.digest")


def _digest(path: Path) -> str:
    note = _note(path)
    return note.read_text(encoding="utf-8") if note.is_file() else storage.digest(path)


def require_clearable(parts: artifacts.Parts) -> None:
    """Refuse to clear a folder that holds what synclr did not make.

    Raises:
        UsageError: names it.
    """
    listed: set[str] = set()
    if (parts.folder / MANIFEST).is_file():
        try:
            listed = set(artifacts.read_manifest(parts.folder)[0])
        except DataError as e:
            raise UsageError(
                f"{parts.folder} is no folder of pictures ({e})", do="choose another --out"
            ) from e
    for part in parts.present():
        if part.name not in listed:
            artifacts.require_replaceable(part, "images")


@contextmanager
def one_at_a_time(folder: Path, shard: str) -> Iterator[None]:
    """Keep out every other process that would make the same parts; other shares of the N may.

    Raises:
        UsageError: there is one.
    """
    number, _, jobs = shard.partition("/")
    with locks.locked(folder / f".{number}-of-{jobs}.lock"):
        others = folder.glob(".*-of-*.lock") if storage.is_local(folder) else ()
        for other in others:
            if not other.name.endswith(f"-of-{jobs}.lock") and locks.is_locked(other):
                raise UsageError(
                    f"another synclr works in {folder}", got=f"--shard {shard}",
                    expected=f"a share of {other.stem.rpartition('-')[2]} like its own",
                    do="wait for it, or choose another --out",
                )  # fmt: skip
        yield


def clear(parts: artifacts.Parts) -> None:
    """Remove what an earlier run made, the manifest first; see `require_clearable`."""
    folder = parts.folder
    with storage.disk_errors(folder):
        for name in (MANIFEST, REJECTED):
            (folder / name).unlink(missing_ok=True)
        for part in [*parts.present(), *folder.glob(".part-*")]:
            part.unlink()
