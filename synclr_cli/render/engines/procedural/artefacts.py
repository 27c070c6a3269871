"""Body plans of what is made: vehicles, vessels, furniture, buildings, tools.

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
    DARK,
    ELLIPSOID,
    MAIN,
    SECOND,
    Body,
    Rng,
    between,
)


def vehicle(g: Rng, _v: Rng) -> Body:
    """A chassis on wheels, with a cabin or a load: cars, trucks, wagons."""
    body = Body()
    long, tall, wide, cabin, high, back, wheel, soft, nose = between(
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
    long, fat, span, chord, sweep, fin, blunt, engine = between(
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


def vessel(g: Rng, _v: Rng) -> Body:
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
        size, height = between(g, (0.18, 0.36), (0.3, 0.7))
        for i in range(7):
            angle = -1.5 + i * 0.5
            x, y = 0.4 + math.cos(angle) * size, level * height + math.sin(angle) * size * 1.2
            body.add(ELLIPSOID, (x, y, 0), (0.09,) * 3, ACCENT)
    return body


def furniture(g: Rng, _v: Rng) -> Body:
    """A slab on legs, with or without a back and cushions."""
    body = Body()
    long, deep, slab, leg, thick, back, splay, arms = between(
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


def building(g: Rng, _v: Rng) -> Body:
    """Storeys, a roof, perhaps towers."""
    body = Body()
    long, deep, tall, roof, door = between(
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
        tip = (-long * 0.8, 2 * high + roof * 0.6, z)
        body.add(CONE, tip, (wide * 1.3, wide * 1.3, roof * 0.6), ACCENT, roll=-1.571)
    return body


def tool(g: Rng, v: Rng) -> Body:
    """A handle and a head: hammers, spoons, guitars, weapons."""
    body = Body()
    long, thick, head, wide, flat = between(
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
    a, b = way[0] * head, way[1] * head
    body.limb((end[0] - a, end[1] - b, 0), (end[0] + a, end[1] + b, 0), wide, MAIN, kind, flat)
    if g.random() < 0.5:
        mid = (c * long * 0.45, s * long * 0.45, 0.0)
        body.add(ELLIPSOID, mid, (wide * 0.7,) * 3, MAIN)
    return body


def ring(g: Rng, v: Rng) -> Body:
    """A hoop of beads, with a stone or spokes: rings, wheels, wreaths, necklaces."""
    body = Body()
    count = int(g.integers(10, 17))
    bead, squash, gem, spokes = between(g, (0.1, 0.26), (0.6, 1.2), (0.1, 0.4), (0, 1))
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


def gadget(g: Rng, v: Rng) -> Body:
    """A made thing with no better plan: a case with knobs, tubes and plates, two-sided."""
    body = Body()
    a, b, c = between(g, (0.3, 0.9), (0.3, 0.9), (0.2, 0.6))
    kinds = (ELLIPSOID, CYLINDER, BOX, BOX)
    body.add(kinds[int(g.integers(4))], (0, 0, 0), (a, b, c))
    for _ in range(int(g.integers(3, 7))):
        x, y, z, p, q, r = between(
            g, (-a, a), (-b, b), (0, c), (0.1, 0.35), (0.1, 0.35), (0.1, 0.3)
        )
        slot, kind = (SECOND, ACCENT, MAIN, DARK)[int(g.integers(4))], kinds[int(g.integers(4))]
        turn, tilt = between(g, (-0.5, 0.5), (-0.8, 0.8))
        body.pair(kind, (x * 1.1, y * 1.1, z + 0.6 * c), (p, q, r), slot, turn, tilt)
    lid = float(v.uniform(0, 0.7))
    body.add(BOX, (a * 0.2, b + 0.1, 0), (a * 0.7, 0.06, c), SECOND, tilt=lid)
    return body
