"""Where the thing is: sky or wall, ground in perspective, and what stands at the horizon.

A family is named by the caption's words, or hashed from words we do not know; where the caption is
silent, most views show one of the concept's two haunts, and the rest any family. Each has two
palettes and one texture, so that a background is recognisable and never the same twice.
Shapes: H x W pixels, row 0 on top, light (not sRGB).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synclr_cli.render.engines.procedural import noise
from synclr_cli.render.engines.procedural.species import linear
from synclr_cli.render.engines.procedural.words import COLOURS, Reading, hashed

Rgb = tuple[float, float, float]


@dataclass(frozen=True)
class Family:
    """One kind of surroundings."""

    top: Rgb  # sky or wall, sRGB
    low: Rgb  # sky at the horizon
    near: Rgb  # ground
    second: Rgb  # ground, second colour
    tile: str  # noise of the ground
    texels: float  # of that tile across the image's width, at the front
    sky: str  # clouds | wall | brick | dark
    floor: str  # noise | tiles | boards | waves
    skyline: str  # none | hills | trees | blocks | shelf
    contrast: float = 0.6


FAMILIES = {
    "beach": Family((0.36, 0.62, 0.90), (0.80, 0.90, 0.96), (0.88, 0.78, 0.58),
                    (0.76, 0.64, 0.44), "grain", 160, "clouds", "noise", "sea", 0.35),
    "desert": Family((0.42, 0.66, 0.92), (0.95, 0.88, 0.74), (0.85, 0.62, 0.36),
                     (0.70, 0.44, 0.24), "ripple", 130, "clouds", "noise", "hills", 0.5),
    "sea": Family((0.40, 0.60, 0.86), (0.82, 0.88, 0.94), (0.08, 0.32, 0.48),
                  (0.35, 0.62, 0.72), "ripple", 150, "clouds", "noise", "none", 0.8),
    "deep": Family((0.10, 0.45, 0.62), (0.04, 0.24, 0.42), (0.30, 0.46, 0.44),
                   (0.10, 0.26, 0.34), "rough", 110, "dark", "noise", "hills", 0.7),
    "snow": Family((0.58, 0.70, 0.86), (0.88, 0.91, 0.96), (0.93, 0.95, 0.98),
                   (0.74, 0.81, 0.92), "cloud", 90, "clouds", "noise", "trees", 0.55),
    "meadow": Family((0.34, 0.58, 0.92), (0.80, 0.89, 0.97), (0.30, 0.52, 0.14),
                     (0.52, 0.66, 0.22), "grain", 200, "clouds", "noise", "trees", 0.8),
    "forest": Family((0.16, 0.26, 0.12), (0.46, 0.56, 0.32), (0.24, 0.22, 0.10),
                     (0.34, 0.40, 0.14), "rough", 170, "dark", "noise", "trunks", 0.9),
    "mountain": Family((0.38, 0.56, 0.84), (0.82, 0.86, 0.92), (0.46, 0.43, 0.40),
                       (0.28, 0.27, 0.26), "ridge", 110, "clouds", "noise", "peaks", 0.8),
    "street": Family((0.55, 0.66, 0.80), (0.82, 0.84, 0.86), (0.34, 0.34, 0.36),
                     (0.24, 0.24, 0.26), "grain", 200, "clouds", "lane", "blocks", 0.4),
    "tiles": Family((0.86, 0.84, 0.78), (0.78, 0.76, 0.70), (0.86, 0.86, 0.84),
                    (0.40, 0.48, 0.54), "rough", 80, "wall", "tiles", "shelf", 0.15),
    "boards": Family((0.80, 0.76, 0.68), (0.70, 0.66, 0.60), (0.58, 0.38, 0.20),
                     (0.42, 0.26, 0.13), "streak", 120, "wall", "boards", "shelf", 0.6),
    "table": Family((0.52, 0.48, 0.44), (0.36, 0.33, 0.31), (0.64, 0.43, 0.24),
                    (0.46, 0.28, 0.14), "streak", 90, "wall", "noise", "shelf", 0.8),
    "plain": Family((0.80, 0.80, 0.80), (0.72, 0.72, 0.72), (0.84, 0.84, 0.84),
                    (0.74, 0.74, 0.74), "cloud", 40, "wall", "noise", "none", 0.15),
    "brick": Family((0.62, 0.30, 0.22), (0.52, 0.26, 0.20), (0.52, 0.50, 0.47),
                    (0.38, 0.36, 0.34), "rough", 120, "brick", "noise", "none", 0.5),
    "sky": Family((0.22, 0.48, 0.88), (0.72, 0.85, 0.97), (0.78, 0.86, 0.95),
                  (0.95, 0.96, 0.98), "cloud", 70, "clouds", "noise", "none", 0.6),
    "night": Family((0.02, 0.03, 0.09), (0.10, 0.10, 0.22), (0.09, 0.09, 0.13),
                    (0.17, 0.16, 0.20), "rough", 120, "dark", "noise", "blocks", 0.6),
    "cloth": Family((0.62, 0.56, 0.60), (0.54, 0.48, 0.54), (0.56, 0.28, 0.34),
                    (0.76, 0.64, 0.52), "cells", 130, "wall", "noise", "none", 0.7),
}  # fmt: skip
NAMES = tuple(FAMILIES)


@dataclass(frozen=True)
class Backdrop:
    """A background, drawn."""

    light: np.ndarray  # [H, W, 3]
    horizon: float  # row of the horizon, may lie above the image
    family: str


def choose(
    reading: Reading, haunts: tuple[int, int], view: np.random.Generator
) -> tuple[str, float]:
    """Return (family, hue shift in turns) of a caption's surroundings.

    Args:
        haunts: two codes of where the concept is mostly met, if the caption does not say.
    """
    if reading.ground:
        return reading.ground, 0.0
    if reading.ground_key:
        code = hashed("ground", reading.ground_key)
        return NAMES[code % len(NAMES)], ((code >> 32) % 1000 / 1000 - 0.5) * 0.4
    lot = view.random()
    if lot < 0.8:
        code = haunts[int(lot < 0.25)]
        shift = ((code >> 32) % 1000 / 1000 - 0.5) * 0.2
        return NAMES[code % len(NAMES)], shift + float(view.normal(0, 0.02))
    return NAMES[int(view.integers(len(NAMES)))], float(view.normal(0, 0.08))


def draw(
    reading: Reading, family: str, turn: float, horizon: float, height: int, width: int,
    view: np.random.Generator,
) -> Backdrop:  # fmt: skip
    """Draw the surroundings; `horizon` is a share of the height, from the top."""
    look = FAMILIES[family]
    wear = view.uniform(-1, 1, 12).astype(np.float32)
    colours = linear([look.top, look.low, look.near, look.second])
    if turn:
        # The ground may be of any colour, the sky of few.
        colours[:2] = _turn_hue(colours[:2], 0.1 * np.sin(6.2832 * turn))
        colours[2:] = _turn_hue(colours[2:], turn)
    if reading.ground_colours:
        said = linear([COLOURS[c] for c in reading.ground_colours])
        wall = look.sky in ("wall", "brick")
        colours[2], colours[3] = said[0], said[-1] * 0.6
        if wall:
            colours[0], colours[1] = said[0], said[0] * 0.75
    colours *= (1 + 0.22 * wear[:4, None]) * (1 + 0.08 * wear[4:7])
    top, low, near, second = np.clip(colours, 0.002, 1)

    row = np.float32(horizon * height)
    image = np.empty((height, width, 3), np.float32)
    above = int(np.clip(np.ceil(row), 0, height))
    if above:
        image[:above] = _sky(look, top, low, above, width, view)
    if above < height:
        image[above:] = _floor(look, near, second, height, above, row, width, view)
        haze = np.exp(-(np.arange(above, height) - row) / (0.12 * height)) * 0.35
        image[above:] += haze[:, None, None].astype(np.float32) * (low - image[above:])
    if above > 2 and look.skyline != "none":
        _skyline(image, look, (top, low, near, second), above, view)
    return Backdrop(image, float(row), family)


def _sky(
    look: Family, top: np.ndarray, low: np.ndarray, rows: int, width: int, view: np.random.Generator
) -> np.ndarray:
    down = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
    sky = top + (low - top) * down
    sky = np.broadcast_to(sky, (rows, width, 3)).copy()
    if look.sky == "clouds":
        cover = noise.window("cloud", view, rows, width, float(view.uniform(40, 150)))
        share = np.clip(cover * 1.6 + float(view.uniform(-0.6, 0.4)), 0, 1)[..., None]
        sky += share * (0.85 - sky) * 0.8
    elif look.sky == "brick":
        size = width * float(view.uniform(0.035, 0.09))
        y = np.arange(rows, dtype=np.float32)[:, None] / size
        x = np.arange(width, dtype=np.float32)[None] / (2.4 * size) + 0.5 * (np.floor(y) % 2)
        joint = (y % 1 < 0.14) | (x % 1 < 0.06)
        shade = noise.at("grain", np.floor(x) * 37, np.floor(y) * 53 + 0 * x)
        sky *= (1 + 0.35 * shade)[..., None]
        sky[joint] = 0.42
        sky *= 1 + 0.25 * noise.window("rough", view, rows, width, 120)[..., None]
    elif look.sky == "wall":
        name = ("cloud", "rough", "streak", "cells")[int(view.integers(4))]
        strength = float(view.uniform(0.03, 0.22))
        sky *= (
            1
            + strength
            * noise.window(name, view, rows, width, float(view.uniform(30, 200)))[..., None]
        )
        if view.random() < 0.3:  # wallpaper
            period = width * float(view.uniform(0.05, 0.2))
            wave = np.sin(np.arange(width, dtype=np.float32) * (6.283 / period))
            sky *= (1 + 0.12 * np.sign(wave))[None, :, None]
    else:
        cover = noise.window("rough", view, rows, width, float(view.uniform(60, 200)))
        sky *= np.clip(1 + 0.6 * cover, 0.2, 2)[..., None]
        if look.sky == "dark" and sky.mean() < 0.02:  # stars
            lights = noise.window("grain", view, rows, width, 250) > 1.0
            sky[lights] = 0.7
    return sky


def _floor(
    look: Family, near: np.ndarray, second: np.ndarray, height: int, above: int, row: np.float32,
    width: int, view: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    # Perspective: distance is 1 / (rows below the horizon), the same for the whole row.
    eye = float(view.uniform(0.5, 1.1))
    away = eye * height / (np.arange(above, height, dtype=np.float32) + 1.5 - row)
    x = (np.arange(width, dtype=np.float32) - width / 2) / width
    angle = float(view.uniform(-0.6, 0.6))
    across = np.outer(away, x)
    along = np.broadcast_to(away[:, None], across.shape)
    c, s = np.cos(angle), np.sin(angle)
    u, v = across * c - along * s, across * s + along * c
    shift = view.uniform(0, noise.SIDE, 2)
    texels = look.texels * float(view.uniform(0.6, 1.3))
    texture = noise.smooth_at(look.tile, u * texels * 0.7 + shift[0], v * texels * 0.7 + shift[1])
    broad = noise.smooth_at("cloud", u * 40 + shift[1], v * 40 + shift[0])
    fade = np.clip(1.6 / away, 0.15, 1)[:, None]  # far texture is finer than a pixel
    share = np.clip(0.5 + (0.75 * texture * fade + 0.5 * broad) * look.contrast, 0, 1)
    if look.floor == "tiles":
        k = float(view.uniform(1.5, 4))
        odd = (np.floor(u * k) + np.floor(v * k)) % 2
        share = np.clip(0.15 + 0.7 * odd * fade + 0.2 * texture, 0, 1)
    elif look.floor == "boards":
        k = float(view.uniform(3, 8))
        board = np.floor(u * k)
        tint = noise.at("grain", board * 29, board * 0 + 7)
        share = np.clip(share * 0.7 + 0.3 * tint, 0, 1)
        share[(u * k - board) < 0.07] = 1.3
    floor = near + share[..., None] * (second - near)
    if look.floor == "lane":
        mark = (np.abs(u - float(view.uniform(-0.5, 0.5))) < 0.04) & (v * 1.2 % 1 < 0.5)
        floor[mark] = 0.75
    return np.maximum(floor, 0.002)


def _skyline(
    image: np.ndarray, look: Family, colours: tuple[np.ndarray, ...], above: int,
    view: np.random.Generator,
) -> None:  # fmt: skip
    """Draw what stands at the horizon over the sky's lower rows."""
    _, low, _, second = colours
    width = image.shape[1]
    x = np.arange(width, dtype=np.float32) / width
    shift = float(view.uniform(0, 250))
    line = noise.smooth_at("rough", x * 60 + shift, x * 0 + shift)
    kind = look.skyline
    tall = above * float(view.uniform(0.12, 0.5))
    if kind == "hills":
        shape = 0.6 + 0.5 * noise.smooth_at("cloud", x * 40 + shift, x * 0 + shift)
        colour = 0.5 * (second + low)
    elif kind == "peaks":
        tall *= 1.5
        shape = 0.6 + 0.7 * noise.smooth_at("ridge", x * 50 + shift, x * 0 + shift)
        colour = 0.6 * second + 0.3 * low
    elif kind == "trees":
        shape = 0.65 + 0.45 * line + 0.2 * noise.at("grain", x * 250 + shift, x * 0)
        colour = np.array([0.03, 0.09, 0.03], np.float32) * float(view.uniform(0.6, 2.5))
    elif kind == "trunks":
        stems = np.clip(noise.smooth_at("spots", x * 120 + shift, x * 0 + shift) * 3, 0, 1)
        bark = np.array([0.05, 0.035, 0.02], np.float32) * float(view.uniform(0.6, 2))
        image[:above] += (stems[None, :, None] * 0.9) * (bark - image[:above])
        return
    elif kind == "blocks":
        tall *= 1.5
        step = np.floor(x * float(view.uniform(5, 12)) + shift)
        shape = 0.6 + 0.5 * noise.at("grain", step * 31, step * 0 + 11)
        tint = noise.at("grain", step * 17, step * 0 + 90)[None, :, None]
        colour = np.clip(0.16 + 0.14 * tint, 0.02, 1) * (0.4 + 1.2 * low)
    elif kind == "sea":
        shape = np.ones(width, np.float32)
        tall = above * 0.22
        colour = np.array([0.03, 0.16, 0.30], np.float32)
    else:  # shelf: a skirting or the far edge of a room
        shape = np.ones(width, np.float32)
        tall = above * float(view.uniform(0.03, 0.12))
        colour = 0.6 * second
    depth = np.arange(above, 0, -1, dtype=np.float32)[:, None]  # rows above the horizon
    inside = np.clip(shape[None] * tall - depth + 1, 0, 1)[..., None]
    texture = 1 + 0.3 * noise.window("rough", view, above, width, 140)[..., None]
    if kind == "blocks":
        step_x = (np.arange(width) * 40 // width) % 2
        windows = (step_x[None] & ((depth.astype(np.int32) * 36 // max(above, 1)) % 2))[..., None]
        texture = texture * (1 + 0.9 * windows)
    image[:above] += inside * (colour * texture - image[:above])


def _turn_hue(colours: np.ndarray, turn: float | np.floating) -> np.ndarray:
    """Rotate colours about the grey axis by a share of a full turn."""
    c, s = np.cos(6.2832 * turn), np.sin(6.2832 * turn)
    k = (1 - c) / 3
    r = s / np.sqrt(3)
    matrix = np.array(
        [[c + k, k - r, k + r], [k + r, c + k, k - r], [k - r, k + r, c + k]], np.float32
    )
    return np.clip(colours @ matrix.T, 0.002, 1)
