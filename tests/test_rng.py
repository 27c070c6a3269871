"""The counter-based generator: uniform in every bit, one stream a name, no state."""

import numpy as np

from synclr_cli import rng


def test_the_bits_are_uniform_and_streams_seeds_and_neighbours_do_not_agree():
    ids = np.arange(20_000)
    a, b = rng.key("a", 0, ids), rng.key("b", 0, ids)
    for x in (a, b, a ^ b, rng.key("a", 1, ids) ^ a, a[1:] ^ a[:-1]):
        for bit in range(64):
            ones = int(((x >> np.uint64(bit)) & np.uint64(1)).sum())
            assert abs(ones - len(x) / 2) < 4.5 * np.sqrt(len(x)) / 2, bit
    assert len(np.unique(a)) == len(ids)


def test_a_number_is_the_same_alone_and_in_a_block():
    block = rng.uniform("a", 3, np.arange(5)[:, None], np.arange(4))
    assert block.shape == (5, 4)
    assert all(rng.uniform("a", 3, i, k) == block[i, k] for i in range(5) for k in range(4))
    assert ((block >= 0) & (block < 1)).all()


def test_the_order_of_the_coordinates_counts():
    assert rng.seed("a", 1, 2) != rng.seed("a", 2, 1)
    assert rng.seed("a", 1) != rng.seed("a", 1, 0)


def test_seeds_fit_a_signed_word_and_the_numbers_never_change():
    many = rng.seeds("a", np.arange(10_000))
    assert many.min() >= 0
    # What is drawn is part of every artifact: a change here needs a `### Numerics` entry.
    assert rng.seed("render.view", 0, 1, 2, 0) == 7091426051511588727
