"""Random numbers as a function of what they are for: no generator, no state, no order.

`uniform(seed, step, picture, CROP, 3)` is one number in [0, 1) that any worker, rank or resumed
process computes alike; arrays broadcast. The mixing function is the finaliser of SplitMix64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

# What a number is drawn for; one stream each, so that no two uses share numbers.
VIEWS, CROP, COLOUR, MASKED_PICTURES, MASKED_PATCHES, DEPTH, DOWNSAMPLE = range(7)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def key(*parts: ArrayLike) -> NDArray[np.uint64]:
    """Return 64 well-mixed bits for each broadcast combination of whole numbers."""
    bits = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):  # wrapping around is the point
        for part in parts:
            bits = (bits ^ np.asarray(part).astype(np.uint64)) + _GOLDEN
            bits = (bits ^ (bits >> np.uint64(30))) * _MIX_1
            bits = (bits ^ (bits >> np.uint64(27))) * _MIX_2
            bits = bits ^ (bits >> np.uint64(31))
    return bits


def uniform(*parts: ArrayLike) -> NDArray[np.float64]:
    """Return one number in [0, 1) for each broadcast combination of whole numbers."""
    return (key(*parts) >> np.uint64(11)) * 2.0**-53
