"""One view of a caption: who stands where, under which light, before which ground.

    caption, concept, seed -> Reading -> species -> posed parts in pixels -> depth buffer ->
    skin and shadow -> over the ground -> occluders -> camera -> pixels [S, S, 3], mask [S, S]

Everything random comes from the view's seed, in one fixed order of draws per stream, or, where the
views of a caption are to agree on what its words leave open, from the caption itself (`Habits`).
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from synclr_cli.render.engines.procedural import grounds, noise, raster, surfaces
from synclr_cli.render.engines.procedural.bodies import Parts
from synclr_cli.render.engines.procedural.species import species
from synclr_cli.render.engines.procedural.things import Camera, Habits, Thing, cast
from synclr_cli.render.engines.procedural.words import Reading, read

OVERSAMPLE = 2  # rays per pixel side, for solids


def draw(caption: str, concept: str, seed: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one view: pixels [side, side, 3] uint8 and the concept's mask [side, side] uint8."""
    view = np.random.Generator(np.random.PCG64(seed))
    reading = read(caption, concept)
    kind = species(concept)
    habit = Habits(caption, concept, view)

    camera = Camera(
        abs(float(habit("camera").normal(0.28, 0.2)) + float(view.normal(0, 0.06))),
        float(view.normal(0, 0.06)),
    )
    family, turn = grounds.choose(reading, kind.haunts, habit("ground"))
    horizon = 0.46 - 0.75 * math.sin(camera.elevation) + float(view.normal(0, 0.05))
    if family in ("sky", "deep"):
        horizon = 1.2 if family == "sky" else horizon + 0.25
    light, mood = _light(reading, family, view)
    backdrop = grounds.draw(reading, family, turn, horizon, side, side, view)
    image = backdrop.light * mood

    things = cast(reading, kind, camera, family, view, habit)
    image = _soften(image, view)
    _shadows(image, things, light, camera, horizon, view)
    mask = _solids(image, things, light, side, view)
    _occlude(image, mask, light, view)
    return _develop(image, view), mask


def _light(
    reading: Reading, family: str, view: np.random.Generator
) -> tuple[surfaces.Light, np.ndarray]:
    """Return the light on solids, and the factor [3] on the ground's own colours."""
    azimuth, height = float(view.uniform(-2.2, 2.2)), float(view.uniform(0.3, 1.2))
    direction = np.array(
        [math.sin(azimuth) * math.cos(height), math.sin(height),
         math.cos(azimuth) * math.cos(height) * 0.8 + 0.25], np.float32,
    )  # fmt: skip
    direction /= np.sqrt(direction @ direction)
    warmth = float(view.normal(0, 0.09))
    strength, ambient = float(view.uniform(0.55, 1.05)), float(view.uniform(0.22, 0.5))
    mood = np.ones(3, np.float32)
    when = reading.light or ("night" if family == "night" else None)
    if when == "night":
        strength, ambient, warmth = strength * 0.55, ambient * 0.55, warmth - 0.12
        mood = np.array([0.22, 0.25, 0.36], np.float32)
    elif when == "dusk":
        warmth += 0.3
        mood = np.array([0.95, 0.62, 0.45], np.float32)
    elif when in ("fog", "overcast"):
        strength, ambient = strength * 0.4, ambient * 1.5
        mood = np.array([0.75, 0.78, 0.82], np.float32)
    elif when == "sun":
        strength *= 1.25
    if family == "night":
        mood = np.ones(3, np.float32)
    lamp = np.array([1 + warmth, 1, 1 - warmth], np.float32) * strength
    cool = np.array([1 - 0.5 * warmth, 1, 1 + 0.5 * warmth], np.float32)
    family_near = np.square(np.array(grounds.FAMILIES[family].near, np.float32))
    below = ambient * (0.35 + 0.6 * family_near)
    return surfaces.Light(direction, lamp, cool * ambient * 1.3, below), mood * (
        0.75 + 0.35 * strength
    )


def _shadows(
    image: np.ndarray,
    things: list[Thing],
    light: surfaces.Light,
    camera: Camera,
    horizon: float,
    view: np.random.Generator,
) -> None:
    """Darken the ground under solids: one soft blot per part, thrown away from the lamp."""
    side = image.shape[0]
    coarse = max(side // 4, 16)
    xs = ((np.arange(coarse, dtype=np.float32) + 0.5) / coarse)[None]
    ys = 1 - ((np.arange(coarse, dtype=np.float32) + 0.5) / coarse)[:, None]
    shade = np.zeros((coarse, coarse), np.float32)
    flatness = max(math.sin(camera.elevation), 0.12)
    slant = -light.direction[0] / max(float(light.direction[1]), 0.35)
    for thing in things:
        parts = thing.parts
        foot = float((parts.centre[:, 1] - parts.radii.max(1) * 0.5).min())
        if foot > 1 - horizon + 0.25:
            continue
        high = parts.centre[:, 1] - foot
        x = parts.centre[:, 0] + slant * high * 0.8
        y = np.full(len(x), foot + 0.02) + 0.25 * flatness * high
        wide = parts.radii.max(1) * 0.8 + 0.25 * high + 0.015
        thick = wide * (0.25 + 0.6 * flatness)
        dx = (xs[None] - x[:, None, None]) / wide[:, None, None]
        dy = (ys[None] - y[:, None, None]) / thick[:, None, None]
        weight = 0.5 / (1 + 3 * high / thing.size)
        blots = weight[:, None, None] / (1 + (dx * dx + dy * dy) ** 2)
        shade += blots.sum(0).astype(np.float32)
    strength = float(view.uniform(0.45, 0.85))
    dark = 1 - strength * np.clip(shade, 0, 1.0)
    smooth = _enlarge(dark, side)
    below = (np.arange(side) > horizon * side)[:, None, None]
    image *= np.where(below, smooth[..., None], 1)


def _enlarge(small: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))


def _solids(
    image: np.ndarray,
    things: list[Thing],
    light: surfaces.Light,
    side: int,
    view: np.random.Generator,
) -> np.ndarray:
    """Draw the things into the image; return the captioned one's mask [side, side]."""
    n = side * OVERSAMPLE
    parts = Parts(*(
        np.concatenate([getattr(t.parts, f) for t in things])
        for f in ("kind", "centre", "axes", "radii", "slot")
    ))  # fmt: skip
    owner = np.repeat(np.arange(len(things)), [len(t.parts.kind) for t in things])
    pixels = Parts(parts.kind, parts.centre * n, parts.axes, parts.radii * n, parts.slot)
    seen = raster.cast(pixels, n, n)
    mask = np.zeros((side, side), np.uint8)
    if not len(seen.flat):
        return mask
    whose = owner[seen.part]
    size = np.array([t.size for t in things])[whose]
    unit = (parts.radii[seen.part] / size[:, None]).astype(np.float32)
    q = seen.local * unit
    slot = parts.slot[seen.part]
    colour = np.empty((len(whose), 3), np.float32)
    seed = float(view.uniform(0, 200))
    for i, thing in enumerate(things):
        rows = np.flatnonzero(whose == i)
        if not len(rows):
            continue
        here, slots = q[rows], slot[rows]
        base = thing.colours[:4][slots]
        rough = surfaces.grain(thing.kind.tile, here, seed)
        if thing.pattern != "plain":
            share = surfaces.pattern(thing.pattern, here, thing.kind.scale, seed)
            share = share * (slots == 0)
            base = base + share[:, None] * (thing.colours[4] - base)
        base = base * np.maximum(1 + thing.kind.grain * rough, 0.2)[:, None]
        colour[rows] = surfaces.lit(base, seen.normal[rows], thing.finish, rough, light)
        dark = rows[slots == 3]
        if len(dark):
            colour[dark] = surfaces.lit(
                np.full((len(dark), 3), 0.012, np.float32), seen.normal[dark], "glossy",
                np.zeros(len(dark), np.float32), light,
            )  # fmt: skip
    # Creases and undersides get less light: depth below the neighbourhood's mean depth.
    colour *= _crease(seen, n)[:, None]

    # Rows are counted from the bottom so far.
    top = (n - 1 - seen.flat // n) * n + seen.flat % n
    layer = np.zeros((n * n, 4), np.float32)
    layer[top, :3] = colour
    layer[top, 3] = 1
    captioned = np.zeros(n * n, np.float32)
    captioned[top] = np.array([t.captioned for t in things])[whose]
    layer, covered = _reduced(layer.reshape(n, n, 4)), _reduced(captioned.reshape(n, n))
    image *= 1 - layer[..., 3:]
    image += layer[..., :3]
    mask[covered >= 0.5] = 1
    return mask


def _reduced(fine: np.ndarray) -> np.ndarray:
    """Return the means of OVERSAMPLE x OVERSAMPLE blocks; adding slices beats a mean over axes."""
    k = OVERSAMPLE
    total = fine[::k, ::k].copy()
    for i in range(1, k * k):
        total += fine[i // k :: k, i % k :: k]
    total *= 1 / (k * k)
    return total


def _crease(seen: raster.Seen, n: int) -> np.ndarray:
    """Return a factor [N] that darkens where the surface lies behind its neighbourhood."""
    depth = np.full((n, n), np.nan, np.float32)
    depth.reshape(-1)[seen.flat] = seen.depth
    reach = max(n // 40, 1)
    factor = np.ones(len(seen.flat), np.float32)
    y, x = seen.flat // n, seen.flat % n
    for dy, dx in ((reach, 0), (-reach, 0), (0, reach), (0, -reach)):
        other = depth[np.clip(y + dy, 0, n - 1), np.clip(x + dx, 0, n - 1)]
        over = (other - seen.depth) / (4 * reach)
        factor -= 0.14 * np.nan_to_num(np.clip(over, 0, 1))
    return factor


def _soften(image: np.ndarray, view: np.random.Generator) -> np.ndarray:
    """Blur the background as a lens out of focus would, in half of the views."""
    amount = float(view.random())
    if amount < 0.5:
        return image
    side = image.shape[0]
    small = max(int(side * (1.25 - amount * 0.95)), 8)
    planes = []
    for c in range(3):
        plane = Image.fromarray(np.ascontiguousarray(image[..., c]))
        plane = plane.resize((small, small), Image.Resampling.BOX)
        planes.append(np.asarray(plane.resize((side, side), Image.Resampling.BICUBIC)))
    return np.stack(planes, -1)


def _occlude(
    image: np.ndarray, mask: np.ndarray, light: surfaces.Light, view: np.random.Generator
) -> None:
    """Put something near and out of focus before the scene, in one view of five."""
    if view.random() > 0.2:
        return
    side = image.shape[0]
    y = (np.arange(side, dtype=np.float32)[:, None] + 0.5) / side
    x = (np.arange(side, dtype=np.float32)[None] + 0.5) / side
    hue = np.array(
        ((0.30, 0.22, 0.14), (0.16, 0.30, 0.10), (0.35, 0.35, 0.37))[int(view.integers(3))]
    )
    colour = np.square(hue * view.uniform(0.5, 1.7, 3)).astype(np.float32)
    style = int(view.integers(3))
    if style == 0:  # a post or a branch
        slope, at, wide = (float(v) for v in view.uniform((-0.6, 0.1, 0.02), (0.6, 0.9, 0.06)))
        cover = wide - np.abs(x - at + slope * (y - 0.5))
    elif style == 1:  # blades from below
        blades = noise.smooth_at("spots", x[0] * 110 + float(view.uniform(0, 250)), x[0] * 0)
        cover = (0.12 * blades + float(view.uniform(0.02, 0.14)))[None] - (1 - y)
    else:  # a blurred edge of something at a side
        way, at = (1 if view.random() < 0.5 else -1), float(view.uniform(0.02, 0.16))
        cover = at - (x if way > 0 else 1 - x) + 0.05 * np.sin(9 * y + 20 * at)
    alpha = np.clip(cover * float(view.uniform(8, 30)) + 0.5, 0, 1)[..., None]
    shade = (light.above + 0.6 * light.lamp) * colour
    texture = 1 + 0.3 * noise.window("rough", view, side, side, 90)[..., None]
    image += alpha * (shade * texture - image)
    mask[alpha[..., 0] > 0.5] = 0


def _develop(image: np.ndarray, view: np.random.Generator) -> np.ndarray:
    """Expose, tone and add the sensor's noise: light [S, S, 3] -> sRGB uint8."""
    side = image.shape[0]
    exposure, vignette, noisy, haze = view.uniform((0.82, 0.0, 0.0, 0.0), (1.22, 0.35, 1.0, 1.0))
    r = np.linspace(-1, 1, side, dtype=np.float32)
    fall = 1 - np.float32(vignette) * 0.5 * (r[:, None] ** 2 + r[None] ** 2)
    out = np.sqrt(np.maximum(image * (np.float32(exposure) * fall)[..., None], 0))
    # A soft shoulder keeps highlights from clipping flat.
    out = np.where(out > 0.8, 0.8 + 0.2 * np.tanh((out - 0.8) * 4), out)
    if haze > 0.85:
        out = 0.85 * out + 0.12
    sigma = 0.004 + 0.02 * float(noisy) ** 3
    out += sigma * view.standard_normal((side, side, 1), np.float32)
    return (np.clip(out, 0, 1) * 255 + 0.5).astype(np.uint8)
