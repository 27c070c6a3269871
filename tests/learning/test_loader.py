"""The order of an epoch, and what loader processes hand over."""

import os
import signal
import time

import pytest

from synclr_cli.errors import DataError, EngineError
from synclr_cli.learning import loader


def die_of_five(key):
    if key == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return key


def die_later_of_five(key):
    if key == 5:
        time.sleep(1)  # until the batch before has been handed over
    return die_of_five(key)


def order(start=0, steps=9, rank=0, world=1, seed=0, n=14, batch=4):
    return loader.EpochOrder(n, batch, seed=seed, start=start, steps=steps, rank=rank, world=world)


def square(key):
    return key * key


def refuse_five(key):
    if key == 5:
        raise DataError("photo 5 does not decode")
    return key


def test_an_epoch_shows_no_image_twice_and_its_number_counts_up():
    batches = list(order())
    assert len(batches) == len(order()) == 9
    for epoch in range(3):  # 14 images make three batches of four
        keys = [key for batch in batches[3 * epoch : 3 * epoch + 3] for key in batch]
        assert {e for e, _ in keys} == {epoch}
        assert len({i for _, i in keys}) == 12
    first, second = ([i for b in batches[k : k + 3] for _, i in b] for k in (0, 3))
    assert first != second


def test_an_order_entered_late_is_the_rest_of_the_whole():
    assert list(order(start=4)) == list(order())[4:]
    assert list(order(start=9)) == []


def test_the_ranks_share_each_batch_out():
    for whole, one, two in zip(
        order(), order(rank=0, world=2), order(rank=1, world=2), strict=True
    ):
        assert len(one) == len(two) == 2
        assert sorted(one + two) == sorted(whole)


def test_another_seed_gives_another_order():
    assert list(order(seed=0)) != list(order(seed=1))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order_whoever_makes_them(workers):
    keys = loader.in_batches(range(11), 4)
    found = [batch.tolist() for batch in loader.load(square, keys, workers=workers)]
    assert found == [[k * k for k in batch] for batch in keys]
    assert [len(batch) for batch in found] == [4, 4, 3]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_process_hands_our_errors_over_as_they_were(workers):
    batches = loader.load(refuse_five, [[1, 2], [4, 5]], workers=workers)
    assert next(batches).tolist() == [1, 2]
    with pytest.raises(DataError) as caught:
        next(batches)
    assert str(caught.value) == "photo 5 does not decode"


@pytest.mark.filterwarnings("error")
def test_a_loader_process_that_is_killed_is_one_line():
    batches = loader.load(die_of_five, [[1, 2], [4, 5]], workers=1)
    with pytest.raises(EngineError, match=r"a loader process ended.*lack of memory"):
        list(batches)


def test_a_killed_loader_process_interrupts_nothing_before_the_next_batch():
    """So that the update in between is whole, and can be saved."""
    batches = loader.load(die_later_of_five, [[1], [5], [6]], workers=1)
    assert next(batches).tolist() == [1]
    end = time.monotonic() + 3
    while time.monotonic() < end:  # by then it has died; torch's own handler would raise here
        time.sleep(0.01)
    with pytest.raises(EngineError, match="a loader process ended"):
        list(batches)


@pytest.mark.filterwarnings("error")
def test_more_loader_processes_than_cores_are_no_reason_to_warn():
    assert len(list(loader.load(square, [[1], [2]], workers=3))) == 2
