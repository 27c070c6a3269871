"""Solid parts -> pixels: an orthographic ray caster with a depth buffer, and its light.

Each part is a convex solid with a closed form, so a pixel's ray meets it in one interval; the
nearest interval end over all parts is what the pixel sees. Shapes: H x W supersampled pixels,
P parts, N pixels that see a solid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from synclr_cli.render.engines.procedural.bodies import BOX, ELLIPSOID, Parts

# x^2 + y^2 + s z^2 + l z <= k in a part's own axes, and |z| <= 1: ellipsoid, cylinder, cone.
_FORMS = ((1.0, 0.0, 1.0), (0.0, 0.0, 1.0), (0.0, 0.5, 0.5))
_FAR = np.float32(-1e9)


@dataclass(frozen=True)
class Seen:
    """The N pixels that see a solid: where, which, and how its surface lies there."""

    flat: np.ndarray  # [N] pixel index into H x W
    part: np.ndarray  # [N] part index
    local: np.ndarray  # [N, 3] on the part's unit shape
    normal: np.ndarray  # [N, 3] in camera axes, unit length
    depth: np.ndarray  # [N] pixels toward the camera


def cast(parts: Parts, height: int, width: int) -> Seen:
    """Return what each pixel sees of parts given in pixels: x right, y up from the bottom row."""
    to_local = (parts.axes / parts.radii[:, :, None]).astype(np.float32)  # [P, 3, 3]
    offset = -np.einsum("pij,pj->pi", to_local, parts.centre).astype(np.float32)
    reach = np.where(
        (parts.kind == ELLIPSOID)[:, None],
        np.sqrt(np.square(parts.axes * parts.radii[:, :, None]).sum(1)),
        np.abs(parts.axes * parts.radii[:, :, None]).sum(1),
    )
    low = np.floor(parts.centre - reach).astype(int)
    high = np.ceil(parts.centre + reach).astype(int) + 1
    x0, x1 = np.clip(low[:, 0], 0, width), np.clip(high[:, 0], 0, width)
    y0, y1 = np.clip(low[:, 1], 0, height), np.clip(high[:, 1], 0, height)
    xs, ys = np.arange(width, dtype=np.float32) + 0.5, np.arange(height, dtype=np.float32) + 0.5
    depth = np.full((height, width), _FAR, np.float32)
    which = np.full((height, width), -1, np.int32)
    for p in np.flatnonzero((x1 > x0) & (y1 > y0)):
        window = (slice(y0[p], y1[p]), slice(x0[p], x1[p]))
        across = np.outer(to_local[p, :, 0], xs[window[1]]) + offset[p, :, None]  # [3, w]
        up = np.outer(to_local[p, :, 1], ys[window[0]])  # [3, h]
        origin = across[:, None] + up[:, :, None]  # [3, h, w]
        along = to_local[p, :, 2]
        t, hit = (_box if parts.kind[p] == BOX else _quadric)(origin, along, int(parts.kind[p]))
        nearer = hit & (t > depth[window])
        np.copyto(depth[window], t, where=nearer)
        np.copyto(which[window], np.int32(p), where=nearer)

    flat = np.flatnonzero(which >= 0)
    part = which.ravel()[flat]
    z = depth.ravel()[flat]
    point = np.stack((xs[flat % width], ys[flat // width], z))  # [3, N]
    rows = to_local[part]  # [N, 3, 3]
    local = np.einsum("nij,jn->ni", rows, point) + offset[part]
    gradient = _gradient(parts.kind[part], local)
    normal = np.einsum("nij,ni->nj", rows, gradient)
    normal /= np.sqrt(np.square(normal).sum(1, keepdims=True)) + 1e-9
    return Seen(flat, part, local, normal, z)


def _quadric(origin: np.ndarray, along: np.ndarray, kind: int) -> tuple[np.ndarray, np.ndarray]:
    s, linear, k = _FORMS[kind]
    o0, o1, o2 = origin
    d0, d1, d2 = (float(d) for d in along)
    a = max(d0 * d0 + d1 * d1 + s * d2 * d2, 1e-9)
    b = o0 * d0 + o1 * d1 + o2 * (s * d2) + linear * d2 / 2
    c = o0 * o0 + o1 * o1 + o2 * (s * o2 + linear) - k
    root = b * b - a * c
    hit = root > 0
    root = np.sqrt(np.maximum(root, 0))
    far = (root - b) / a
    if kind == ELLIPSOID:
        return far, hit
    near = (-root - b) / a
    steep = abs(d2) if abs(d2) > 1e-6 else 1e-6
    middle = o2 * (-1 / d2 if abs(d2) > 1e-6 else -1e6)
    top, bottom = middle + 1 / steep, middle - 1 / steep
    far, near = np.minimum(far, top), np.maximum(near, bottom)
    return far, hit & (far > near)


def _box(origin: np.ndarray, along: np.ndarray, _: int) -> tuple[np.ndarray, np.ndarray]:
    safe = np.where(np.abs(along) > 1e-6, along, 1e-6)
    middle = -origin / safe[:, None, None]
    half = 1 / np.abs(safe)[:, None, None]
    fars, nears = middle + half, middle - half
    far = np.minimum(np.minimum(fars[0], fars[1]), fars[2])
    near = np.maximum(np.maximum(nears[0], nears[1]), nears[2])
    return far, far > near


def _gradient(kind: np.ndarray, local: np.ndarray) -> np.ndarray:
    """Return the outward direction [N, 3] of the unit shapes' surfaces, in their own axes."""
    s = np.array([1.0, 0.0, 0.0, 0.0], np.float32)[kind]
    linear = np.array([0.0, 0.0, 0.25, 0.0], np.float32)[kind]
    gradient = local.copy()
    gradient[:, 2] = local[:, 2] * s + linear
    size = np.abs(local)
    flat = (kind != ELLIPSOID) & (size[:, 2] > 0.999)  # on a cap
    box = kind == BOX
    face = size.argmax(1)
    face[flat & ~box] = 2
    on_plane = np.flatnonzero(flat | box)
    gradient[on_plane] = 0
    gradient[on_plane, face[on_plane]] = np.sign(local[on_plane, face[on_plane]])
    return gradient
