"""What a caption repeats of its neighbours: exactly, or nearly (MinHash; Broder 1997).

    words of N captions --pairs--> hashes --MinHash--> signatures --bands--> candidates --> Jaccard

Two captions are near duplicates if the Jaccard index of their sets of word pairs reaches a limit.
Signatures come from `rensa`; those that agree in a whole band are candidates, and for candidates
the index is computed exactly, so nothing is refused by estimate. What the bands overlook is less
than `_OVERLOOKED` of the pairs at the limit, and less above it.
N captions, P hashes of a signature, B bands, Q captions asked about.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import operator
from collections.abc import Sequence

import numpy as np
from rensa import RMinHash

EXACT = "exact duplicate"
NEAR = "near duplicate"

_HASHES = 64  # of a signature
_OVERLOOKED = 0.02  # of the pairs at the limit
_MOST_CANDIDATES = 16  # in a band: of many captions that are all alike the first ones tell
_SEED = 20_231_229
_PRIME = np.uint64(0x9E3779B97F4A7C15)


class Neighbours:
    """Rows near each other, among which a caption must be new.

    A caption is compared with the *first* draws of the rows before it: they depend on nothing but
    seed and id, so a row stays a function of seed and id.
    """

    def __init__(self, first_draws: Sequence[list[str]], similarity: float):
        """Remember the words of N captions.

        Args:
            similarity: Jaccard index from 0 to 1, at which exact duplicates alone count.
        """
        self._similarity, self._first = similarity, first_draws
        self._first_row: dict[str, int] = {}
        for row, words in enumerate(first_draws):
            if words:
                self._first_row.setdefault(" ".join(words), row)
        if similarity < 1:
            self._pairs = _Pairs(first_draws)
            self._width = band_width(similarity)
            self._signatures = self._pairs.signatures()  # [N, P]
            self._bands = bands(self._signatures, self._width)  # [B, N]
            self._orders = np.argsort(self._bands, axis=1, kind="stable")  # [B, N]
            self._sorted = np.take_along_axis(self._bands, self._orders, axis=1)

    def alike(self, captions: Sequence[list[str]], rows: Sequence[int]) -> list[str]:
        """Return EXACT, NEAR or "" for each caption's words, drawn for these rows."""
        reasons = [
            EXACT if words and self._first_row.get(" ".join(words), row) < row else ""
            for words, row in zip(captions, rows, strict=True)
        ]
        if self._similarity < 1 and len(captions):
            for number in self._near(captions, np.asarray(rows)):
                reasons[number] = reasons[number] or NEAR
        return reasons

    def _near(self, captions: Sequence[list[str]], rows: np.ndarray) -> set[int]:
        # At the first draw nothing has to be computed again.
        first = len(captions) == len(self._first) and all(map(operator.is_, captions, self._first))
        queries = self._pairs if first else _Pairs(captions)
        signatures = self._signatures if first else queries.signatures()  # [Q, P]
        numbers, others = self._candidates(bands(signatures, self._width), rows)
        # The estimate sorts out most of them; three of its standard deviations are left for error.
        agreeing = (signatures[numbers] == self._signatures[others]).mean(axis=1)
        limit = self._similarity
        spread = 3 * math.sqrt(limit * (1 - limit) / _HASHES)
        likely = np.flatnonzero(agreeing >= limit - spread).tolist()
        near: set[int] = set()
        for i in likely:
            number = int(numbers[i])
            if number not in near:
                pairs, other_pairs = queries.of(number), self._pairs.of(int(others[i]))
                common = len(pairs & other_pairs)
                if common and common >= self._similarity * (len(pairs) + len(other_pairs) - common):
                    near.add(number)
        return near

    def _candidates(self, queries: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (caption asked about, earlier row) of all that agree in a band [B, Q]."""
        matches: list[np.ndarray] = []
        count = queries.shape[1]
        for keys, order, values in zip(self._sorted, self._orders, queries, strict=True):
            start = np.searchsorted(keys, values)  # [Q]
            for step in range(_MOST_CANDIDATES):
                place = np.minimum(start + step, len(keys) - 1)
                good = (start + step < len(keys)) & (keys[place] == values)
                good &= order[place] < rows  # rows of a key stand in order
                if not good.any():
                    break
                matches.append(np.flatnonzero(good) + count * order[place[good]])
        if not matches:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        every = np.unique(np.concatenate(matches))
        return every % count, every // count


class _Pairs:
    """The pairs of neighbouring words of N captions, hashed, one caption after the other."""

    def __init__(self, captions: Sequence[list[str]]):
        sizes = np.fromiter(map(len, captions), np.int64, len(captions))
        ends = np.cumsum(sizes)
        words = np.fromiter(
            map(_hashes.__getitem__, itertools.chain.from_iterable(captions)),
            np.uint64,
            int(sizes.sum()),
        )
        pairs = (words[:-1] * _PRIME) ^ words[1:]
        across = ends[:-1] - 1  # pairs of the last word of one caption and the first of the next
        kept = np.ones(len(pairs), dtype=bool)
        kept[across[(across >= 0) & (across < len(pairs))]] = False
        self._hashes = pairs[kept]
        self._starts = np.concatenate([[0], np.cumsum(np.maximum(sizes - 1, 0))])

    def signatures(self) -> np.ndarray:
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            self._hashes, self._starts.tolist(), _HASHES, _SEED
        )
        count = len(self._starts) - 1
        flat = itertools.chain.from_iterable(matrix.to_rows())
        return np.fromiter(flat, np.uint32, count * _HASHES).reshape(count, _HASHES)

    def of(self, number: int) -> set[int]:
        return set(self._hashes[self._starts[number] : self._starts[number + 1]].tolist())


class _WordHashes(dict[str, int]):
    def __missing__(self, word: str) -> int:
        if len(self) > 1 << 17:  # bounded: a language does not have more in use
            self.clear()
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self[word] = value = int.from_bytes(digest, "little")
        return value


_hashes = _WordHashes()


def band_width(similarity: float) -> int:
    """Return how many hashes make a band, as many as leave few pairs at the limit overlooked.

    A band of r hashes agrees with probability s^r, so one of B = P / r does with 1 - (1 - s^r)^B.
    """
    widths = [
        r for r in range(1, _HASHES + 1) if (1 - similarity**r) ** (_HASHES // r) <= _OVERLOOKED
    ]
    return max(widths, default=1)


def bands(signatures: np.ndarray, width: int) -> np.ndarray:
    """Return a 64-bit key of each band [B, N] of signatures [N, P]."""
    count = _HASHES // width
    keys = np.zeros((count, len(signatures)), dtype=np.uint64)
    for i in range(width):
        column = signatures[:, i : count * width : width].T.astype(np.uint64)  # [B, N]
        keys = (keys ^ column) * _PRIME
        keys ^= keys >> np.uint64(29)
    return keys
