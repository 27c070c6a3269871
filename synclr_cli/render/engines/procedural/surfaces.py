"""The skin of solids: pattern, grain and finish under a light.

base colour = slot colour, mixed with the pattern colour by the species' pattern, times grain;
light = ambient from above + one lamp (wrapped for fur) + highlight. Shapes: N pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synclr_cli.render.engines.procedural import noise


@dataclass(frozen=True)
class Light:
    """One lamp and the surroundings, as light per colour channel."""

    direction: np.ndarray  # [3] unit, toward the lamp, camera axes
    lamp: np.ndarray  # [3]
    above: np.ndarray  # [3] ambient from the sky
    below: np.ndarray  # [3] ambient from the ground


def pattern(name: str, q: np.ndarray, scale: float, seed: float) -> np.ndarray:
    """Return how much of the pattern colour lies at body points q [N, 3] (radius 1), 0 to 1."""
    x, y, z = q.T * np.float32(scale)
    if name == "plain":
        return np.zeros(len(q), np.float32)
    if name == "stripes":
        wave = np.sin(4 * x + 2.2 * noise.at("cloud", 12 * y + seed, 12 * z + 9 * x))
        return _step(wave, 3.5)
    if name == "bands":
        return _step(np.sin(3.5 * y + 0.8 * z), 5)
    if name == "spots":
        return _step(np.cos(2.6 * x) * np.cos(2.6 * y) + np.cos(2.6 * z) * 0.6 - 0.62, 5)
    if name == "checks":
        return _step(np.sin(2.5 * x) * np.sin(2.5 * y + 0.5) * np.sign(np.sin(2.5 * z + 0.8)), 8)
    if name == "marble":
        warp = noise.smooth_at("cloud", 9 * x + seed, 9 * y + 7 * z)
        return 0.5 + 0.5 * np.sin(2 * x + y + 5 * warp)
    if name == "speckle":
        return _step(noise.at("grain", 26 * x + seed, 26 * y + 19 * z) - 0.42, 6)
    if name == "patches":
        return _step(noise.smooth_at("cloud", 8 * x + seed, 8 * y + 6 * z), 8)
    if name == "rings":
        warp = 0.6 * noise.smooth_at("cloud", 5 * x + seed, 5 * y)
        return 0.5 + 0.5 * np.sin(5 * np.sqrt(y * y + z * z + 0.05) + 0.6 * x + 3 * warp)
    if name == "scales":
        return np.clip(0.5 - 0.7 * noise.at("cells", 18 * x + seed, 18 * y + 14 * z), 0, 1)
    assert name == "veins", name
    return _step(-0.12 - noise.at("cracks", 10 * x + seed, 10 * y + 8 * z), 9)


def _step(wave: np.ndarray, sharpness: float) -> np.ndarray:
    return np.clip(wave * np.float32(sharpness) * 0.5 + 0.5, 0, 1)


def grain(tile: str, q: np.ndarray, seed: float) -> np.ndarray:
    """Return fine structure at body points q [N, 3], about -1 to 1."""
    u = 70 * q[:, 0] + 45 * q[:, 2] + np.float32(seed)
    v = 70 * q[:, 1] - 30 * q[:, 2]
    return noise.at(tile, u, v)


def lit(
    base: np.ndarray, normal: np.ndarray, finish: str, rough: np.ndarray, light: Light
) -> np.ndarray:
    """Return the light [N, 3] that leaves a surface toward the camera.

    Args:
        base: [N, 3] albedo. normal: [N, 3]. rough: [N] grain, which breaks up highlights.
    """
    facing = normal @ light.direction
    wrap = 0.35 if finish == "fur" else 0.08
    diffuse = np.clip((facing + wrap) / (1 + wrap), 0, 1)[:, None]
    up = (0.5 + 0.5 * normal[:, 1])[:, None]
    ambient = light.above * up + light.below * (1 - up)
    out = base * (ambient + light.lamp * diffuse)
    half = light.direction + np.array([0, 0, 1], np.float32)
    half /= np.sqrt(half @ half)
    shine = np.clip(normal @ half.astype(np.float32), 0, 1)
    if finish == "glossy":
        out += (0.55 * _power(shine, 6))[:, None] * light.lamp
        out += (0.12 * (1 - np.clip(normal[:, 2], 0, 1)) ** 3)[:, None] * light.above
    elif finish == "metal":
        # What a mirror would show: bright sky, a dark line at the horizon, ground below.
        mirror_y = 2 * normal[:, 2] * normal[:, 1]
        sky = np.clip(mirror_y * 4 + 0.3, 0, 1)[:, None]
        world = light.above * 1.6 * sky + light.below * 0.7 * (1 - sky)
        out = 0.45 * out + base * world + (0.8 * _power(shine, 5) * (0.8 + 0.2 * rough))[:, None]
    elif finish == "fur":
        out *= (1 + 0.35 * rough)[:, None]
        out += ((1 - np.clip(normal[:, 2], 0, 1)) ** 2 * 0.25)[:, None] * base
    else:
        out += (0.06 * _power(shine, 3))[:, None] * light.lamp
    return out


def _power(x: np.ndarray, doublings: int) -> np.ndarray:
    for _ in range(doublings):
        x = x * x
    return x
