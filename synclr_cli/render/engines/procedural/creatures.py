"""Body plans of what walks, flies, swims and crawls.

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
    Vector,
    between,
    mix,
)


def _eyes(body: Body, at: Vector, apart: float, size: float) -> None:
    body.pair(ELLIPSOID, (at[0], at[1], apart), (size, size, size), DARK)


def quadruped(g: Rng, v: Rng) -> Body:
    """Four legs, a head on a neck, ears, a tail: dogs, horses, bears."""
    body = Body()
    long, fat, leg, thick, neck, lift, head, snout, ear, tail, bushy, round_ear = between(
        g, (0.8, 1.5), (0.32, 0.6), (0.35, 1.1), (0.08, 0.16), (0.15, 0.8), (0.3, 1.2),
        (0.24, 0.4), (0.12, 0.4), (0.1, 0.42), (0.3, 1.1), (0.05, 0.14), (0, 1),
    )  # fmt: skip
    nod, look, swing, wag, lift_tail = between(
        v, (-0.35, 0.25), (-0.7, 0.7), (-0.45, 0.45), (-0.6, 0.6), (-0.6, 0.9)
    )
    body.add(ELLIPSOID, (0, 0, 0), (long, fat, fat * 0.9))
    body.add(ELLIPSOID, (0.15, -0.3 * fat, 0), (long * 0.8, fat * 0.75, fat * 0.7), SECOND)
    for side, fore, phase in ((1, 1, 1), (-1, 1, -1), (1, -1, -1), (-1, -1, 1)):
        top = (fore * long * 0.65, -0.2 * fat, side * fat * 0.5)
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
    long, fat, neck, head, beak, curve, wing, chord, tail, legs = between(
        g, (0.5, 0.9), (0.35, 0.6), (0.05, 0.9), (0.2, 0.34), (0.12, 0.6), (-0.5, 0.2),
        (0.7, 1.5), (0.25, 0.5), (0.25, 1.0), (0.15, 0.8),
    )  # fmt: skip
    flap, turn, pitch = between(v, (-0.5, 0.9), (-0.8, 0.8), (-0.2, 0.5))
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
    long, tall, wide, tail, fin, under, blunt = between(
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
    head, chest, belly, fat, leg, wing, wide, feel = between(
        g, (0.15, 0.32), (0.2, 0.4), (0.35, 0.9), (0.2, 0.45), (0.5, 1.1), (0.4, 1.3), (0.2, 0.6),
        (0.2, 0.8),
    )  # fmt: skip
    spread, step = between(v, (0.2, 1.1), (-0.3, 0.3))
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
    thick, taper, waves, head = between(g, (0.1, 0.26), (0.3, 1), (0.6, 2.2), (1.0, 1.8))
    phase, amp, rise = between(v, (0, 6.28), (0.25, 0.6), (0.0, 0.7))
    points = []
    for i in range(13):
        s = i / 12
        points.append((2 * s - 1, thick + rise * max(0.0, s - 0.7) * 2,
                       amp * math.sin(phase + 6.28 * waves * s)))  # fmt: skip
    for i in range(12):
        a, b = points[i], points[i + 1]
        along = mix(1, b, -1, a)
        start, stop = mix(1, a, -0.35, along), mix(1, b, 0.35, along)
        radius = thick * (1 - taper * (1 - i / 11) ** 2 * 0.8)
        body.limb(start, stop, radius, MAIN if i % 3 else SECOND, ELLIPSOID)
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
    tall, wide, deep, head, arm, leg, thick, hat = between(
        g, (0.45, 0.8), (0.28, 0.55), (0.2, 0.4), (0.2, 0.42), (0.5, 0.95), (0.4, 1.0),
        (0.08, 0.18), (0, 1),
    )  # fmt: skip
    boxy = g.random() < 0.4
    left, right, stride, bow = between(v, (-1.2, 1.4), (-1.2, 1.4), (-0.5, 0.5), (-0.15, 0.15))
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
