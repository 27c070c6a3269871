"""Crops with masks, sliding windows, and what counts as a right pixel."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from synclr_cli.config import SegmentConfig
from synclr_cli.learning.runtime import Runtime
from synclr_cli.segment import dense
from synclr_cli.segment.grading import Counts
from synclr_cli.segment.run import loss_of

ALONE = Runtime(torch.device("cpu"), None)
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def config(**changes):
    settings = {
        "image_size": 32, "short_side": 0, "stride": 20, "scale": (1.0, 1.0),
        "max_class_share": 1.0, "photometric": False, "steps": 10, "warmup_steps": 1,
    }  # fmt: skip
    return SegmentConfig(**(settings | changes))


def scene(height=48, width=40):
    """An image whose red channel is 10 times the class id of the pixel."""
    ids = (np.arange(height)[:, None] // 12 + np.arange(width)[None] // 20).astype(np.int64)
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = ids * 10
    return Image.fromarray(pixels), ids


# ---------------------------------------------------------------------------------- crops


def test_image_and_mask_move_together():
    image, ids = scene()
    for seed in range(20):
        x, y = dense.training_crop(image, ids, config(), MEAN, STD, np.random.default_rng(seed))
        assert x.shape == (3, 32, 32)
        assert torch.equal((x[0] * 0.5 + 0.5).mul(255).round().long(), y * 10)


def test_resized_crops_keep_the_classes_inside_their_borders():
    image, ids = scene(96, 80)
    resized = config(scale=(0.5, 2.0), short_side=40)
    for seed in range(20):
        x, y = dense.training_crop(image, ids, resized, MEAN, STD, np.random.default_rng(seed))
        red = (x[0] * 0.5 + 0.5) * 255 / 10
        inside = y != dense.IGNORED
        near = (red - y).abs() < 0.5  # blending of neighbours happens at borders only
        assert near[inside].float().mean() > 0.85


def test_a_image_smaller_than_the_crop_is_filled_up_with_mean_colour_and_ignored():
    image, ids = scene(20, 24)
    x, y = dense.training_crop(image, ids, config(), MEAN, STD, np.random.default_rng(0))
    assert (y == dense.IGNORED).sum() == 32 * 32 - 20 * 24
    assert (x[:, y == dense.IGNORED] == 0).all()
    assert (y != dense.IGNORED).sum() == 20 * 24


def test_a_crop_that_one_class_fills_is_drawn_again():
    ids = np.zeros((64, 64), np.int64)
    ids[32:, 32:] = 1  # most crops see class 0 only
    image = Image.fromarray(np.zeros((64, 64, 3), np.uint8))

    def filled(limit):
        shares = []
        for seed in range(100):
            _, y = dense.training_crop(
                image, ids, config(max_class_share=limit), MEAN, STD, np.random.default_rng(seed)
            )
            shares.append((y == 0).float().mean().item())
        return np.mean(np.array(shares) > 0.75)

    assert filled(1.0) > 0.5
    assert filled(0.75) < 0.15


def test_the_crop_depends_on_its_generator_alone():
    image, ids = scene()
    settings = config(scale=(0.5, 2.0), photometric=True)
    first, again, other = (
        dense.training_crop(image, ids, settings, MEAN, STD, np.random.default_rng(seed))
        for seed in (5, 5, 6)
    )
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


def test_colour_distortion_stays_in_range_and_sometimes_does_nothing():
    x = torch.rand(3, 8, 8)
    same = 0
    for seed in range(64):
        y = dense.distort_colours(x, np.random.default_rng(seed))
        assert 0 <= y.min() <= y.max() <= 1
        same += torch.equal(x, y)
    assert 0 < same < 20  # 1 in 16 on average


# --------------------------------------------------------------------------------- windows


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 65, 100, 171, 683])
@pytest.mark.parametrize("stride", [1, 7, 21, 32])
def test_windows_cover_every_pixel_and_none_reaches_over_the_end(length, stride):
    seen = np.zeros(max(length, 32), int)
    for start in dense.starts(length, 32, stride):
        assert 0 <= start <= max(length - 32, 0)
        seen[start : start + 32] += 1
    assert seen.min() >= 1


def brightness(windows):
    """Logits that depend on each pixel alone."""
    return torch.cat([windows, -windows[:, :1]], dim=1)


def test_a_window_as_large_as_the_image_is_whole_image_inference():
    torch.manual_seed(0)
    net = torch.nn.Conv2d(3, 4, 5, padding=2)
    x = torch.randn(3, 32, 32)
    with torch.no_grad():
        found = dense.slide(net, x, window=32, stride=20)
        assert torch.equal(found, net(x[None])[0])


def test_overlapping_windows_are_averaged():
    x = torch.randn(3, 50, 75)
    found = dense.slide(brightness, x, window=32, stride=13, batch_size=3)
    assert torch.allclose(found, brightness(x[None])[0], atol=1e-6)
    counted = []

    def numbered(windows):
        counted.append(len(windows))
        first = sum(counted[:-1])
        return torch.stack([torch.full((1, 32, 32), float(first + i)) for i in range(len(windows))])

    x = torch.zeros(3, 32, 48)  # two windows, at 0 and 16
    found = dense.slide(numbered, x, window=32, stride=16)
    assert found[0, 0, :16].tolist() == [0.0] * 16
    assert found[0, 0, 16:32].tolist() == [0.5] * 16
    assert found[0, 0, 32:].tolist() == [1.0] * 16


def test_a_image_smaller_than_the_window_comes_back_in_its_own_size():
    x = torch.randn(3, 20, 11)
    found = dense.slide(brightness, x, window=32, stride=20)
    assert torch.equal(found, brightness(x[None])[0])


def test_the_likeliest_class_is_the_argmax_of_the_enlarged_logits():
    torch.manual_seed(0)
    logits = torch.randn(40, 9, 7)  # more classes than are enlarged at once
    full = F.interpolate(logits[None], size=(30, 20), mode="bilinear", align_corners=False)[0]
    assert torch.equal(dense.likeliest(logits, (30, 20)), full.argmax(0))


# ------------------------------------------------------------------------ loss and counting


def test_the_loss_is_the_mean_over_labelled_pixels_plus_the_weighed_auxiliary_head():
    torch.manual_seed(0)
    logits = [torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)]
    ids = torch.randint(-1, 3, (2, 4, 4))
    parts = []
    for each in logits:
        p = each.double().log_softmax(1)
        terms = [-p[b, ids[b, i, j], i, j] for b in range(2) for i in range(4) for j in range(4)
                 if ids[b, i, j] >= 0]  # fmt: skip
        parts.append(sum(terms) / len(terms))
    expected = parts[0] + 0.4 * parts[1]
    assert loss_of(logits, ids, 0.4, ALONE).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_batch_of_ignored_pixels_has_loss_zero_and_no_nan():
    logits = [torch.randn(1, 3, 4, 4, requires_grad=True)]
    loss = loss_of(logits, torch.full((1, 8, 8), dense.IGNORED), 0.4, ALONE)
    loss.backward()
    assert loss.item() == 0
    assert logits[0].grad.abs().max() == 0


def test_mean_iou_counts_like_sets_of_pixels_and_its_interval_holds_it():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (6, 10, 10))
    guess = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, 3, truth.shape))
    from synclr_cli.learning import metrics

    truth[:, :2] = dense.IGNORED
    each = [metrics.confusion(t, g, 4) for t, g in zip(truth, guess, strict=True)]
    counts = Counts(sum(each), np.stack([[np.diag(c), c.sum(1), c.sum(0)] for c in each]))
    kept = truth != dense.IGNORED
    ious = []
    for k in range(3):  # class 3 occurs nowhere: it does not count
        t, g = set(np.flatnonzero((truth == k) & kept)), set(np.flatnonzero((guess == k) & kept))
        ious.append(len(t & g) / len(t | g))
    assert counts.mean_iou() == pytest.approx(np.mean(ious), rel=1e-12)
    low, high = counts.interval(0)
    assert low < counts.mean_iou() < high
