"""Pictures made elsewhere -> images/1: for those who have StableRep, SynthCLIP or other sets.

    CSV of (path, caption) + one folder per view | webdataset tars | Parquet with repeated captions
    -> a catalogue of where each caption's pictures lie -> parts of whole captions -> manifest.json

The bytes of a picture are taken over as they are. Pictures of one caption text are its views, in
the order they are found. What does not decode, and captions with fewer than two pictures, are
listed in rejected.jsonl; nothing is dropped silently.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from synclr_cli import console
from synclr_cli.data import artifacts, images_manifest as shards, storage
from synclr_cli.data.images import DECODE_ERRORS
from synclr_cli.errors import DataError, UsageError
from synclr_cli.import_.index import Caption, Place, catalogue, kind_of

CAPTIONS_PER_GROUP = 16
UNKNOWN_SEED = -1  # of a view whose starting noise nobody wrote down


def run(
    source: Path,
    out: Path,
    *,
    roots: Sequence[Path] = (),
    captions_per_part: int = 256,
    least_views: int = 2,
    overwrite: bool = False,
) -> Path:
    """Import a set of pictures with captions as the images/1 folder `out`, and return it.

    Args:
        source: a .csv (path, caption), a .parquet file, a .tar, or a folder of .parquet or .tar.
        roots: with a .csv, the folders its paths are relative to, one for each view; by default the
            file's own folder, or those folders beside it that hold the first path.
        least_views: captions with fewer pictures are set aside.

    Raises:
        DataError: the source is none of these, or holds no captioned picture.
        UsageError: `out` was imported from something else, or holds the source itself.
    """
    # --- open
    kind, files = kind_of(source)
    if any(_is_inside(out, path) for path in (source, *files)):
        raise UsageError(f"--out {out} holds the source itself", do="choose another --out")
    header = artifacts.Header(
        schema="images",
        config={
            "captions_per_part": captions_per_part,
            "least_views": least_views,
            "roots": [root.name for root in roots],
        },
        engine=f"import:{kind}",
        parents=(artifacts.parent(source, None, _digest(files)),),
    )
    parts = artifacts.Parts(out, "images", header)
    if not overwrite and (out / artifacts.MANIFEST).is_file():
        artifacts.require_same("render", artifacts.read_manifest(out)[1], header, out)
        if shards.is_whole(parts):
            return out
    with shards.one_at_a_time(out, "1/1"):
        if overwrite:
            shards.require_clearable(parts)
            shards.clear(parts)
        return _make(parts, source, kind, files, roots, captions_per_part, least_views)


def _make(
    parts: artifacts.Parts,
    source: Path,
    kind: str,
    files: list[Path],
    roots: Sequence[Path],
    captions_per_part: int,
    least_views: int,
) -> Path:
    """Make what is not there of the parts, and the manifest."""
    header = parts.header
    with catalogue(kind, files, roots) as found:
        if not found.count:
            raise DataError(
                f"{source} holds no picture with a caption",
                got=f"{found.without_caption} without",
            )
        count = found.count
        if found.without_caption:
            console.warn(f"{found.without_caption} pictures have no caption and are left out")

        # --- loop
        total = -(-found.count // captions_per_part)
        todo = parts.missing(total)
        read = _Reader()
        with console.progress("import", total, done=total - len(todo), unit="parts") as meter:
            for index in todo:
                start = index * captions_per_part
                captions = found.captions(start, start + captions_per_part)
                table, facts = _part(captions, start, read, header)
                artifacts.write_parquet(
                    parts.path(index),
                    "images",
                    replace(header, facts=facts),
                    [table],
                    rows_per_group=CAPTIONS_PER_GROUP * max(facts["most_views"], 1),
                )
                meter.advance()

    # --- write
    fewest = []
    for index in range(total):
        facts = artifacts.open_parquet(parts.path(index), "images")[1].facts or {}
        fewest.append(facts.get("fewest_views", 0))
    views = min((n for n in fewest if n), default=0)
    if not views:
        shards.clear(parts)
        raise DataError(
            f"{source}: none of its {count} captions has {least_views} pictures that are"
            " there and decode",
            do="check its paths; with a .csv, --root names the folder they start in",
        )
    shards.write(parts, total, captions=source.name, views=views, classes=[])
    return parts.folder


def _is_inside(folder: Path, path: Path) -> bool:
    """Return whether a path is a folder or in it, however the two are written."""
    folder, path = storage.resolved(folder), storage.resolved(path)
    return folder == path or folder in path.parents


def _digest(files: list[Path]) -> str:
    """Return a digest of a small source's bytes, or of a large one's names and sizes."""
    if len(files) == 1 and files[0].stat().st_size < 1 << 30:
        return storage.digest(files[0])
    listed = "".join(f"{f.name}\0{f.stat().st_size}\n" for f in files)
    return f"sha256:{sha256(listed.encode()).hexdigest()}"


# ----------------------------------------------------------------------------------- reading


class _Reader:
    """Reads pictures' bytes; keeps the last row group, where neighbours mostly lie."""

    def __init__(self) -> None:
        self._group: tuple[Path, int] | None = None
        self._rows: list[dict[str, Any]] = []

    def all(self, places: Iterable[Place]) -> dict[Place, bytes | OSError]:
        """Return the bytes at several places, or why there are none; read as they lie."""
        found: dict[Place, bytes | OSError] = {}
        for place in sorted(places, key=lambda p: (str(p.path), p.first, p.second)):
            try:
                found[place] = self._read(place)
            except OSError as e:
                found[place] = e
        return found

    def _read(self, place: Place) -> bytes:
        if place.path.suffix.lower() == ".parquet":
            return self._from_group(place)
        with place.path.open("rb") as f:
            if place.first < 0:
                return f.read()
            f.seek(place.first)
            return f.read(place.second)

    def _from_group(self, place: Place) -> bytes:
        if self._group != (place.path, place.first):
            self._rows = []  # not two groups at once
            table = storage.parquet(place.path).read_row_group(place.first, ["image"])
            self._rows = table["image"].to_pylist()
            self._group = (place.path, place.first)
        cell = self._rows[place.second]
        if isinstance(cell, bytes):
            return cell
        if isinstance(cell, str):
            cell = {"path": cell}
        if cell and cell.get("bytes"):
            return bytes(cell["bytes"])
        path = place.path.parent / str((cell or {}).get("path") or "")
        return path.read_bytes() if path.is_file() else b""


def _part(
    captions: list[Caption], start: int, read: _Reader, header: artifacts.Header
) -> tuple[pa.Table, dict[str, Any]]:
    """Return a part's rows, and what its header lists as left out."""
    least = header.config["least_views"]
    records, rejected, set_aside, counts = [], [], [], []
    bytes_at = read.all(place for caption in captions for place in caption.places)
    for caption_id, caption in enumerate(captions, start):
        kept = []
        for view, place in enumerate(caption.places):
            try:
                data = bytes_at[place]
                if isinstance(data, OSError):
                    raise data
                with Image.open(io.BytesIO(data)) as picture:
                    size = picture.size
                    picture.verify()
            except DECODE_ERRORS as e:
                missing = isinstance(e, FileNotFoundError)
                reason = "missing" if missing else "does not decode"
                rejected.append({"caption_id": caption_id, "view": view, "reason": reason,
                                 "path": place.path.name})  # fmt: skip
                continue
            kept.append(
                {
                    "caption_id": caption_id,
                    "view": view,
                    "caption": caption.text,
                    "concept": caption.concept,
                    "image": {"bytes": data, "path": None},
                    "width": size[0],
                    "height": size[1],
                    "seed": UNKNOWN_SEED,
                    "mask": None,
                    "score": None,
                }
            )
        if len(kept) < least:
            set_aside.append(
                {"caption_id": caption_id, "caption": caption.text, "views": len(kept)}
            )
            continue
        records += kept
        counts.append(len(kept))
    facts = {
        "rejected": rejected,
        "set_aside": set_aside,
        "fewest_views": min(counts, default=0),
        "most_views": max(counts, default=0),
    }
    return pa.Table.from_pylist(records, schema=artifacts.arrow_schema("images")), facts
