"""Tileable noise, made once per process: the texture of everything drawn.

Natural images have an amplitude spectrum near 1/f; the tiles are random phases under that law
and its neighbours (flatter, steeper, banded, streaked), ridges of them, and cells.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

SIDE = 256  # texels of a tile's side
NAMES = ("cloud", "rough", "grain", "ridge", "spots", "ripple", "streak", "cells", "cracks")
INDEX = {name: i for i, name in enumerate(NAMES)}


@cache
def tiles() -> np.ndarray:
    """Return the tiles [len(NAMES), SIDE, SIDE], float32, mean 0, most within -1..1."""
    rng = np.random.Generator(np.random.PCG64(20231217))
    fy = np.fft.fftfreq(SIDE)[:, None] * SIDE
    fx = np.fft.rfftfreq(SIDE)[None] * SIDE
    f = np.hypot(fy, fx)
    f[0, 0] = 1

    def shaped(amplitude: np.ndarray) -> np.ndarray:
        phase = rng.normal(size=f.shape) + 1j * rng.normal(size=f.shape)
        spectrum = phase * amplitude
        spectrum[0, 0] = 0
        image = np.fft.irfft2(spectrum, s=(SIDE, SIDE))
        return np.clip(image / (2 * image.std()), -1.4, 1.4)

    cloud = shaped(f**-1.6)
    rough = shaped(f**-1.0)
    grain = shaped(f**-0.4)
    ridge = 1 - 2.6 * np.abs(shaped(f**-1.5))
    ridge -= ridge.mean()
    spots = shaped(np.exp(-(((f - 20) / 5) ** 2)))
    ripple = shaped(np.exp(-(((fy - 24) / 9) ** 2) - (fx / 6) ** 2))
    streak = shaped((fy**2 * 0.02 + fx**2 * 1.5 + 1) ** -0.7)
    near, second = _cells(rng)
    cells = near / near.mean() - 1
    border = np.clip((second - near) / 6, 0, 1)
    cracks = border - border.mean()
    every = (cloud, rough, grain, ridge, spots, ripple, streak, cells, cracks)
    return np.stack(every).astype(np.float32)


def _cells(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return each texel's distance to the nearest and second nearest of 150 scattered points."""
    points = rng.uniform(0, SIDE, (150, 2))
    grid = np.arange(SIDE)
    dy = np.abs(grid[:, None] - points[:, 0])  # [SIDE, 150]
    dx = np.abs(grid[:, None] - points[:, 1])
    dy, dx = np.minimum(dy, SIDE - dy), np.minimum(dx, SIDE - dx)
    squared = dy[:, None] ** 2 + dx[None] ** 2  # [SIDE, SIDE, 150]
    two = np.sqrt(np.partition(squared, 1, axis=-1)[..., :2])
    return two[..., 0], two[..., 1]


@cache
def _doubled(name: str) -> Image.Image:
    """Return a tile laid 2 x 2, so that any window of a tile's size lies inside."""
    return Image.fromarray(np.tile(tiles()[INDEX[name]], (2, 2)))


def window(
    name: str, rng: np.random.Generator, height: int, width: int, texels: float
) -> np.ndarray:
    """Return a random window `texels` wide of a tile, resampled to [height, width]."""
    texels = min(texels, SIDE - 1)
    tall = min(texels * height / width, SIDE - 1)
    x, y = rng.uniform(0, SIDE, 2)
    box = (x, y, x + texels, y + tall)
    image = _doubled(name).resize((width, height), Image.Resampling.BILINEAR, box=box)
    return np.asarray(image)


def at(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return a tile's nearest texel at texel coordinates (u, v), wrapped round."""
    flat = (v.astype(np.int32) & (SIDE - 1)) * SIDE + (u.astype(np.int32) & (SIDE - 1))
    return tiles()[INDEX[name]].ravel()[flat]


def smooth_at(name: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return a tile's value at texel coordinates (u, v), bilinear, wrapped round."""
    u0, v0 = np.floor(u), np.floor(v)
    a, b = (u - u0).astype(np.float32), (v - v0).astype(np.float32)
    ui, vi = u0.astype(np.int32), v0.astype(np.int32)
    tile = tiles()[INDEX[name]].ravel()
    left, right = ui & (SIDE - 1), (ui + 1) & (SIDE - 1)
    upper, lower = (vi & (SIDE - 1)) * SIDE, ((vi + 1) & (SIDE - 1)) * SIDE
    top = tile[upper + left] * (1 - a) + tile[upper + right] * a
    bottom = tile[lower + left] * (1 - a) + tile[lower + right] * a
    return top * (1 - b) + bottom * b
