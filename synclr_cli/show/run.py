"""What a backbone sees in images nobody labelled: its patches as colours, and who is near whom.

    images --patches--> [n, h, w, D] --first 3 principal components--> colours (Fig. 5)
    images --cls-----> [n, D] --cosine--> the nearest images of each

One set of components serves all images of a backbone, so equal colours are like features.
Shapes: n images, h x w patches of one, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor
from torch.nn import functional as F

from synclr_cli import console
from synclr_cli.data import columns, layouts, sources, storage
from synclr_cli.data.sources import Source
from synclr_cli.errors import DataError
from synclr_cli.learning import backbone as backbones, loader, runtime, transforms
from synclr_cli.learning.backbone import Backbone

PATCHES_FILE, NEIGHBOURS_FILE = "patches.png", "neighbours.png"
# Images of 4:3 are shown to the ViT at 336 x 448 where it was trained at 224, as in the paper.
TALL, WIDE = 336 / 224, 448 / 224
SHOWN, NEAREST = 8, 5  # images on a sheet; neighbours of each
MOST = 2000  # images among which neighbours are looked for
BATCH = 16
_TILE, _GAP, _TITLE = 192, 4, 16  # pixels: an image's longer side, between two, a heading


@dataclass(frozen=True)
class Seen:
    """What one backbone made of the images."""

    name: str
    colours: np.ndarray  # [shown, h, w, 3], 0 to 1
    nearest: np.ndarray  # [shown, NEAREST] image numbers


def run(specs: Sequence[str], images: Path, out: Path, *, seed: int = 0) -> list[Path]:
    """Draw both sheets, the backbones one below the other; return the files.

    Raises:
        DataError: fewer than two images, or one does not decode.
    """
    source = _source(images)
    among = np.linspace(0, len(source) - 1, min(len(source), MOST)).astype(int)  # [n]
    shown = np.linspace(0, len(among) - 1, min(len(among), SHOWN)).astype(int)  # of them
    aspect = _aspect([source.image(int(among[i])).size for i in shown])
    with runtime.started("auto") as rt:
        seen = [
            _see(backbones.open_backbone(spec, seed=seed), spec, source, among, shown, rt, aspect)
            for spec in specs
        ]
    tile = partial(_tile, aspect=aspect)
    tiles = [tile(source.image(int(among[i]))) for i in shown]
    patches, near = out / PATCHES_FILE, out / NEIGHBOURS_FILE
    rows = [("images", tiles)]
    rows += [(drawing.name, [tile(_image(c)) for c in drawing.colours]) for drawing in seen]
    _sheet(rows, patches)
    rows = []
    for drawing in seen:
        for k, (first, near_ones) in enumerate(zip(tiles, drawing.nearest, strict=True)):
            title = f"{drawing.name}: image, then its nearest" if k == 0 else ""
            rows.append((title, [first, *(tile(source.image(int(among[i]))) for i in near_ones)]))
    _sheet(rows, near)
    return [patches, near]


def components(patches: Tensor, count: int = 3) -> Tensor:
    """Return the first principal components of patches [m, D] as numbers from 0 to 1, [m, count].

    Each is stretched between its 1st and 99th percentile. The sign is chosen so that the largest
    weight is positive: otherwise it would be the linear algebra library's whim.
    """
    centred = patches.double() - patches.double().mean(0)  # [m, D]
    _, basis = torch.linalg.eigh(centred.T @ centred)  # [D, D], ascending
    basis = basis.flip(1)[:, :count]  # [D, count]
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))  # [1, count]
    projected = centred @ (basis * largest.sign())  # [m, count]
    low, high = torch.quantile(projected, torch.tensor([0.01, 0.99], dtype=projected.dtype), dim=0)
    return ((projected - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)


def nearest(features: Tensor, queries: Tensor, count: int) -> Tensor:
    """Return the numbers of the images most like each asked one by cosine, itself apart.

    Args:
        features: [n, D].
        queries: [q] image numbers.

    Returns:
        [q, count], the most alike first.
    """
    x = F.normalize(features, dim=1)
    likeness = x[queries] @ x.T  # [q, n]
    likeness[torch.arange(len(queries)), queries] = -torch.inf
    return likeness.topk(min(count, len(features) - 1)).indices


def _see(
    opened: Backbone,
    spec: str,
    source: Source,
    among: np.ndarray,
    shown: np.ndarray,
    rt: runtime.Runtime,
    aspect: float,
) -> Seen:
    model = opened.model.to(rt.device).eval()
    patch = opened.patch_size
    tall = (TALL * WIDE / aspect) ** 0.5  # as many patches for every shape
    size = [
        max(1, round(opened.image_size * side / patch)) * patch for side in (tall, tall * aspect)
    ]
    cls, patches = [], {}
    shown_set = set(shown.tolist())
    with console.progress(f"looking with {spec}", len(among), unit="images") as meter:
        for batch in loader.in_batches(range(len(among)), BATCH):
            views = [_view(source.image(int(among[i])), size, opened) for i in batch]
            x = torch.stack(views).to(rt.device)  # [B, 3, H, W]
            with torch.inference_mode(), rt.autocast():
                tokens = model.forward_features(x).float().cpu()  # [B, prefix + h w, D]
            cls.append(tokens[:, 0])
            for i, image_tokens in zip(batch, tokens, strict=True):
                if i in shown_set:
                    patches[i] = image_tokens[model.num_prefix_tokens :]  # [h w, D]
            meter.advance(len(batch))
    grid = size[0] // patch, size[1] // patch
    colours = components(torch.cat([patches[i] for i in shown.tolist()]))
    return Seen(
        spec,
        colours.reshape(len(shown), *grid, 3).numpy(),
        nearest(torch.cat(cls), torch.from_numpy(shown), NEAREST).numpy(),
    )


def _source(path: Path) -> Source:
    if path.is_dir() and (files := sorted(path.glob("*.parquet"))):
        source: Source = sources.ParquetRows(files, columns.image_column(files))
    elif path.suffix == ".parquet" and path.is_file():
        source = sources.ParquetRows([path], columns.image_column([path]))
    elif path.is_dir():
        source = sources.Files(list(layouts.image_files(path)))
    else:
        raise DataError(f"no images {path}", expected="a folder of images, or Parquet")
    if len(source) < 2:
        raise DataError(f"images in {path}", got=len(source), expected="two or more")
    return source


def _aspect(sizes: Sequence[tuple[int, int]]) -> float:
    """Return the width / height that all images are cropped to: their median, 3/4 to 4/3."""
    median = float(np.median([width / height for width, height in sizes]))
    return float(np.clip(median, TALL / WIDE, WIDE / TALL))


def _view(image: Image.Image, size: Sequence[int], opened: Backbone) -> Tensor:
    mode = getattr(Image.Resampling, opened.interpolation.upper())
    resized = ImageOps.fit(image, (size[1], size[0]), mode)
    return transforms.normalise(resized, opened.mean, opened.std)


def _image(colours: np.ndarray) -> Image.Image:
    return Image.fromarray((255 * colours).round().astype(np.uint8))


def _tile(image: Image.Image, aspect: float) -> Image.Image:
    """Return an image as a tile of this width / height, cropped where it has another."""
    coarse = image.width < _TILE // 2  # a patch is a square, not a blur
    mode = Image.Resampling.NEAREST if coarse else Image.Resampling.BICUBIC
    size = (_TILE, round(_TILE / aspect)) if aspect >= 1 else (round(_TILE * aspect), _TILE)
    return ImageOps.fit(image, size, mode)


def _sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], path: Path) -> None:
    """Write rows of tiles, each below its heading, if it has one."""
    wide, high = rows[0][1][0].size  # of all tiles
    width = max(len(tiles) for _, tiles in rows) * (wide + _GAP) + _GAP
    tall = [(_TITLE if title else 0) + high + _GAP for title, _ in rows]
    sheet = Image.new("RGB", (width, sum(tall) + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    top = _GAP
    for (title, tiles), height in zip(rows, tall, strict=True):
        below = top
        if title:
            pen.text((_GAP, top), title, fill="black")
            below += _TITLE
        for k, tile in enumerate(tiles):
            sheet.paste(tile, (_GAP + k * (wide + _GAP), below))
        top += height
    with storage.atomic_file(path) as unfinished:
        sheet.save(unfinished, "PNG")
