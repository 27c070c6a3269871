"""Who stands where in one view of a caption.

Reading, Species, Camera --cast--> Things: posed parts in image units, and their skins
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from synclr_cli.render.engines.procedural.bodies import Parts
from synclr_cli.render.engines.procedural.species import (
    Species,
    palette,
    parts_of,
    species,
    surface,
)
from synclr_cli.render.engines.procedural.words import Reading, hashed


@dataclass(frozen=True)
class Thing:
    """One solid individual, placed: its parts in image units (width 1, y up), and its skin."""

    kind: Species
    parts: Parts
    colours: np.ndarray  # [5, 3]
    pattern: str
    finish: str
    size: float  # radius, image units
    captioned: bool  # it is the concept of the caption


@dataclass(frozen=True)
class Camera:
    """Where the view is taken from: angles in radians."""

    elevation: float
    roll: float

    def axes(self, turn: float) -> np.ndarray:
        """Return the rotation [3, 3] from a body that is turned about y to camera axes."""
        ct, st = math.cos(turn), math.sin(turn)
        ce, se = math.cos(self.elevation), math.sin(self.elevation)
        cr, sr = math.cos(self.roll), math.sin(self.roll)
        yaw = np.array([[ct, 0, st], [0, 1, 0], [-st, 0, ct]])
        pitch = np.array([[1, 0, 0], [0, ce, -se], [0, se, ce]])
        roll = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
        return roll @ pitch @ yaw


class Habits:
    """What a caption's words leave open and most of its views share: a stream for each purpose.

    A text-to-image model answers one sentence much alike each time: what it does not say, such as
    the colour of a thing or the side it is seen from, is the same in most of the images. Four
    views in five take the streams of their caption; the others draw their own.
    """

    def __init__(self, caption: str, concept: str, view: np.random.Generator):
        self._of: tuple[str, ...] = (caption, concept)
        if view.random() > 0.8:
            self._of += (str(int(view.integers(1 << 62))),)

    def __call__(self, purpose: str) -> np.random.Generator:
        """Return the stream of a purpose, from its start."""
        return np.random.Generator(np.random.PCG64(hashed("habit", purpose, *self._of)))


def cast(
    reading: Reading,
    kind: Species,
    camera: Camera,
    family: str,
    view: np.random.Generator,
    habit: Habits,
) -> list[Thing]:
    """Return everything solid, the captioned concept first."""
    # The main thing fills a third to four fifths of the width.
    share = float(habit("size").normal(0.37, 0.06)) + float(view.normal(0, 0.045))
    size = float(np.clip(share, 0.2, 0.55)) * reading.size
    size = min(size, 0.62)
    companion = reading.companion
    if companion:
        size *= 0.78
    if reading.count > 1:
        size *= 1.15 / math.sqrt(reading.count)
    x, y = 0.5 + float(view.normal(0, 0.07)), 0.47 + float(view.normal(0, 0.05))
    if family == "sky":
        y = 0.5 + float(view.normal(0, 0.08))
    pose = habit("pose")
    turn = float(pose.uniform(0, 2 * math.pi)) + float(view.normal(0, 0.5))
    if kind.plan in ("fish", "aircraft", "tool", "ring", "vehicle", "serpent"):
        # Things told by their outline are seldom shown from the front.
        turn = math.pi * int(pose.integers(2)) + float(view.normal(0, 0.65))

    spots = [(x, y, 0.0)]
    for i in range(1, reading.count):
        a = 2.4 * i + turn
        spots.append((x + math.cos(a) * size * (0.8 + 0.25 * i),
                      y + math.sin(a) * size * 0.5, -0.5 * i))  # fmt: skip
    things = [
        _thing(kind, reading, reading.colours, size, spot, turn + 0.3 * i, camera, view,
               habit("colours"), True)
        for i, spot in enumerate(spots)
    ]  # fmt: skip
    if companion:
        wide = reading.relation in ("on", "in")
        grown = size * float(view.uniform(0.9, 1.15) if wide else view.uniform(0.75, 1.0))
        other = _thing(species(companion), None, reading.companion_colours, grown, (x, y, 0.0),
                       float(habit("companion's pose").uniform(0, 6.28)), camera, view,
                       habit("companion's colours"), False)  # fmt: skip
        things.append(_arrange(things, other, reading.relation or "beside", view))
        things = _centred(things, x, y)
    for _ in range(int(view.integers(0, 3)) if family != "plain" else 0):  # clutter
        stranger = species(f"clutter {int(view.integers(1 << 30))}")
        side = 1 if view.random() < 0.5 else -1
        at = (0.5 + side * float(view.uniform(0.22, 0.55)), float(view.uniform(0.35, 0.6)), -3.0)
        things.append(_thing(stranger, None, (), float(view.uniform(0.06, 0.15)), at,
                             float(view.uniform(0, 6.28)), camera, view, view, False))  # fmt: skip
    return things


def _arrange(things: list[Thing], other: Thing, relation: str, view: np.random.Generator) -> Thing:
    """Return the companion, moved to where the relation says the captioned things are from it."""
    left, right, low, high = _extent(things)
    o_left, o_right, o_low, o_high = _extent([other])
    way = 1 if view.random() < 0.5 else -1
    slack = float(view.uniform(0.0, 0.12)) * other.size
    aside = right - o_left + slack if way > 0 else left - o_right - slack
    wide, tall = right - left, high - low
    move = {
        "beside": (aside, low - o_low, 0.0),
        "behind": (way * 0.3 * wide, low - o_low - 0.22 * tall, 2.5),  # the companion is nearer
        "front": (way * 0.35 * wide, low - o_low + 0.3 * tall, -2.5),
        "on": (0.0, low - o_high + 0.12 * tall, -0.3),
        "in": (0.0, low - o_high + 0.55 * tall, 1.5),
        "above": (0.0, low - o_high - slack - 0.08 * tall, 0.0),
        "below": (0.0, high - o_low + slack + 0.08 * tall, 0.0),
    }[relation]
    return _moved(other, *move)


def _extent(things: list[Thing]) -> tuple[float, float, float, float]:
    """Return (left, right, low, high) of things, about, in image units."""
    centre = np.concatenate([t.parts.centre for t in things])
    reach = np.concatenate([
        np.abs(t.parts.axes * t.parts.radii[:, :, None]).sum(1) * 0.85 for t in things
    ])  # fmt: skip
    low, high = (centre - reach).min(0), (centre + reach).max(0)
    return float(low[0]), float(high[0]), float(low[1]), float(high[1])


def _moved(thing: Thing, x: float, y: float, z: float, scale: float = 1.0) -> Thing:
    """Return the thing moved in image units (z in its sizes), after scaling about 0."""
    parts = thing.parts
    centre = parts.centre * scale + [x, y, z * thing.size]
    placed = replace(parts, centre=centre, radii=parts.radii * scale)
    return replace(thing, parts=placed, size=thing.size * scale)


def _centred(things: list[Thing], x: float, y: float) -> list[Thing]:
    """Return things together in the middle, reduced if they would leave the image."""
    left, right, low, high = _extent(things)
    scale = min(1.0, 0.95 / max(right - left, high - low))
    to_x, to_y = x - scale * (left + right) / 2, y - scale * (low + high) / 2
    return [_moved(t, to_x, to_y, 0.0, scale) for t in things]


def _thing(
    kind: Species,
    reading: Reading | None,
    words: tuple[str, ...],
    size: float,
    at: tuple[float, float, float],
    turn: float,
    camera: Camera,
    view: np.random.Generator,
    wears: np.random.Generator,
    captioned: bool,
) -> Thing:
    body = parts_of(kind, view)
    axes = camera.axes(turn)
    top = (body.centre[:, 1] + 0.9 * np.abs(body.axes * body.radii[:, :, None]).sum(1)[:, 1]).max()
    centre = (body.centre - [0, top / 2, 0]) @ axes.T * size
    parts = Parts(
        body.kind,
        centre + np.array([at[0], at[1], at[2] * size]),
        body.axes @ axes.T,
        body.radii * size,
        body.slot,
    )
    pattern, finish = surface(kind, reading)
    return Thing(kind, parts, palette(kind, words, wears), pattern, finish, size, captioned)
