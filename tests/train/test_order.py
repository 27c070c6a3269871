"""The order of an epoch: every caption once; blocks of a row group whole; numpy's if small."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from synclr_cli import rng
from synclr_cli.train import order
from synclr_cli.train.order import BLOCK, Order


def index_of(parts: list[int]) -> Any:
    """Return as much of an index as an order asks of it, for parts of so many captions."""

    class Index(SimpleNamespace):
        def __len__(self) -> int:
            return sum(parts)

    return Index(starts=np.concatenate([[0], np.cumsum(parts)]))


PARTS = [[256] * 9, [255, 256, 31, 0, 16, 17, 1, 5, 0, 0, 240], [1], [0, 3], [15, 15, 15]]


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("shuffle", ["full", "blocks"])
@pytest.mark.parametrize("held", [0, 2**20])
def test_an_epoch_shows_each_caption_once(
    parts: list[int], shuffle: str, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "LARGEST_HELD", held)
    index = index_of(parts)
    for epoch in range(3):
        shown = Order(index, shuffle, 5, epoch).at(np.arange(len(index)))
        assert (np.sort(shown) == np.arange(len(index))).all()


@pytest.mark.parametrize("shuffle", ["full", "blocks"])
def test_epochs_and_seeds_differ_and_pieces_are_of_the_whole(
    shuffle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "LARGEST_HELD", 0)
    index = index_of([250] * 40)
    orders = [Order(index, shuffle, *key) for key in ((0, 0), (0, 1), (1, 0))]
    first, other_epoch, other_seed = (o.at(np.arange(10_000)) for o in orders)
    assert (first != other_epoch).mean() > 0.99 and (first != other_seed).mean() > 0.99
    assert (orders[0].at(np.arange(777, 999)) == first[777:999]).all()


def test_a_small_set_is_shown_in_the_order_of_numpy() -> None:
    shown = Order(index_of([300]), "full", 3, 2).at(np.arange(300))
    assert (shown == rng.generator(3, 2).permutation(300)).all()


def test_a_row_group_is_in_one_batch_with_blocks_and_in_many_without() -> None:
    index = index_of([256, 250] * 2000)
    starts = index.starts

    def groups_read(shuffle: str) -> float:
        shown = Order(index, shuffle, 0, 0).at(np.arange(4096, 8192))
        part = np.searchsorted(starts, shown, side="right") - 1
        groups = part * 1000 + (shown - starts[part]) // BLOCK
        return len(np.unique(groups)) / (4096 / BLOCK)

    assert groups_read("blocks") < 1.2  # a part that is not a multiple of BLOCK costs a little
    assert groups_read("full") > 14


def test_blocks_come_in_no_order() -> None:
    index = index_of([256] * 4000)
    shown = Order(index, "blocks", 0, 0).at(np.arange(len(index)))
    blocks = shown[::BLOCK] // BLOCK
    assert (shown.reshape(-1, BLOCK) == blocks[:, None] * BLOCK + np.arange(BLOCK)).all()
    for x, y in ((blocks[1:], blocks[:-1]), (blocks, np.arange(len(blocks)))):
        assert abs(np.corrcoef(x, y)[0, 1]) < 4 / np.sqrt(len(x))
