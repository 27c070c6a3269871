"""Body plans: what a kind of thing is built of, as a handful of solid parts.

A plan takes two streams of random numbers: `g`, the genes, fixed by the concept (how long are the
legs, how many petals), and `v`, the view (which leg is forward, where the head turns). Axes: x is
forward, y up, z to the side; the size does not matter, `Body.arrays` scales to radius 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
            y, z = (
                tuple(c * a + s * b for a, b in zip(y, z, strict=True)),
                tuple(c * b - s * a for a, b in zip(y, z, strict=True)),
            )
        self.rows.append((kind, centre, (x, y, z), radii, slot))

    def limb(
        self, a: Vector, b: Vector, radius: float, slot: int = MAIN, kind: int = CYLINDER,
        flat: float = 1.0, level: bool = False,
    ) -> None:  # fmt: skip
        """Add a part whose own z axis runs from a to b; `flat` thins it sideways or, if `level`, in height."""
        d = tuple(q - p for p, q in zip(a, b, strict=True))
        length = math.sqrt(sum(c * c for c in d)) or 1e-6
        z = tuple(c / length for c in d)
        other = (0.0, 1.0, 0.0) if level else (0.0, 0.0, 1.0)
        if abs(sum(p * q for p, q in zip(other, z, strict=True))) > 0.95:
            other = (1.0, 0.0, 0.0)
        x = _cross(other, z)
        norm = math.sqrt(sum(c * c for c in x))
        x = tuple(c / norm for c in x)
        y = _cross(z, x)
        centre = tuple((p + q) / 2 for p, q in zip(a, b, strict=True))
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
        scale = 2 / max(np.linalg.norm(high - low), 1e-6)
        return Parts(np.array(kinds), centre * scale, axis, radius * scale, np.array(slots))


def _cross(a: Vector, b: Vector) -> Vector:
    return (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])


def _between(rng: Rng, *bounds: tuple[float, float]) -> list[float]:
    """Draw one number within each of the bounds."""
    share = rng.random(len(bounds))
    return [low + (high - low) * float(s) for (low, high), s in zip(bounds, share, strict=True)]


def _eyes(body: Body, at: Vector, apart: float, size: float) -> None:
    body.pair(ELLIPSOID, (at[0], at[1], apart), (size, size, size), DARK)


def quadruped(g: Rng, v: Rng) -> Body:
    """Four legs, a head on a neck, ears, a tail: dogs, horses, bears."""
    body = Body()
    long, fat, leg, thick, neck, lift, head, snout, ear, tail, bushy, round_ear = _between(
        g, (0.8, 1.5), (0.32, 0.6), (0.35, 1.1), (0.08, 0.16), (0.15, 0.8), (0.3, 1.2),
        (0.24, 0.4), (0.12, 0.4), (0.1, 0.42), (0.3, 1.1), (0.05, 0.14), (0, 1),
    )  # fmt: skip
    nod, look, swing, wag, lift_tail = _between(
        v, (-0.35, 0.25), (-0.7, 0.7), (-0.45, 0.45), (-0.6, 0.6), (-0.6, 0.9)
    )
    body.add(ELLIPSOID, (0, 0, 0), (long, fat, fat * 0.9))
    body.add(ELLIPSOID, (0.15, -0.3 * fat, 0), (long * 0.8, fat * 0.75, fat * 0.7), SECOND)
    for side, end, phase in ((1, 1, 1), (-1, 1, -1), (1, -1, -1), (-1, -1, 1)):
        top = (end * long * 0.65, -0.2 * fat, side * fat * 0.5)
        foot = (top[0] + swing * phase * leg, -fat * 0.6 - leg, top[2])
        body.limb(top, foot, thick, MAIN)
        body.add(ELLIPSOID, foot, (thick * 1.4, thick * 0.8, thick * 1.2), SECOND)
    angle = lift + nod
    base = (long * 0.8, fat * 0.35, 0.0)
    face = (
        base[0] + math.cos(angle) * (neck + head * 0.6),
        base[1] + math.sin(angle) * (neck + head * 0.6),
        0.3 * math.sin(look) * head,
    )
    body.limb(base, face, fat * 0.45, MAIN, ELLIPSOID)
    body.add(ELLIPSOID, face, (head, head * 0.9, head * 0.85), MAIN, turn=look)
    nose = (
        face[0] + math.cos(look) * (head * 0.6 + snout * 0.7), face[1] - head * 0.2,
        face[2] + math.sin(look) * (head * 0.6 + snout * 0.7),
    )  # fmt: skip
    body.limb(face, nose, head * 0.45, SECOND, ELLIPSOID)
    body.add(ELLIPSOID, nose, (head * 0.16,) * 3, DARK)
    for side in (1, -1):
        root = (face[0] - 0.1 * head, face[1] + head * 0.7, face[2] + side * head * 0.55)
        if round_ear < 0.4:
            body.add(ELLIPSOID, root, (ear * 0.4, ear * 0.7, ear * 0.7), ACCENT)
        else:
            tip = (root[0], root[1] + ear * 1.3 * (1 if round_ear < 0.8 else -0.9),
                   root[2] + side * ear * 0.5)  # fmt: skip
            body.limb(root, tip, ear * 0.45, ACCENT, CONE, 0.5)
        eye = (face[0] + math.cos(look) * head * 0.75, face[1] + head * 0.3,
               face[2] + math.sin(look) * head * 0.75 + side * head * 0.42)  # fmt: skip
        body.add(ELLIPSOID, eye, (head * 0.15,) * 3, DARK)
    hip = (-long * 0.9, fat * 0.3, 0.0)
    end = (hip[0] - tail * 0.8, hip[1] + tail * lift_tail, wag * tail)
    body.limb(hip, end, bushy, ACCENT, ELLIPSOID)
    return body


def bird(g: Rng, v: Rng) -> Body:
    """A body with wings, beak and tail, standing or flying."""
    body = Body()
    long, fat, neck, head, beak, curve, wing, chord, tail, legs = _between(
        g, (0.5, 0.9), (0.35, 0.6), (0.05, 0.9), (0.2, 0.34), (0.12, 0.6), (-0.5, 0.2),
        (0.7, 1.5), (0.25, 0.5), (0.25, 1.0), (0.15, 0.8),
    )  # fmt: skip
    flap, turn, pitch = _between(v, (-0.5, 0.9), (-0.8, 0.8), (-0.2, 0.5))
    flying = v.random() < 0.35
    body.add(ELLIPSOID, (0, 0, 0), (long, fat, fat * 0.85), MAIN, tilt=pitch)
    body.add(
        ELLIPSOID, (0.12, -0.15 * fat, 0), (long * 0.8, fat * 0.9, fat * 0.7), SECOND, 0, pitch
    )
    base = (long * 0.7, fat * 0.5 + math.sin(pitch) * long * 0.6, 0.0)
    face = (base[0] + 0.35 * neck + 0.1, base[1] + neck + 0.1, 0.0)
    body.limb(base, face, head * 0.6, MAIN, ELLIPSOID)
    body.add(ELLIPSOID, face, (head, head, head * 0.9), ACCENT if g.random() < 0.5 else MAIN)
    point = (face[0] + math.cos(turn) * (head + beak), face[1] + curve * beak,
             math.sin(turn) * (head + beak))  # fmt: skip
    body.limb((face[0], face[1], 0.0), point, head * 0.5, ACCENT, CONE, 0.6)
    _eyes(body, (face[0] + head * 0.4, face[1] + head * 0.3, 0), head * 0.75, head * 0.2)
    for side in (1, -1):
        if flying:
            tip = (-0.2, 0.3 + flap * wing, side * (fat * 0.6 + wing))
            body.limb((0.1, 0.25 * fat, side * fat * 0.4), tip, chord, SECOND, ELLIPSOID, 0.16,
                      True)  # fmt: skip
        else:
            body.add(ELLIPSOID, (-0.2, 0.08, side * fat * 0.75),
                     (wing * 0.6, chord * 0.75, 0.1), SECOND, tilt=pitch + 0.15)  # fmt: skip
            foot = (0.1, -fat - legs, side * 0.18)
            body.limb((0.05, -fat * 0.7, side * 0.15), foot, 0.045, ACCENT)
            body.add(ELLIPSOID, (foot[0] + 0.1, foot[1], foot[2]), (0.16, 0.04, 0.08), ACCENT)
    body.add(ELLIPSOID, (-long - tail * 0.4, -math.sin(pitch) * long, 0),
             (tail * 0.7, 0.08, 0.22), SECOND, tilt=pitch + 0.15)  # fmt: skip
    return body


def fish(g: Rng, v: Rng) -> Body:
    """A body that bends, with fins."""
    body = Body()
    long, tall, wide, tail, fin, under, blunt = _between(
        g, (0.8, 1.6), (0.25, 0.75), (0.15, 0.4), (0.3, 0.8), (0.15, 0.7), (0.1, 0.5), (0, 1)
    )
    bend = float(v.uniform(-0.6, 0.6))
    body.add(ELLIPSOID, (0, 0, 0), (long * 0.8, tall, wide))
    body.add(ELLIPSOID, (0.1, -tall * 0.25, 0), (long * 0.72, tall * 0.75, wide * 0.9), SECOND)
    body.add(ELLIPSOID, (long * 0.5, 0, 0), (long * 0.4, tall * (0.5 + 0.4 * blunt), wide * 0.95))
    stem = (-long * 0.8, 0.0, bend * 0.3)
    body.limb((-long * 0.4, 0, 0), stem, tall * 0.45, MAIN, ELLIPSOID, 0.7)
    for way in (1, -1):
        tip = (stem[0] - tail * 0.7, way * tail, stem[2] + bend * 0.5)
        body.limb(stem, tip, tail * 0.28, ACCENT, ELLIPSOID, 0.2)
    body.add(ELLIPSOID, (-0.1, tall * 0.9, 0), (long * 0.45, fin * 0.7, 0.05), ACCENT, tilt=-0.15)
    body.add(ELLIPSOID, (-0.2, -tall * 0.9, 0), (long * 0.25, under * 0.6, 0.05), ACCENT, tilt=0.2)
    body.pair(ELLIPSOID, (long * 0.3, -tall * 0.25, wide), (fin * 0.6, fin * 0.35, 0.06), ACCENT,
              tilt=0.5, turn=0.5)  # fmt: skip
    _eyes(body, (long * 0.6, tall * 0.2, 0), wide * 0.62, 0.09 + 0.05 * blunt)
    return body


def insect(g: Rng, v: Rng) -> Body:
    """Three segments, six legs, feelers, wings or wing cases."""
    body = Body()
    head, chest, belly, fat, leg, wing, wide, feel = _between(
        g, (0.15, 0.32), (0.2, 0.4), (0.35, 0.9), (0.2, 0.45), (0.5, 1.1), (0.4, 1.3), (0.2, 0.6),
        (0.2, 0.8),
    )  # fmt: skip
    spread, step = _between(v, (0.2, 1.1), (-0.3, 0.3))
    body.add(ELLIPSOID, (chest + head, 0, 0), (head, head, head * 1.1), ACCENT)
    body.add(ELLIPSOID, (0, 0.05, 0), (chest, chest * 0.9, chest), MAIN)
    body.add(ELLIPSOID, (-chest - belly * 0.7, 0, 0), (belly, fat, fat), MAIN)
    _eyes(body, (chest + head * 1.4, head * 0.4, 0), head * 0.8, head * 0.32)
    for i, x in enumerate((0.25, 0.0, -0.25)):
        for side in (1, -1):
            knee = (x * 2 + step * side * (1 - i), 0.3 * leg, side * (chest + leg * 0.55))
            foot = (x * 3 + step * side * (1 - i), -0.5, side * (chest + leg))
            body.limb((x, 0, side * chest * 0.7), knee, 0.05, DARK)
            body.limb(knee, foot, 0.04, DARK)
    if wing > 0.6:
        for side in (1, -1):
            tip = (-wing * 0.8, 0.35 + 0.2 * spread, side * (0.15 + spread * wing))
            body.limb((0.05, chest * 0.8, side * 0.1), tip, wide, SECOND, ELLIPSOID,
                      0.1, True)  # fmt: skip
    else:
        body.pair(ELLIPSOID, (-chest - belly * 0.5, fat * 0.4, fat * 0.4),
                  (belly * 0.95, fat * 0.75, fat * 0.6), SECOND)  # fmt: skip
    for side in (1, -1):
        start = (chest + head * 1.6, head * 0.5, side * head * 0.4)
        body.limb(start, (start[0] + feel, start[1] + feel * 0.6, side * (0.2 + feel * 0.4)),
                  0.03, DARK)  # fmt: skip
    return body


def serpent(g: Rng, v: Rng) -> Body:
    """A chain along a bent line: snakes, worms, ropes."""
    body = Body()
    thick, taper, waves, head = _between(g, (0.1, 0.26), (0.3, 1), (0.6, 2.2), (1.0, 1.8))
    phase, amp, rise = _between(v, (0, 6.28), (0.25, 0.6), (0.0, 0.7))
    points = []
    for i in range(13):
        s = i / 12
        points.append((2 * s - 1, thick + rise * max(0.0, s - 0.7) * 2,
                       amp * math.sin(phase + 6.28 * waves * s)))  # fmt: skip
    for i in range(12):
        a, b = points[i], points[i + 1]
        a2 = tuple(p + 0.35 * (p - q) for p, q in zip(a, b, strict=True))
        b2 = tuple(q + 0.35 * (q - p) for p, q in zip(a, b, strict=True))
        radius = thick * (1 - taper * (1 - i / 11) ** 2 * 0.8)
        body.limb(a2, b2, radius, MAIN if i % 3 else SECOND, ELLIPSOID)
    end = points[-1]
    body.add(ELLIPSOID, end, (thick * head * 1.3, thick * head * 0.8, thick * head), ACCENT)
    _eyes(body, (end[0] + thick * head * 0.6, end[1] + thick * 0.6, 0), 0, 0.01)
    for side in (1, -1):
        body.add(ELLIPSOID, (end[0] + thick * head * 0.5, end[1] + thick * head * 0.5,
                             end[2] + side * thick * head * 0.6), (0.05,) * 3, DARK)  # fmt: skip
    return body


def biped(g: Rng, v: Rng) -> Body:
    """Upright, two arms, two legs: people, robots, monkeys, dolls."""
    body = Body()
    tall, wide, deep, head, arm, leg, thick, hat = _between(
        g, (0.45, 0.8), (0.28, 0.55), (0.2, 0.4), (0.2, 0.42), (0.5, 0.95), (0.4, 1.0),
        (0.08, 0.18), (0, 1),
    )  # fmt: skip
    boxy = g.random() < 0.4
    left, right, stride, bow = _between(v, (-1.2, 1.4), (-1.2, 1.4), (-0.5, 0.5), (-0.15, 0.15))
    body.add(BOX if boxy else ELLIPSOID, (0, 0, 0), (deep, tall, wide), MAIN, tilt=bow)
    face = (0.1, tall + head * 0.95, 0.0)
    body.add(BOX if boxy and hat < 0.5 else ELLIPSOID, face, (head * 0.9, head, head * 0.9), SECOND)
    _eyes(body, (face[0] + head * 0.85, face[1] + head * 0.15, 0), head * 0.35, head * 0.14)
    if hat > 0.5:
        body.add(CYLINDER, (0.1, face[1] + head * 0.8, 0), (head * 1.2, head * 1.2, 0.06), ACCENT,
                 roll=1.571)  # fmt: skip
        body.add(ELLIPSOID, (0.1, face[1] + head * 0.9, 0), (head * 0.8, head * 0.6, head * 0.8),
                 ACCENT)  # fmt: skip
    for side, raise_ in ((1, left), (-1, right)):
        shoulder = (0.0, tall * 0.75, side * wide)
        hand = (0.3 * arm * math.cos(raise_), shoulder[1] + arm * math.sin(raise_ - 0.4),
                side * (wide + arm * 0.5))  # fmt: skip
        body.limb(shoulder, hand, thick, MAIN, CYLINDER if boxy else ELLIPSOID)
        body.add(ELLIPSOID, hand, (thick * 1.4,) * 3, SECOND)
        foot = (stride * side * leg, -tall - leg, side * wide * 0.5)
        body.limb((0, -tall * 0.7, side * wide * 0.45), foot, thick * 1.25, ACCENT)
        body.add(ELLIPSOID, (foot[0] + 0.1, foot[1], foot[2]),
                 (thick * 2.2, thick, thick * 1.4), DARK)  # fmt: skip
    return body


def vehicle(g: Rng, v: Rng) -> Body:
    """A chassis on wheels, with a cabin or a load: cars, trucks, wagons."""
    body = Body()
    long, tall, wide, cabin, high, back, wheel, soft, nose = _between(
        g, (0.9, 1.5), (0.18, 0.42), (0.4, 0.6), (0.35, 0.9), (0.16, 0.45), (-0.45, 0.4),
        (0.18, 0.36), (0, 1), (0, 1),
    )  # fmt: skip
    axles = 2 if g.random() < 0.7 else 3
    body.add(BOX, (0, 0, 0), (long, tall, wide))
    body.add(ELLIPSOID if nose < 0.5 else BOX, (long * 0.85, 0, 0),
             (long * 0.35, tall * 0.95, wide * 0.97))  # fmt: skip
    at = back * long * 0.6
    shape = ELLIPSOID if soft < 0.45 else BOX
    grow = 1.25 if shape == ELLIPSOID else 1.0
    body.add(shape, (at, tall + high * 0.8, 0), (cabin * grow, high * grow, wide * 0.86), SECOND)
    body.add(BOX, (at, tall + high * 0.9, 0), (cabin * 1.03, high * 0.45, wide * 0.8), DARK)
    body.add(BOX, (at, tall + high * 0.9, 0), (cabin * 0.75, high * 0.45, wide * 0.9), DARK)
    body.add(BOX, (0, -tall * 0.3, 0), (long * 1.01, tall * 0.14, wide * 1.02), ACCENT)
    for i in range(axles):
        x = long * (0.68 - 1.36 * i / (axles - 1))
        for side in (1, -1):
            body.add(CYLINDER, (x, -tall, side * wide), (wheel, wheel, 0.12), DARK)
            body.add(CYLINDER, (x, -tall, side * (wide + 0.03)),
                     (wheel * 0.5, wheel * 0.5, 0.12), ACCENT)  # fmt: skip
    body.pair(ELLIPSOID, (long * 1.1, 0, wide * 0.65), (0.12, 0.1, 0.1), ACCENT)
    return body


def aircraft(g: Rng, v: Rng) -> Body:
    """A fuselage with wings and a tail."""
    body = Body()
    long, fat, span, chord, sweep, fin, blunt, engine = _between(
        g, (1.0, 1.5), (0.14, 0.32), (0.8, 1.6), (0.2, 0.45), (-0.1, 0.7), (0.3, 0.6), (0, 1),
        (0, 1),
    )  # fmt: skip
    height = float(g.uniform(-0.5, 0.9)) * fat
    bank = float(v.uniform(-0.15, 0.15))
    body.add(ELLIPSOID, (0, 0, 0), (long, fat, fat))
    body.add(CYLINDER, (0, 0, 0), (fat * 0.92, fat * 0.92, long * 0.6), MAIN, turn=1.571)
    body.add(ELLIPSOID, (long * 0.6, fat * 0.45, 0), (long * 0.22, fat * 0.6, fat * 0.6), DARK)
    for side in (1, -1):
        tip = (-sweep, height + side * bank, side * span)
        body.limb((0.1, height, 0), tip, chord, SECOND, BOX if blunt < 0.5 else ELLIPSOID, 0.1,
                  True)  # fmt: skip
        tail = (-long * 0.95 - sweep * 0.3, fat * 0.6, side * span * 0.35)
        body.limb((-long * 0.85, fat * 0.3, 0), tail, chord * 0.55, SECOND, ELLIPSOID,
                  0.12, True)  # fmt: skip
        if engine > 0.4:
            body.add(CYLINDER, (0.05 - sweep * 0.3, height - 0.14, side * span * 0.4),
                     (0.11, 0.11, 0.24), ACCENT, turn=1.571)  # fmt: skip
    body.limb((-long * 0.75, 0.2 * fat, 0), (-long * 1.05, fat + fin, 0), chord * 0.6, ACCENT,
              ELLIPSOID, 0.14)  # fmt: skip
    if engine <= 0.4:
        body.add(BOX, (long * 1.02, 0, 0), (0.03, 0.5, 0.05), DARK, roll=float(v.uniform(0, 3)))
        body.add(ELLIPSOID, (long, 0, 0), (0.12, 0.1, 0.1), ACCENT)
    return body


def vessel(g: Rng, v: Rng) -> Body:
    """Turned on a wheel: bottles, cups, vases, lamps, bells."""
    body = Body()
    count = int(g.integers(3, 6))
    level = 0.0
    radius = float(g.uniform(0.25, 0.6))
    for i in range(count):
        radius = min(max(radius * math.exp(float(g.uniform(-0.75, 0.55))), 0.12), 0.75)
        tall = float(g.uniform(0.12, 0.45))
        kind = (ELLIPSOID, CYLINDER, CYLINDER, CONE)[int(g.integers(4))]
        slot = (MAIN, MAIN, SECOND)[int(g.integers(3))]
        grow = 1.3 if kind == ELLIPSOID else 1.0
        body.add(kind, (0, level + tall, 0), (radius, radius, tall * grow), slot, roll=-1.571)
        level += 1.6 * tall
        if i == 0:
            body.add(CYLINDER, (0, 0.03, 0), (radius * 1.05, radius * 1.05, 0.06), ACCENT,
                     roll=-1.571)  # fmt: skip
    body.add(CYLINDER, (0, level + 0.08, 0), (radius * 0.8, radius * 0.8, 0.07), ACCENT,
             roll=-1.571)  # fmt: skip
    if g.random() < 0.5:  # a handle
        size, height = _between(g, (0.18, 0.36), (0.3, 0.7))
        for i in range(7):
            angle = -1.5 + i * 0.5
            body.add(ELLIPSOID, (0.4 + math.cos(angle) * size, level * height
                                 + math.sin(angle) * size * 1.2, 0), (0.09,) * 3, ACCENT)  # fmt: skip
    return body


def furniture(g: Rng, v: Rng) -> Body:
    """A slab on legs, with or without a back and cushions."""
    body = Body()
    long, deep, slab, leg, thick, back, splay, arms = _between(
        g, (0.4, 1.1), (0.35, 0.7), (0.05, 0.2), (0.25, 1.0), (0.04, 0.12), (-0.6, 1.2), (0, 0.25),
        (0, 1),
    )  # fmt: skip
    round_top = g.random() < 0.35
    if round_top:
        body.add(CYLINDER, (0, 0, 0), (long, deep, slab), MAIN, roll=1.571)
    else:
        body.add(BOX, (0, 0, 0), (long, slab, deep))
    legs = (SECOND, ACCENT)[int(g.integers(2))]
    for x in (1, -1):
        for z in (1, -1):
            top = (x * long * 0.75, 0.0, z * deep * 0.75)
            body.limb(
                top, (x * (long * 0.75 + splay), -leg, z * (deep * 0.75 + splay)), thick, legs
            )
    if back > 0.1 and not round_top:
        body.add(BOX, (-long * 0.95, slab + back * 0.5, 0), (0.08, back * 0.55, deep), SECOND,
                 tilt=0.12)  # fmt: skip
        body.add(ELLIPSOID, (0, slab * 1.3, 0), (long * 0.85, 0.14, deep * 0.85), ACCENT)
        if arms > 0.5:
            body.pair(BOX, (0, slab + 0.22, deep), (long * 0.85, 0.07, 0.08), SECOND)
    elif arms > 0.4:
        body.add(BOX, (0, -leg * 0.6, 0), (long * 0.7, 0.04, deep * 0.7), SECOND)
    return body


def building(g: Rng, v: Rng) -> Body:
    """Storeys, a roof, perhaps towers."""
    body = Body()
    long, deep, tall, roof, door = _between(
        g, (0.4, 1.1), (0.35, 0.8), (0.3, 1.1), (0.2, 0.7), (0.08, 0.16)
    )
    towers = int(g.integers(0, 3))
    body.add(BOX, (0, tall, 0), (long, tall, deep))
    style = g.random()
    if style < 0.35:
        body.add(
            CONE, (0, 2 * tall + roof, 0), (long * 1.05, deep * 1.1, roof), SECOND, roll=-1.571
        )
    elif style < 0.65:
        body.add(ELLIPSOID, (0, 2 * tall, 0), (long * 0.95, roof, deep * 0.95), SECOND)
    else:
        for i in range(4):
            s = 1.08 - 0.27 * i
            body.add(BOX, (0, 2 * tall + roof * 0.25 * (i + 0.5), 0),
                     (long * 1.08, roof * 0.14, deep * s), SECOND)  # fmt: skip
    rows = 2 if tall > 0.6 else 1
    for i in range(3):
        for row in range(rows):
            x, y = (i - 1) * long * 0.62, tall * (0.6 if rows == 1 else 0.45 + row)
            body.pair(BOX, (x, y + 0.15, deep), (long * 0.14, tall * 0.18, 0.03), DARK)
    body.add(BOX, (long, door * 2, 0), (0.03, door * 2, door * 1.2), ACCENT)
    for i in range(towers):
        z = deep * (0.8 if i else -0.8)
        high, wide = tall * (1.3 + 0.4 * float(g.random())), 0.2 + 0.1 * float(g.random())
        body.add(CYLINDER, (-long * 0.8, high, z), (wide, wide, high), MAIN, roll=-1.571)
        body.add(CONE, (-long * 0.8, 2 * high + roof * 0.6, z), (wide * 1.3, wide * 1.3, roof * 0.6),
                 ACCENT, roll=-1.571)  # fmt: skip
    return body


def tree(g: Rng, v: Rng) -> Body:
    """A trunk and a crown of balls, tiers or fronds."""
    body = Body()
    trunk, thick, crown = _between(g, (0.3, 1.2), (0.07, 0.18), (0.4, 0.85))
    lean = float(v.uniform(-0.2, 0.2))
    top = (lean, trunk, 0.0)
    body.limb((0, 0, 0), top, thick, SECOND)
    style = g.random()
    if style < 0.4:
        for i in range(int(g.integers(5, 9))):
            angle, r = 2.4 * i + float(v.uniform(-0.4, 0.4)), crown * (0.55 if i else 0.0)
            size = crown * float(g.uniform(0.45, 0.7))
            body.add(ELLIPSOID, (lean + math.cos(angle) * r, trunk + crown * float(g.uniform(0, 0.7)),
                                 math.sin(angle) * r), (size, size * 0.8, size))  # fmt: skip
    elif style < 0.7:
        tiers = int(g.integers(2, 5))
        for i in range(tiers):
            size = crown * (1 - i / (tiers + 0.7))
            body.add(CONE, (lean, trunk + i * crown * 0.7, 0), (size, size, crown * 0.65), MAIN,
                     roll=-1.571)  # fmt: skip
    else:
        count, droop = int(g.integers(6, 10)), float(g.uniform(-0.5, 0.5))
        for i in range(count):
            angle = 6.28 * i / count + float(v.uniform(-0.2, 0.2))
            tip = (lean + math.cos(angle) * crown * 1.2, trunk + crown * droop,
                   math.sin(angle) * crown * 1.2)  # fmt: skip
            body.limb(top, tip, crown * 0.2, MAIN, ELLIPSOID, 0.35, True)
    if g.random() < 0.5:
        for _ in range(5):
            angle, r = float(v.uniform(0, 6.28)), crown * 0.85
            body.add(ELLIPSOID, (lean + math.cos(angle) * r, trunk + float(v.uniform(0, crown * 0.6)),
                                 math.sin(angle) * r), (0.1, 0.1, 0.1), ACCENT)  # fmt: skip
    return body


def flower(g: Rng, v: Rng) -> Body:
    """A stem with leaves and a wheel of petals."""
    body = Body()
    stem, petal, wide, heart, cup = _between(
        g, (0.3, 1.3), (0.35, 0.75), (0.12, 0.34), (0.12, 0.34), (-0.2, 0.9)
    )
    count, rings = int(g.integers(4, 12)), 1 + int(g.random() < 0.4)
    face_tilt, face_turn = _between(v, (-0.2, 1.2), (-0.6, 0.6))
    top = (float(v.uniform(-0.2, 0.2)), stem, 0.0)
    body.limb((0, 0, 0), top, 0.05, SECOND)
    nx, ny = math.sin(face_tilt) * math.cos(face_turn), math.cos(face_tilt)
    nz = math.sin(face_tilt) * math.sin(face_turn)
    n = (nx, ny, nz)
    a = _cross(n, (0.0, 0.0, 1.0) if abs(nz) < 0.9 else (1.0, 0.0, 0.0))
    norm = math.sqrt(sum(c * c for c in a))
    a = tuple(c / norm for c in a)
    b = _cross(n, a)
    for ring in range(rings):
        for i in range(count):
            angle = 6.283 * (i + 0.5 * ring) / count
            size = petal * (1 - 0.3 * ring)
            tip = tuple(
                t + size * 1.3 * (math.cos(angle) * p + math.sin(angle) * q)
                + n_ * size * (cup + 0.4 * ring)
                for t, p, q, n_ in zip(top, a, b, n, strict=True)
            )  # fmt: skip
            body.limb(top, tip, wide, MAIN, ELLIPSOID, 0.35, True)
    centre = tuple(t + 0.08 * c for t, c in zip(top, n, strict=True))
    body.add(ELLIPSOID, centre, (heart,) * 3, ACCENT)
    for side in (1, -1):
        body.limb((0, stem * 0.3, 0), (side * 0.45, stem * 0.5, side * 0.2), 0.12, SECOND,
                  ELLIPSOID, 0.3)  # fmt: skip
    return body


def fruit(g: Rng, v: Rng) -> Body:
    """Something lumpy to eat: a fruit, a cluster, a stack."""
    body = Body()
    style = g.random()
    if style < 0.4:
        tall, wide, dent = _between(g, (0.5, 1.3), (0.5, 0.9), (0.1, 0.5))
        body.add(ELLIPSOID, (0, 0, 0), (wide, tall, wide))
        body.add(
            ELLIPSOID, (0, -tall * 0.4, 0), (wide * (0.8 + dent), tall * 0.6, wide * (0.8 + dent))
        )
        body.limb((0, tall * 0.9, 0), (float(v.uniform(-0.2, 0.2)), tall + 0.35, 0), 0.06, SECOND)
        body.limb((0, tall, 0), (0.45, tall + 0.25, float(v.uniform(-0.3, 0.3))), 0.16, ACCENT,
                  ELLIPSOID, 0.3)  # fmt: skip
    elif style < 0.65:
        rows, size = int(g.integers(2, 5)), float(g.uniform(0.2, 0.32))
        for row in range(rows):
            for i in range(rows - row + 1):
                angle = 6.283 * i / (rows - row + 1) + row + float(v.uniform(-0.2, 0.2))
                r = size * (rows - row) * 0.62
                body.add(ELLIPSOID, (math.cos(angle) * r, -row * size * 1.3, math.sin(angle) * r),
                         (size,) * 3, MAIN if (i + row) % 4 else SECOND)  # fmt: skip
        body.limb((0, 0.1, 0), (0.1, 0.5, 0), 0.06, ACCENT)
    else:
        level, radius = 0.0, float(g.uniform(0.6, 0.9))
        for i in range(int(g.integers(3, 7))):
            tall = float(g.uniform(0.05, 0.16))
            kind = (CYLINDER, ELLIPSOID, BOX)[int(g.integers(3))]
            wide = radius * float(g.uniform(0.85, 1.1))
            slot = (MAIN, SECOND, ACCENT)[i % 3]
            if kind == CYLINDER:
                body.add(CYLINDER, (0, level + tall, 0), (wide, wide, tall), slot, roll=1.571)
            else:
                body.add(kind, (0, level + tall, 0), (wide, tall * 1.3, wide), slot)
            level += 2 * tall
        body.add(ELLIPSOID, (0, level, 0), (radius, 0.3, radius), MAIN)
    return body


def tool(g: Rng, v: Rng) -> Body:
    """A handle and a head: hammers, spoons, guitars, weapons."""
    body = Body()
    long, thick, head, wide, flat = _between(
        g, (0.7, 1.4), (0.06, 0.16), (0.2, 0.6), (0.15, 0.5), (0.2, 1.0)
    )
    slope = float(v.uniform(0.2, 1.2))
    c, s = math.cos(slope), math.sin(slope)
    body.limb((-c * long, -s * long, 0), (c * long, s * long, 0), thick, SECOND)
    body.limb(
        (-c * long, -s * long, 0), (-c * long * 0.55, -s * long * 0.55, 0), thick * 1.5, ACCENT
    )
    end = (c * long, s * long, 0.0)
    kind = (ELLIPSOID, BOX, CYLINDER, CONE)[int(g.integers(4))]
    across = g.random() < 0.5
    way = (-s, c) if across else (c, s)
    body.limb((end[0] - way[0] * head, end[1] - way[1] * head, 0),
              (end[0] + way[0] * head, end[1] + way[1] * head, 0), wide, MAIN, kind, flat)  # fmt: skip
    if g.random() < 0.5:
        mid = (c * long * 0.45, s * long * 0.45, 0.0)
        body.add(ELLIPSOID, mid, (wide * 0.7,) * 3, MAIN)
    return body


def ring(g: Rng, v: Rng) -> Body:
    """A hoop of beads, with a stone or spokes: rings, wheels, wreaths, necklaces."""
    body = Body()
    count = int(g.integers(10, 17))
    bead, squash, gem, spokes = _between(g, (0.1, 0.26), (0.6, 1.2), (0.1, 0.4), (0, 1))
    spin = float(v.uniform(0, 6.28))
    for i in range(count):
        angle = spin + 6.283 * i / count
        size = bead * (1 if i % 2 else float(squash))
        body.add(ELLIPSOID, (math.cos(angle), math.sin(angle), 0), (size * 1.5, size, size),
                 MAIN if i % 2 else SECOND, tilt=angle + 1.571)  # fmt: skip
    if spokes > 0.5:
        for i in range(3):
            angle = spin + 1.047 * i
            c, s = math.cos(angle), math.sin(angle)
            body.limb((-c, -s, 0), (c, s, 0), 0.05, ACCENT)
        body.add(ELLIPSOID, (0, 0, 0), (gem, gem, 0.2), ACCENT)
    else:
        body.add(ELLIPSOID, (0, 1 + gem, 0), (gem, gem * 1.1, gem), ACCENT)
    return body


def star(g: Rng, v: Rng) -> Body:
    """Spikes from a centre: starfish, crystals, urchins, cacti."""
    body = Body()
    count, long, thick, core, up = (
        int(g.integers(5, 14)), *_between(g, (0.5, 1.1), (0.1, 0.3), (0.15, 0.5), (0, 1))
    )  # fmt: skip
    body.add(ELLIPSOID, (0, 0, 0), (core,) * 3, SECOND)
    kind = (CONE, ELLIPSOID, CYLINDER)[int(g.integers(3))]
    for i in range(count):
        y = (1 - 2 * (i + 0.5) / count) * (1 if up < 0.6 else 0.15)
        r, angle = math.sqrt(1 - y * y), 2.4 * i + float(v.uniform(-0.15, 0.15))
        size = long * float(g.uniform(0.8, 1.2))
        tip = (r * math.cos(angle) * size, y * size, r * math.sin(angle) * size)
        body.limb((0, 0, 0), tip, thick, MAIN if i % 3 else ACCENT, kind)
    return body


def gadget(g: Rng, v: Rng) -> Body:
    """A made thing with no better plan: a case with knobs, tubes and plates, two-sided."""
    body = Body()
    a, b, c = _between(g, (0.3, 0.9), (0.3, 0.9), (0.2, 0.6))
    kinds = (ELLIPSOID, CYLINDER, BOX, BOX)
    body.add(kinds[int(g.integers(4))], (0, 0, 0), (a, b, c))
    for _ in range(int(g.integers(3, 7))):
        x, y, z, p, q, r = _between(
            g, (-a, a), (-b, b), (0, c), (0.1, 0.35), (0.1, 0.35), (0.1, 0.3)
        )
        slot, kind = (SECOND, ACCENT, MAIN, DARK)[int(g.integers(4))], kinds[int(g.integers(4))]
        turn, tilt = _between(g, (-0.5, 0.5), (-0.8, 0.8))
        body.pair(kind, (x * 1.1, y * 1.1, z + 0.6 * c), (p, q, r), slot, turn, tilt)
    lid = float(v.uniform(0, 0.7))
    body.add(BOX, (a * 0.2, b + 0.1, 0), (a * 0.7, 0.06, c), SECOND, tilt=lid)
    return body


PLANS: dict[str, Callable[[Rng, Rng], Body]] = {
    plan.__name__: plan
    for plan in (
        quadruped, bird, fish, insect, serpent, biped, vehicle, aircraft, vessel, furniture,
        building, tree, flower, fruit, tool, ring, star, gadget,
    )
}  # fmt: skip
