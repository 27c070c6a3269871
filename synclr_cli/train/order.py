"""In which order an epoch shows the captions: a function of (seed, epoch, position).

    full     every order is as likely; up to 2^20 captions numpy's permutation, held, above that
             a Feistel network over the positions (`rng.permuted`), of which nothing is held
    blocks   the 16 captions of a row group stay together, in their order; the groups are shuffled

With `full` a batch of 4096 captions of a large set reads 4096 row groups for a sixteenth of each;
with `blocks` it reads 256, whole. The price: captions of one row group are always in one batch.
That is harmless where neighbours are independent draws, as those of `synclr captions` are, and not
where they are alike: an imported folder may be sorted by class.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from synclr_cli import rng
from synclr_cli.train.image_index import ImageIndex

LARGEST_HELD = 2**20  # captions; 8 MiB for each loader process
BLOCK = 16  # captions of a row group, as `render` and `import` write them


class Order:
    """One epoch's permutation of the captions, by their numbers in the index."""

    def __init__(self, index: ImageIndex, shuffle: str, seed: int, epoch: int):
        self.epoch = epoch
        self._key, self._size = (seed, epoch), len(index)
        self._held = self._blocks = None
        if shuffle == "blocks":
            self._blocks = _Blocks(index.starts)
        elif self._size <= LARGEST_HELD:
            self._held = rng.generator(seed, epoch).permutation(self._size)

    def __len__(self) -> int:
        return self._size

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the captions at positions [N] of the epoch."""
        if self._held is not None:
            return self._held[positions]
        if self._blocks is not None:
            return self._blocks.shuffled(positions, *self._key)
        return rng.permuted("train.order", positions, self._size, *self._key)


class _Blocks:
    """Shuffles blocks of captions that share a row group.

    A caption has a slot: its part's first slot, a multiple of BLOCK, and its number in the part.
    Slots behind a part's last caption are empty. A block of slots goes to the place of another;
    what meets an empty slot there goes on from it, by cycle walking as in `rng.permuted`.
    """

    def __init__(self, starts: NDArray[np.int64]):
        """Take the number of each part's first caption, and the total, [P + 1]."""
        self._captions = starts
        blocks = -(-np.diff(starts) // BLOCK)  # [P]
        self._slots = np.concatenate([[0], np.cumsum(blocks)]) * BLOCK  # [P + 1]

    def shuffled(self, captions: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
        """Return where captions [N] go, in an epoch."""
        total = int(self._slots[-1]) // BLOCK
        part = np.searchsorted(self._captions, captions, side="right") - 1
        slots = self._slots[part] + captions - self._captions[part]  # [N]
        landed = np.empty_like(captions)
        todo = np.arange(len(captions))
        while len(todo):
            block, place = np.divmod(slots[todo], BLOCK)
            slot = rng.permuted("train.blocks", block, total, seed, epoch) * BLOCK + place
            part = np.searchsorted(self._slots, slot, side="right") - 1
            slots[todo] = slot
            landed[todo] = self._captions[part] + slot - self._slots[part]
            todo = todo[landed[todo] >= self._captions[part + 1]]
        return landed
