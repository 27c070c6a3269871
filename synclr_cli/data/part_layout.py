"""Which captions a part holds and how many rows of each, in few bytes.

Most parts hold captions without a gap in their ids, each with as many rows: the manifest's first
and last id and its numbers of rows and captions say it all. Of the others the manifest keeps this.
"""

from __future__ import annotations

import base64
import zlib

import numpy as np
from numpy.typing import NDArray


def encode(ids: NDArray[np.int64], rows: NDArray[np.int64]) -> str:
    """Return a part's ids [C], which rise, and their numbers of rows [C], in base64.

    "" for ids without a gap, each with as many rows: such a part is known without a layout.
    """
    if not len(ids) or (ids[-1] - ids[0] == len(ids) - 1 and (rows == rows[0]).all()):
        return ""
    pairs = np.stack([np.diff(ids, prepend=ids[0]), rows]).astype("<i8")  # [2, C]
    return base64.b64encode(zlib.compress(pairs.tobytes())).decode()


def decode(first: int, data: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the ids [C] and numbers of rows [C] that `encode` was given.

    Args:
        first: the lowest id.
        data: what `encode` returned, its base64 undone.

    Raises:
        ValueError: they are none.
    """
    try:
        steps, rows = np.frombuffer(zlib.decompress(data), "<i8").reshape(2, -1)  # [C], [C]
    except zlib.error as e:
        raise ValueError(f"no layout of a part ({e})") from e
    return first + np.cumsum(steps), rows
