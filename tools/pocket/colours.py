"""What a small image looks like, by counting pixels: the colour of the thing, and of its ground.

    images [N, 32, 32, 3] --name of each pixel's colour--> shares in the middle and at the rim
    --> colour of the thing | "", colour of the ground | ""

No model is asked, so the words are tied to the pixels by a rule anybody can check.
"""

from __future__ import annotations

import numpy as np
import sentences

COLOURS, GROUNDS = (
    tuple(sentences.COLOURS),
    tuple(sentences.GROUNDS),
)  # their places are their numbers
GROUND_SHARE = 0.5  # of the rim, for a ground to be named
THING_LEAD = 0.15  # share in the middle less share at the rim, for a colour to be named
THING_SHARE = 0.25  # share in the middle, likewise


def colour_names(images: np.ndarray) -> np.ndarray:
    """Return the number in `COLOURS` of each pixel [N, H, W] of uint8 images [N, H, W, 3]."""
    rgb = images.astype(np.float32) / 255
    high, low = rgb.max(-1), rgb.min(-1)
    chroma = high - low
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    safe = np.where(chroma > 0, chroma, 1)
    hue = np.where(  # degrees
        high == red,
        60 * ((green - blue) / safe) % 360,
        np.where(high == green, 60 * (blue - red) / safe + 120, 60 * (red - green) / safe + 240),
    )
    saturation = chroma / np.maximum(high, 1e-6)
    names = np.full(high.shape, COLOURS.index("grey"))

    def put(where: np.ndarray, name: str) -> None:
        names[where] = COLOURS.index(name)

    put((hue < 15) | (hue >= 330), "red")
    put((hue >= 15) & (hue < 42), "orange")
    put((hue >= 42) & (hue < 68), "yellow")
    put((hue >= 68) & (hue < 165), "green")
    put((hue >= 165) & (hue < 270), "blue")
    put((hue >= 270) & (hue < 330), "red")
    # Orange and yellow that are dark or dull are called brown; so is dull red.
    warm = (hue < 68) | (hue >= 345)
    put(warm & (hue >= 15) & ((high < 0.62) | (saturation < 0.5)), "brown")
    put(warm & ((hue < 15) | (hue >= 345)) & (saturation < 0.42), "brown")
    pale = (saturation < 0.14) | (chroma < 0.06)
    put(pale, "grey")
    put(pale & (high > 0.8), "white")
    put((high > 0.9) & (saturation < 0.12), "white")
    put(high < 0.2, "black")
    return names


def shares(names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the colours' shares in the middle and at the rim, [N, C] both."""
    side = names.shape[1]
    at = np.arange(side) - (side - 1) / 2
    middle = np.exp(-(at[:, None] ** 2 + at[None, :] ** 2) / (2 * (side / 6) ** 2))
    rim = np.zeros((side, side))
    edge = max(1, side // 8)
    rim[:edge], rim[-edge:], rim[:, :edge], rim[:, -edge:] = 1, 1, 1, 1
    here = np.eye(len(COLOURS), dtype=np.float32)[names]  # [N, H, W, C]
    in_middle = np.einsum("nhwc,hw->nc", here, middle / middle.sum())
    return in_middle, np.einsum("nhwc,hw->nc", here, rim / rim.sum())


def describe(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the colours of things and grounds [N], as numbers in `COLOURS`; -1 where unclear."""
    thing, ground = [], []
    for start in range(0, len(images), 2000):
        middle, rim = shares(colour_names(images[start : start + 2000]))
        lead = np.where(middle > THING_SHARE, middle - 0.6 * rim, -1)
        best = lead.argmax(1)
        thing.append(np.where(lead.max(1) > THING_LEAD, best, -1))
        named = [COLOURS.index(g) for g in GROUNDS]
        most = rim[:, named].argmax(1)
        enough = rim[:, named].max(1) > GROUND_SHARE
        ground.append(np.where(enough, np.asarray(named)[most], -1))
    return np.concatenate(thing), np.concatenate(ground)
