"""Body plans of what grows: trees, flowers, fruit, and what radiates.

A plan takes two streams of random numbers: `g`, the genes, fixed by the concept (how long are the
legs, how many petals), and `v`, the view (which leg is forward, where the head turns).
"""

from __future__ import annotations

import math

from synclr_cli.render.engines.procedural.bodies import (
    ACCENT,
    BOX,
    CONE,
    CYLINDER,
    ELLIPSOID,
    MAIN,
    SECOND,
    Body,
    Rng,
    between,
    cross,
    mix,
    norm,
    scaled,
)


def tree(g: Rng, v: Rng) -> Body:
    """A trunk and a crown of balls, tiers or fronds."""
    body = Body()
    trunk, thick, crown = between(g, (0.3, 1.2), (0.07, 0.18), (0.4, 0.85))
    lean = float(v.uniform(-0.2, 0.2))
    top = (lean, trunk, 0.0)
    body.limb((0, 0, 0), top, thick, SECOND)
    style = g.random()
    if style < 0.4:
        for i in range(int(g.integers(5, 9))):
            angle, r = 2.4 * i + float(v.uniform(-0.4, 0.4)), crown * (0.55 if i else 0.0)
            size = crown * float(g.uniform(0.45, 0.7))
            y = trunk + crown * float(g.uniform(0, 0.7))
            at = (lean + math.cos(angle) * r, y, math.sin(angle) * r)
            body.add(ELLIPSOID, at, (size, size * 0.8, size))
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
            y = trunk + float(v.uniform(0, crown * 0.6))
            at = (lean + math.cos(angle) * r, y, math.sin(angle) * r)
            body.add(ELLIPSOID, at, (0.1, 0.1, 0.1), ACCENT)
    return body


def flower(g: Rng, v: Rng) -> Body:
    """A stem with leaves and a wheel of petals."""
    body = Body()
    stem, petal, wide, heart, cup = between(
        g, (0.3, 1.3), (0.35, 0.75), (0.12, 0.34), (0.12, 0.34), (-0.2, 0.9)
    )
    count, rings = int(g.integers(4, 12)), 1 + int(g.random() < 0.4)
    face_tilt, face_turn = between(v, (-0.2, 1.2), (-0.6, 0.6))
    top = (float(v.uniform(-0.2, 0.2)), stem, 0.0)
    body.limb((0, 0, 0), top, 0.05, SECOND)
    nx, ny = math.sin(face_tilt) * math.cos(face_turn), math.cos(face_tilt)
    nz = math.sin(face_tilt) * math.sin(face_turn)
    n = (nx, ny, nz)
    a = cross(n, (0.0, 0.0, 1.0) if abs(nz) < 0.9 else (1.0, 0.0, 0.0))
    a = scaled(a, norm(a))
    b = cross(n, a)
    for ring in range(rings):
        for i in range(count):
            angle = 6.283 * (i + 0.5 * ring) / count
            size = petal * (1 - 0.3 * ring)
            x, y, z = (
                t + size * 1.3 * (math.cos(angle) * p + math.sin(angle) * q)
                + n_ * size * (cup + 0.4 * ring)
                for t, p, q, n_ in zip(top, a, b, n, strict=True)
            )  # fmt: skip
            body.limb(top, (x, y, z), wide, MAIN, ELLIPSOID, 0.35, True)
    centre = mix(1, top, 0.08, n)
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
        tall, wide, dent = between(g, (0.5, 1.3), (0.5, 0.9), (0.1, 0.5))
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


def star(g: Rng, v: Rng) -> Body:
    """Spikes from a centre: starfish, crystals, urchins, cacti."""
    body = Body()
    count, long, thick, core, up = (
        int(g.integers(5, 14)), *between(g, (0.5, 1.1), (0.1, 0.3), (0.15, 0.5), (0, 1))
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
