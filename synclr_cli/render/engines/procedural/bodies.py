"""Bodies: things as a handful of solid parts, collected one by one.

Axes: x is forward, y up, z to the side; the size does not matter, `Body.arrays` scales to radius 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

Vector = tuple[float, float, float]
Rng = np.random.Generator

ELLIPSOID, CYLINDER, CONE, BOX = range(4)
# Material slots of a part: three colours of the concept, and a dark glossy one.
MAIN, SECOND, ACCENT, DARK = range(4)


@dataclass(frozen=True)
class Parts:
    """P solid parts in one frame: `kind` [P], `centre` [P, 3], `axes` [P, 3, 3], `radii` [P, 3].

    The rows of `axes` are a part's own axes; its solid is the unit shape stretched by `radii`.
    """

    kind: np.ndarray
    centre: np.ndarray
    axes: np.ndarray
    radii: np.ndarray
    slot: np.ndarray


@dataclass
class Body:
    """Collects the parts of one thing."""

    rows: list[tuple[int, Vector, tuple[Vector, Vector, Vector], Vector, int]] = field(
        default_factory=list
    )

    def add(
        self, kind: int, centre: Vector, radii: Vector, slot: int = MAIN,
        turn: float = 0.0, tilt: float = 0.0, roll: float = 0.0,
    ) -> None:  # fmt: skip
        """Add a part: turned about y, then tilted about z, then rolled about its own x."""
        ct, st, cl, sl = math.cos(turn), math.sin(turn), math.cos(tilt), math.sin(tilt)
        x = (cl * ct, sl, cl * st)
        y = (-sl * ct, cl, -sl * st)
        z = (-st, 0.0, ct)
        if roll:
            c, s = math.cos(roll), math.sin(roll)
            y, z = mix(c, y, s, z), mix(c, z, -s, y)
        self.rows.append((kind, centre, (x, y, z), radii, slot))

    def limb(
        self, a: Vector, b: Vector, radius: float, slot: int = MAIN, kind: int = CYLINDER,
        flat: float = 1.0, level: bool = False,
    ) -> None:  # fmt: skip
        """Add a part along a to b (its own z axis).

        `flat` below 1 thins it sideways or, if `level`, in height.
        """
        along = mix(1, b, -1, a)
        length = norm(along) or 1e-6
        z = scaled(along, length)
        other = (0.0, 1.0, 0.0) if level else (0.0, 0.0, 1.0)
        if abs(sum(p * q for p, q in zip(other, z, strict=True))) > 0.95:
            other = (1.0, 0.0, 0.0)
        x = cross(other, z)
        x = scaled(x, norm(x))
        y = cross(z, x)
        centre = scaled(mix(1, a, 1, b), 2)
        self.rows.append((kind, centre, (x, y, z), (radius, radius * flat, length / 2), slot))

    def pair(
        self, kind: int, centre: Vector, radii: Vector, slot: int = MAIN,
        turn: float = 0.0, tilt: float = 0.0, roll: float = 0.0,
    ) -> None:  # fmt: skip
        """Add a part and its mirror image across the plane z = 0."""
        self.add(kind, centre, radii, slot, turn, tilt, roll)
        x, y, z = centre
        self.add(kind, (x, y, -z), radii, slot, -turn, tilt, -roll)

    def arrays(self) -> Parts:
        """Return the parts, moved to stand on y = 0 about the y axis, and scaled to radius 1."""
        kinds, centres, axes, radii, slots = zip(*self.rows, strict=True)
        centre, axis, radius = np.array(centres), np.array(axes), np.array(radii)
        reach = np.abs(axis * radius[:, :, None]).sum(1) * 0.9  # [P, 3] half extents, about
        low, high = (centre - reach).min(0), (centre + reach).max(0)
        centre = centre - [(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2]
        scale = 2 / max(float(np.linalg.norm(high - low)), 1e-6)
        return Parts(np.array(kinds), centre * scale, axis, radius * scale, np.array(slots))


def mix(p: float, a: Vector, q: float, b: Vector) -> Vector:
    """Return p a + q b."""
    return (p * a[0] + q * b[0], p * a[1] + q * b[1], p * a[2] + q * b[2])


def scaled(a: Vector, by: float) -> Vector:
    """Return a / by."""
    return (a[0] / by, a[1] / by, a[2] / by)


def norm(a: Vector) -> float:
    """Return the length of a."""
    return math.sqrt(sum(c * c for c in a))


def cross(a: Vector, b: Vector) -> Vector:
    return (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])


def between(rng: Rng, *bounds: tuple[float, float]) -> list[float]:
    """Draw one number within each of the bounds."""
    share = rng.random(len(bounds))
    return [low + (high - low) * float(s) for (low, high), s in zip(bounds, share, strict=True)]
