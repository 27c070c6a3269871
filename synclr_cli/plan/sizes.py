"""How many rows and bytes captions, images and a run take on disk.

Bytes of images were measured on 40 photographs of CamVid reduced to 256 and 64 pixels, and on
CIFAR-10's; see docs/plan.md. Noise takes more, drawings less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from synclr_cli.config import CaptionsConfig, RenderConfig, TrainConfig

PART_BYTES = 4500  # footer, schema and header of a Parquet file
CAPTION_BYTES = 75  # of a row of captions, compressed
IMAGE_ROW_BYTES = 240  # of a row of images beside the pixels, compressed with the JPEG tables
# Bytes a pixel by quality.
JPEG = {1: 0.05, 50: 0.13, 75: 0.20, 85: 0.27, 90: 0.34, 91: 0.45, 95: 0.60, 98: 0.9, 100: 1.45}
WEBP = {1: 0.03, 50: 0.10, 75: 0.15, 85: 0.22, 95: 0.42, 100: 0.55}
PNG = 1.9
MASK = 0.05  # bytes a pixel of a PNG of a few class ids

# What engines generate where the settings leave it to them, px.
OWN_SIZES = {"pocket": 32, "procedural": 64}
OWN_SIZE = 512


@dataclass(frozen=True)
class OnDisk:
    """What a stage leaves behind."""

    rows: int
    parts: int
    bytes: float


def captions(config: CaptionsConfig, row_bytes: float | None = None) -> OnDisk:
    """Return the captions folder; `row_bytes` were measured, None: as of this module."""
    parts = -(-config.count // config.captions_per_part)
    size = config.count * (row_bytes or CAPTION_BYTES) + parts * PART_BYTES
    return OnDisk(config.count, parts, size)


def images(config: RenderConfig, count: int, row_bytes: float | None = None) -> OnDisk:
    """Return the images folder of so many captions; `row_bytes` as of `captions`."""
    rows, parts = count * config.views, -(-count // config.captions_per_part)
    size = rows * (row_bytes or image_bytes(config))
    return OnDisk(rows, parts, size + parts * PART_BYTES)


def image_bytes(config: RenderConfig) -> float:
    """Return the bytes of a row of images."""
    scheme = config.engine.name.partition(":")[0]
    pixels = min(generated_size(config), config.stored_size) ** 2
    if config.image_format == "png":
        of_pixel = PNG
    else:
        of_pixel = _at(JPEG if config.image_format == "jpeg" else WEBP, config.quality)
    mask = MASK if config.masks and scheme == "procedural" else 0.0
    return IMAGE_ROW_BYTES + pixels * (of_pixel + mask)


def generated_size(config: RenderConfig) -> int:
    """Return the side of what the engine generates, px."""
    scheme = config.engine.name.partition(":")[0]
    return config.engine.size or OWN_SIZES.get(scheme, OWN_SIZE)


def run(config: TrainConfig, vit: int, student: int, teacher: int) -> float:
    """Return the bytes of a run folder at its fullest; arguments are numbers of weights.

    While a checkpoint is written there is one more than are kept.
    """
    checkpoint = 4.0 * (3 * student + teacher)  # weights, two moments; the teacher
    kept = min(config.keep_checkpoints + 1, math.ceil(config.steps / config.checkpoint_steps))
    backbones = 1 + (config.steps // config.backbone_steps if config.backbone_steps else 0)
    return kept * checkpoint + backbones * 4.0 * vit


def _at(table: Mapping[int, float], quality: int) -> float:
    return float(np.interp(quality, list(table), list(table.values())))
