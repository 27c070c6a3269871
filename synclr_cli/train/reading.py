"""Which tokens are read after the last block: worked out on the host, where the masks are.

    masks of each view --Reading.of--> rows, crops --to--> the same on the device

Shapes: B crops of a view, N patches, M masked patches, R rows of tokens of all views, W of them
read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synclr_cli.learning.runtime import Runtime

# A product of fewer rows is summed in another order by some libraries (MKL: fewer than four a
# thread), and what an image gives would then depend on how many are worked on with it.
FEWEST_ROWS = 16


@dataclass(frozen=True)
class Group:
    """Crops of one view of which equally many tokens are read."""

    view: int
    crops: Tensor  # [m], of the view
    tokens: int  # of each
    whole: bool  # these are all crops of the view, in order


@dataclass(frozen=True)
class Reading:
    """Which of the R rows of all views' tokens are read, [W]: group by group, crop by crop."""

    groups: list[Group]
    rows: Tensor  # [W], of the R
    crops: Tensor  # [W], the crop of all views whose row it is
    cls: list[Tensor]  # of each view, which of the W are its crops' cls tokens, [B]
    patches: list[Tensor]  # of each view, which of the W are its wanted patches, [M]

    @staticmethod
    def of(
        patches: Sequence[NDArray[np.bool_] | None], shapes: Sequence[tuple[int, int]]
    ) -> Reading:
        """Read each crop's cls token and some patches of some crops.

        Never fewer than `FEWEST_ROWS`: the first row is read again if need be, and no one uses it.

        Args:
            patches: of each view, the patches to read, [B, N]: equally many of each crop that has
                any; None: none.
            shapes: of each view, its crops and the tokens of each.
        """
        groups, rows, crops, cls, of_patches = [], [], [], [], []
        first_row = first_crop = read = 0
        for view, (chosen, (n, tokens)) in enumerate(zip(patches, shapes, strict=True)):
            has = np.zeros(n, bool) if chosen is None else np.asarray(chosen.any(1))  # [B]
            cls.append(np.empty(n, np.int64))
            of_patches.append(np.empty(0, np.int64))
            for members in (np.flatnonzero(has), np.flatnonzero(~has)):  # [m]
                if not len(members):
                    continue
                places = np.zeros((len(members), 1), np.int64)
                if chosen is not None and bool(has[members].any()):
                    columns = 1 + chosen[members].nonzero()[1].reshape(len(members), -1)  # [m, k]
                    places = np.concatenate([places, columns], axis=1)  # [m, 1 + k]
                numbers = np.arange(read, read + places.size).reshape(places.shape)
                cls[view][members] = numbers[:, 0]
                if places.shape[1] > 1:
                    of_patches[view] = numbers[:, 1:].reshape(-1)
                whole = len(members) == n
                groups.append(Group(view, torch.from_numpy(members), places.shape[1], whole))
                rows.append((first_row + members[:, None] * tokens + places).reshape(-1))
                crops.append(np.repeat(first_crop + members, places.shape[1]))
                read += places.size
            first_row, first_crop = first_row + n * tokens, first_crop + n
        if read < FEWEST_ROWS:
            rows.append(rows[0][:1].repeat(FEWEST_ROWS - read))
            crops.append(crops[0][:1].repeat(FEWEST_ROWS - read))
        return Reading(
            groups,
            torch.from_numpy(np.concatenate(rows)),
            torch.from_numpy(np.concatenate(crops)),
            [torch.from_numpy(at) for at in cls],
            [torch.from_numpy(at) for at in of_patches],
        )

    def to(self, runtime: Runtime) -> Reading:
        """Return the same on the run's device; the host does not wait for the copies."""
        return Reading(
            [replace(g, crops=runtime.upload(g.crops)) for g in self.groups],
            runtime.upload(self.rows),
            runtime.upload(self.crops),
            [runtime.upload(at) for at in self.cls],
            [runtime.upload(at) for at in self.patches],
        )
