"""Random numbers as a function of what they are for: no generator, no state, no order.

    ("train.crop", seed, step, image ids) --mix--> 64 bits each --> uniform numbers | seeds

A counter-based generator: a number is a hash of its name and its coordinates, so any worker, rank,
shard or resumed process computes it alike, and a block of rows is one array. The mixing function is
the finaliser of SplitMix64 (Steele et al. 2014), applied once for each coordinate.
"""

from __future__ import annotations

import hashlib
import math
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import ArrayLike, NDArray

FEISTEL_ROUNDS = 12  # four are enough for large halves (Luby and Rackoff 1988), not for size 5


def key(name: str, *numbers: ArrayLike) -> NDArray[np.uint64]:
    """Return 64 well-mixed bits for each broadcast combination of whole numbers.

    Args:
        name: what the bits are for; other names give other streams.
        numbers: whole numbers (seed, step, ids ...), scalars or arrays that broadcast.
    """
    import numpy as np

    golden = np.uint64(0x9E3779B97F4A7C15)
    bits = np.asarray(_of_name(name), dtype=np.uint64)
    with np.errstate(over="ignore"):  # wrapping around is the point
        for number in numbers:
            bits = (bits ^ np.asarray(number).astype(np.uint64)) + golden
            bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            bits = bits ^ (bits >> np.uint64(31))
    return bits


def uniform(name: str, *numbers: ArrayLike) -> NDArray[np.float64]:
    """Return one number in [0, 1), of 53 random bits, for each combination of whole numbers."""
    import numpy as np

    return (key(name, *numbers) >> np.uint64(11)) * np.float64(2.0**-53)


def seeds(name: str, *numbers: ArrayLike) -> NDArray[np.int64]:
    """Return a seed from 0 to 2^63 - 1 for each combination of whole numbers."""
    import numpy as np

    return (key(name, *numbers) >> np.uint64(1)).astype(np.int64)


def seed(name: str, *numbers: int) -> int:
    """Return one seed from 0 to 2^63 - 1, for a library's own generator."""
    return int(seeds(name, *numbers))


def generator(*numbers: int) -> np.random.Generator:
    """Return numpy's generator for whole numbers, for what is not one number an id.

    Permutations, resampling, augmentation of one image. It has no name: purposes that meet in all
    their numbers draw alike, so a seed is never its only number where two of them could.
    """
    import numpy as np

    return np.random.Generator(np.random.PCG64(numbers))


def permuted(
    name: str, positions: NDArray[np.int64], size: int, *numbers: int
) -> NDArray[np.int64]:
    """Return where positions [N] in range(size) go in one permutation of it, which is not held.

    A Feistel network over pairs (left, right) with left x width + right = position, where width is
    the root of the size: each round adds to one half a hash of the other. What lands at `size` or
    beyond, less than one position in a root of them, goes through again until it does not (cycle
    walking; Black and Rogaway 2002).

    Args:
        name: what the permutation is for.
        numbers: whole numbers (seed, epoch ...); others give another permutation.
    """
    import numpy as np

    width = math.isqrt(size - 1) + 1
    height = -(-size // width)
    landed = np.array(positions, np.int64)  # a copy
    todo = np.arange(len(landed))
    while len(todo):
        left, right = np.divmod(landed[todo].astype(np.uint64), np.uint64(width))
        for number in range(0, FEISTEL_ROUNDS, 2):
            right = (right + key(name, *numbers, number, left) % width) % width
            left = (left + key(name, *numbers, number + 1, right) % height) % height
        landed[todo] = (left * width + right).astype(np.int64)
        todo = todo[landed[todo] >= size]
    return landed


def torch_generator(name: str, *numbers: int) -> torch.Generator:
    """Return torch's generator on the CPU for a name and whole numbers."""
    import torch

    return torch.Generator().manual_seed(seed(name, *numbers))


@cache
def _of_name(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
