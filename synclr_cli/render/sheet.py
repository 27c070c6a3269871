"""A contact sheet: rows are captions with their words, columns their views.

images/1 folder -> the first captions of evenly spaced parts -> one PNG
"""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from synclr_cli.data import artifacts, storage
from synclr_cli.data.images import DECODE_ERRORS
from synclr_cli.data.manifest import open_dataset

CELL = 160  # pixels of an image on the sheet
GAP, MARGIN, TEXT_WIDTH, LINE = 10, 24, 240, 20
PAPER, INK, FAINT = (250, 250, 248), (28, 28, 30), (130, 130, 134)


@dataclass(frozen=True)
class Shown:
    """One row of the sheet."""

    caption_id: int
    caption: str
    concept: str
    images: list[Image.Image]


def contact_sheet(images_folder: Path, out_png: Path, captions: int = 8, views: int = 4) -> Path:
    """Draw a sheet of captions x views of a finished images/1 folder, and return its path.

    Raises:
        DataError: no finished images/1 folder.
    """
    rows = spread(images_folder, captions, views)
    columns = max((len(r.images) for r in rows), default=0)
    width = 2 * MARGIN + TEXT_WIDTH + columns * (CELL + GAP)
    height = 2 * MARGIN + 34 + len(rows) * (CELL + GAP)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    title, words, small = _font(17), _font(15), _font(12)
    draw.text((MARGIN, MARGIN - 8), f"{images_folder.name}: one caption a row", INK, title)
    for i, row in enumerate(rows):
        y = MARGIN + 34 + i * (CELL + GAP)
        draw.text((MARGIN, y), row.concept, FAINT, small)
        lines = textwrap.wrap(row.caption, 30)
        if len(lines) > 6:
            lines = [*lines[:5], lines[5][:27] + "..."]
        for j, line in enumerate(lines):
            draw.text((MARGIN, y + 20 + j * LINE), line, INK, words)
        for column, image in enumerate(row.images):
            sheet.paste(_fitted(image), (MARGIN + TEXT_WIDTH + column * (CELL + GAP), y))
    with storage.atomic_file(out_png) as partial:
        sheet.save(partial, "PNG")
    return out_png


def spread(images_folder: Path, captions: int, views: int) -> list[Shown]:
    """Return so many captions from all over the set, each with its first views."""
    parts = open_dataset(images_folder, "images", ()).paths()
    shown: list[Shown] = []
    for i, path in enumerate(parts):
        share = captions * (i + 1) // len(parts) - captions * i // len(parts)
        if share:
            with artifacts.readable(path):
                shown += _some(path, share, views)
    return shown


def _some(path: Path, captions: int, views: int) -> list[Shown]:
    file, _ = artifacts.open_parquet(path, "images")
    ids = file.read(columns=["caption_id"])["caption_id"].to_pylist()
    distinct = list(dict.fromkeys(ids))
    stride = max(len(distinct) // captions, 1)
    chosen = set(distinct[::stride][:captions])
    by_caption: dict[int, Shown] = {}
    for group in range(file.num_row_groups):
        columns = ["caption_id", "caption", "concept", "image"]
        for row in file.read_row_group(group, columns).to_pylist():
            if row["caption_id"] in chosen:
                shown = by_caption.setdefault(
                    row["caption_id"],
                    Shown(row["caption_id"], row["caption"], row["concept"], []),
                )
                if len(shown.images) < views:
                    shown.images.append(_decoded((row["image"] or {}).get("bytes") or b""))
    return list(by_caption.values())


def _decoded(data: bytes) -> Image.Image:
    """Return a stored image, an empty one where it does not decode."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except DECODE_ERRORS:
        return Image.new("RGB", (CELL, CELL), FAINT)
    return image


def _fitted(image: Image.Image) -> Image.Image:
    """Return an image as a square cell, cropped in the middle."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.convert("RGB").crop((left, top, left + side, top + side))
    way = Image.Resampling.LANCZOS if side >= CELL / 2 else Image.Resampling.BICUBIC
    return square.resize((CELL, CELL), way)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # Pillow's own, so a sheet looks alike everywhere
