"""A few test images with their classes laid over: what is there, and what was found.

test split + model --draw--> out/overlays.png: one row an image: image, truth, what was found;
    below, the colours of the classes that are shown
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from synclr_cli.config import SegmentConfig
from synclr_cli.data import storage
from synclr_cli.data.labelled import LabelledDataset
from synclr_cli.learning import reports
from synclr_cli.learning.backbone import Backbone
from synclr_cli.learning.runtime import Runtime
from synclr_cli.segment import dense, grading

FILE = "overlays.png"
_IMAGES, _HEIGHT, _GAP = 6, 160, 4  # rows; pixels of a row; pixels between
_LETTERS = 12  # pixels, of the names below
_STRENGTH = 0.6  # of the class colours over the image


def draw(
    config: SegmentConfig,
    data: LabelledDataset,
    opened: Backbone,
    rt: Runtime,
    model: nn.Module,
    path: Path,
) -> None:
    """Write a PNG of up to six test images, evenly spaced over the split."""
    split = data.splits["test"]
    colours = palette(len(data.classes))
    rows: list[np.ndarray] = []
    shown: set[int] = set()
    model.eval()
    for i in np.linspace(0, len(split) - 1, min(len(split), _IMAGES)).astype(int):
        image = split.image(int(i))
        truth = dense.read_mask(split, int(i), config.ignore_index)
        x = dense.test_view(image, config.short_side, opened.mean, opened.std)
        with torch.inference_mode():
            classes = grading.segment_image(model, x.to(rt.device), truth.shape, config, rt)
        predicted = np.where(truth == dense.IGNORED, dense.IGNORED, classes.cpu().numpy())
        rows.append(np.hstack([blend(image, ids, colours) for ids in (None, truth, predicted)]))
        shown |= {*np.unique(truth).tolist(), *np.unique(predicted).tolist()}
    rows.append(legend(data.classes, sorted(shown), colours, max(r.shape[1] for r in rows)))
    width = max(row.shape[1] for row in rows)
    sheet = np.vstack([np.pad(r, ((0, _GAP), (0, width - r.shape[1]), (0, 0))) for r in rows])
    with storage.atomic_file(path) as partial:
        Image.fromarray(sheet).save(partial, "PNG")


def legend(
    classes: Sequence[str], shown: Sequence[int], colours: np.ndarray, width: int
) -> np.ndarray:
    """Return the names of some classes beside their colours, [height, at least width, 3]."""
    words = [("left: image, middle: truth, right: found", (0, 0, 0))]
    for k in shown:
        if k == dense.IGNORED:
            words.append(("not labelled", (60, 60, 60)))
        else:
            words.append((reports.shortened(str(classes[k])), tuple(colours[k].tolist())))
    font = ImageFont.load_default(_LETTERS)
    corners, x, y = [], _GAP, _GAP
    for name, _ in words:
        long = round(font.getlength(name)) + _LETTERS + 4 * _GAP
        if x > _GAP and x + long > width:
            x, y = _GAP, y + _LETTERS + 2 * _GAP
        corners.append((x, y))
        x += long
        width = max(width, long)
    image = Image.new("RGB", (width, y + _LETTERS + 2 * _GAP))
    pen = ImageDraw.Draw(image)
    for (name, colour), (x, y) in zip(words, corners, strict=True):
        pen.rectangle((x, y, x + _LETTERS, y + _LETTERS), fill=colour)
        pen.text((x + _LETTERS + _GAP, y), name, font=font, fill="white")
    return np.asarray(image)


def palette(classes: int) -> np.ndarray:
    """Return a colour for each class, [K, 3] uint8: hues a golden angle apart, some pale."""
    hue = (np.arange(classes) * 0.618034) % 1.0 * 6  # [K]
    level = np.where(np.arange(classes) % 2, 255.0, 190.0)
    ramp = [np.clip(np.abs((hue + shift) % 6 - 3) - 1, 0, 1) for shift in (0, 4, 2)]
    pale = np.where(np.arange(classes) % 3 == 2, 0.45, 0.0)[:, None]  # [K, 1]
    colours = np.stack(ramp, -1) * (1 - pale) + pale
    return (colours * level[:, None]).astype(np.uint8)  # [K, 3]


def blend(image: Image.Image, ids: np.ndarray | None, colours: np.ndarray) -> np.ndarray:
    """Return the image with classes laid over, ignored pixels black, [height, w + gap, 3]."""
    pixels = np.asarray(image, dtype=np.float64)  # [H, W, 3]
    if ids is not None:
        over = (1 - _STRENGTH) * pixels + _STRENGTH * colours[ids.clip(0)]
        pixels = np.where((ids == dense.IGNORED)[..., None], 0.0, over)
    shown = Image.fromarray(pixels.astype(np.uint8))
    size = max(1, round(shown.width * _HEIGHT / shown.height)), _HEIGHT
    return np.pad(np.asarray(shown.resize(size)), ((0, 0), (0, _GAP), (0, 0)))
