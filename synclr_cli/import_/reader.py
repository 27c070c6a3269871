"""Locations of images -> a part's rows, and what is left out of it.

The bytes are taken over as they are. An image is looked at just so far as to know that its header
can be read and its checks hold.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from synclr_cli.data import artifacts, storage
from synclr_cli.data.images import DECODE_ERRORS
from synclr_cli.import_.index import Caption, Location, require_inside

LARGEST_IMAGE = 256 << 20  # bytes, encoded
UNKNOWN_SEED = -1  # of a view whose starting noise nobody wrote down


class TooLarge(OSError):
    """An image of more than `LARGEST_IMAGE` bytes."""


@dataclass
class Part:
    """What becomes of some captions."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    views: list[dict[str, Any]] = field(default_factory=list)  # that were refused
    set_aside: list[dict[str, Any]] = field(default_factory=list)  # captions
    most_views: int = 0


class ImageReader:
    """Reads images' bytes; keeps the last row group, where neighbours mostly lie."""

    def __init__(self, *, allow_outside: bool = False):
        self._allow_outside = allow_outside
        self._group: tuple[Path, int] | None = None
        self._cells: list[Any] = []

    def read(self, locations: Iterable[Location]) -> dict[Location, bytes | OSError]:
        """Return the bytes at several locations, or why there are none; read as they lie.

        Raises:
            DataError: a Parquet file is damaged, or names an image outside of its folder.
        """
        data: dict[Location, bytes | OSError] = {}
        for location in sorted(locations, key=lambda at: (str(at.path), at.first, at.second)):
            try:
                data[location] = self._read(location)
            except OSError as e:
                data[location] = e
        return data

    def _read(self, location: Location) -> bytes:
        if location.path.suffix.lower() == ".parquet":
            return self._from_group(location)
        if location.first < 0:
            return _whole_file(location.path)
        if location.second > LARGEST_IMAGE:
            raise TooLarge
        with location.path.open("rb") as f:
            f.seek(location.first)
            return f.read(location.second)

    def _from_group(self, location: Location) -> bytes:
        path, group = location.path, location.first
        if self._group != (path, group):
            self._cells = []  # not two groups at once
            with artifacts.readable(path), storage.parquet(path) as file:
                self._cells = file.read_row_group(group, ["image"])["image"].to_pylist()
            self._group = (path, group)
        cell = self._cells[location.second]
        if isinstance(cell, bytes):
            return cell
        struct: dict[str, Any] = {"path": cell} if isinstance(cell, str) else cell or {}
        if data := struct.get("bytes"):
            return bytes(data)
        if not (name := str(struct.get("path") or "")):
            return b""
        if not self._allow_outside:
            require_inside(name, f"{path} row group {group}, row {location.second}")
        return _whole_file(path.parent / name)


def _whole_file(path: Path) -> bytes:
    with path.open("rb") as f:
        data = f.read(LARGEST_IMAGE + 1)
    if len(data) > LARGEST_IMAGE:
        raise TooLarge
    return data


def read_part(captions: Sequence[Caption], start: int, images: ImageReader, least: int) -> Part:
    """Return the rows of captions numbered from `start` on, and what is left out.

    Args:
        least: captions with fewer images are set aside.
    """
    part = Part()
    data_at = images.read(at for caption in captions for at in caption.locations)
    for caption_id, caption in enumerate(captions, start):
        kept = []
        for view, location in enumerate(caption.locations):
            data = data_at[location]
            try:
                size = _size(data)
            except DECODE_ERRORS as e:
                part.views.append(
                    {"caption_id": caption_id, "view": view, "reason": _reason(e),
                     "path": location.path.name}
                )  # fmt: skip
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
            part.set_aside.append(
                {"caption_id": caption_id, "caption": caption.text, "views": len(kept)}
            )
            continue
        part.rows += kept
        part.most_views = max(part.most_views, len(kept))
    return part


def _size(data: bytes | OSError) -> tuple[int, int]:
    """Return (width, height) of an encoded image; one of `DECODE_ERRORS` if it is none."""
    if isinstance(data, OSError):
        raise data
    with Image.open(io.BytesIO(data)) as image:
        size = image.size
        image.verify()
    return size


def _reason(e: BaseException) -> str:
    if isinstance(e, FileNotFoundError):
        return "missing"
    return "too large" if isinstance(e, TooLarge) else "does not decode"
