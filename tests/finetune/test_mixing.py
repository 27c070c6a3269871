"""Mixup and cutmix: what they do to images and labels."""

import numpy as np
import pytest
import torch

from synclr_cli.config import FinetuneConfig
from synclr_cli.finetune.mixing import Mixing

CLASSES, SMOOTHING = 5, 0.1


def config(**changes):
    settings = {"label_smoothing": SMOOTHING, "mixup": 0.8, "cutmix": 1.0, "batch_size": 8}
    return FinetuneConfig(**(settings | changes))


def batch():
    torch.manual_seed(0)
    return torch.rand(8, 3, 16, 16), torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])


def smoothed(label):
    return [1 - SMOOTHING + SMOOTHING / CLASSES if k == label else SMOOTHING / CLASSES
            for k in range(CLASSES)]  # fmt: skip


def test_without_mixing_a_target_is_the_smoothed_label():
    images, labels = batch()
    mixed, targets = Mixing(config(mixup=0.0, cutmix=0.0), CLASSES)(images, labels, 0, 0)
    assert torch.equal(mixed, images)
    for target, label in zip(targets.tolist(), labels.tolist(), strict=True):
        assert target == pytest.approx(smoothed(label), abs=1e-6)


def test_mixup_gives_label_and_pixel_the_same_share():
    images, labels = batch()
    mixing = Mixing(config(cutmix=0.0), CLASSES)
    for step in range(5):
        mixed, targets = mixing(images, labels, step, 0)
        # The share, read from the pixels: x' = lam x + (1 - lam) x reversed.
        difference = images - images.flip(0)
        share = (((mixed - images.flip(0)) * difference).sum() / difference.square().sum()).item()
        for i in range(8):
            one, two = np.array(smoothed(labels[i])), np.array(smoothed(labels[7 - i]))
            assert targets[i].tolist() == pytest.approx(
                (share * one + (1 - share) * two).tolist(), abs=1e-5
            )


def test_cutmix_shares_are_the_areas_of_the_pasted_box():
    images, labels = batch()
    mixing = Mixing(config(mixup=0.0), CLASSES)
    for step in range(5):
        mixed, targets = mixing(images, labels, step, 0)
        pasted = (mixed[0] == images[7]).all(0) & (images[0] != images[7]).any(0)
        share = 1 - pasted.float().mean().item()
        expected = share * np.array(smoothed(0)) + (1 - share) * np.array(smoothed(2))
        assert targets[0].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_targets_sum_to_one_and_both_ways_of_mixing_occur():
    images, labels = batch()
    mixing, pasted = Mixing(config(), CLASSES), []
    for step in range(40):
        mixed, targets = mixing(images, labels, step, 0)
        assert targets.sum(1).tolist() == pytest.approx([1.0] * 8, abs=1e-5)
        untouched = (mixed == images).all(1).float().mean()
        pasted.append(0 < untouched < 1)
    assert 8 <= sum(pasted) <= 32  # half of 40, within four sigma


def test_the_draw_depends_on_seed_step_and_rank_and_disturbs_nobody():
    images, labels = batch()
    torch.manual_seed(7)
    np.random.seed(7)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = Mixing(config(), CLASSES)(images, labels, 3, 0)[1]
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    np.random.seed(123)
    assert torch.equal(first, Mixing(config(), CLASSES)(images, labels, 3, 0)[1])
    others = [Mixing(config(seed=s), CLASSES)(images, labels, t, r)[1]
              for s, t, r in [(1, 3, 0), (0, 4, 0), (0, 3, 1)]]  # fmt: skip
    assert not any(torch.equal(first, other) for other in others)


def test_the_batch_handed_in_stays_as_it_was():
    images, labels = batch()
    copy = images.clone()
    Mixing(config(), CLASSES)(images, labels, 0, 0)
    assert torch.equal(images, copy)
