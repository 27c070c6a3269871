"""What is drawn for a row: exact shares, no repetition, and a function of seed and id alone."""

import itertools

import numpy as np
import pytest

from synclr_cli import rng
from synclr_cli.captions import concepts, prompts
from synclr_cli.captions.sampler import RELATIONS, RowSampler, noise_seeds, without_replacement

SHARES = (0.44, 0.45, 0.11)


def sampler(spec="synclr", *, block=1, seed=0, demonstrations=3):
    return RowSampler(
        concepts.read(spec),
        prompts.shipped(),
        seed=seed,
        shares=SHARES,
        demonstrations=demonstrations,
        block=block,
    )


def test_a_row_is_the_same_alone_in_a_block_and_in_any_order():
    made = sampler(block=7)
    many = made.rows(np.arange(300))
    shuffled = np.random.default_rng(0).permutation(300)
    mixed = made.rows(shuffled)
    for place, i in enumerate(shuffled.tolist()):
        alone = made.rows(np.array([i]))
        for a, at in ((mixed, place), (alone, 0)):
            assert a.concepts[at] == many.concepts[i]
            assert a.templates[at] == many.templates[i]
            assert a.companions[at] == many.companions[i]
            assert a.examples[at].tolist() == many.examples[i].tolist()


def test_another_seed_draws_other_rows():
    one, other = sampler(seed=0).rows(np.arange(500)), sampler(seed=1).rows(np.arange(500))
    assert np.mean(one.concepts == other.concepts) < 0.05
    assert np.mean(one.examples == other.examples) < 0.1


def test_shares_of_sources_and_templates_are_within_four_sigma_over_100000_draws():
    count = 100_000
    made = sampler()
    rows = made.rows(np.arange(count))
    kinds = np.array(made.pool.kinds)[rows.concepts]
    templates = np.array(rows.templates)
    sources = np.array(made.pool.sources)[rows.concepts]

    def within(hits, of, p):
        assert abs(hits - of * p) < 4 * np.sqrt(of * p * (1 - p)), (hits / of, p)

    objects = kinds == "object"
    for template, share in zip(("c", "c_bg", "c_rel"), SHARES, strict=True):
        within(int((templates[objects] == template).sum()), int(objects.sum()), share)
    assert set(templates[~objects]) == {"c"}
    for source, share in (("in1k", 0.47), ("aircraft", 0.05), ("food101", 0.05), ("flowers", 0.03)):
        within(int((sources == source).sum()), count, share)
    within(int(np.isin(sources, ("places365", "sun397")).sum()), count, 0.09)
    relations = np.array(rows.companions)[templates == "c_rel"]
    for word in RELATIONS:
        within(int((relations == word).sum()), len(relations), 0.1)


def test_demonstrations_are_of_their_bank_and_never_twice_in_a_prompt():
    rows = sampler().rows(np.arange(5000))
    for bank, shown in zip(rows.banks, rows.examples.tolist(), strict=True):
        first, size = prompts.shipped().span(bank)
        assert len(set(shown)) == 3
        assert all(first <= i < first + size for i in shown)


def test_a_block_of_ids_shows_the_same_demonstrations_for_a_template():
    rows = sampler("in1k", block=64).rows(np.arange(640))
    seen = {}
    for i, (bank, shown) in enumerate(zip(rows.banks, rows.examples.tolist(), strict=True)):
        assert seen.setdefault((i // 64, bank), shown) == shown
    assert len({tuple(s) for (_, bank), s in seen.items() if bank == "object"}) > 5


def test_drawing_without_replacement_makes_every_ordered_choice_as_likely():
    count = 60_000
    u = rng.uniform("test", np.arange(count)[:, None], np.arange(3))
    drawn = without_replacement(u, 4)
    rows, hits = np.unique(drawn, axis=0, return_counts=True)
    assert sorted(map(tuple, rows.tolist())) == sorted(itertools.permutations(range(4), 3))
    expected = count / 24
    chi2 = ((hits - expected) ** 2 / expected).sum()
    assert chi2 < 23 + 4 * np.sqrt(2 * 23)


def test_too_few_to_draw_from_is_refused():
    with pytest.raises(ValueError, match="cannot draw 3 of 2"):
        without_replacement(np.zeros((1, 3)), 2)


def test_each_attempt_has_noise_of_its_own():
    first, second = noise_seeds(0, np.arange(1000), 0), noise_seeds(0, np.arange(1000), 1)
    assert not set(first.tolist()) & set(second.tolist())
    assert first.min() >= 0


def test_no_demonstrations_is_a_setting():
    rows = sampler(demonstrations=0).rows(np.arange(5))
    assert rows.examples.shape == (5, 0)
