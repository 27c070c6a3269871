"""Augmentation: each colour step against Pillow's, the boxes' distribution, draws by image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from synclr_cli import rng
from synclr_cli.config import TrainConfig
from synclr_cli.train import crops


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Smooth and noisy images, with every corner of the colour cube."""
    g = torch.Generator().manual_seed(0)
    noisy = torch.randint(0, 256, (3, 3, 32, 32), generator=g)
    smooth = F.resize(torch.randint(0, 256, (3, 3, 4, 4), generator=g), [32, 32])
    corners = torch.cartesian_prod(*[torch.tensor([0, 255])] * 3).T.reshape(3, 2, 4)
    flat = corners.repeat_interleave(16, 1).repeat_interleave(8, 2)[None]
    return torch.cat([noisy, smooth, flat]).float()


def pillow(x: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    done = [change(F.to_pil_image(p.to(torch.uint8))) for p in x]
    return torch.stack([F.pil_to_tensor(p) for p in done]).float()


def floating(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what torchvision makes of the images as floating point numbers."""
    return change(x / 255) * 255


def each(images: Tensor, value: float) -> Tensor:
    return torch.full((len(images),), value)


@pytest.mark.parametrize("factor", [0.6, 0.93, 1.0, 1.4])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (crops.brighten, F.adjust_brightness),
        (crops.contrast, F.adjust_contrast),
        (crops.saturate, F.adjust_saturation),
    ],
)
def test_blends_are_torchvisions(images: Tensor, ours, theirs, factor: float) -> None:
    done = ours(images.clone(), each(images, factor))
    expected = floating(images, lambda p: theirs(p, factor))
    assert (done - expected).abs().max() < 0.05  # its grey weights are cut to four places
    cut = pillow(images, lambda p: theirs(p, factor))  # Pillow cuts, and rounds grey and mean
    assert (done - cut).abs().max() < 2


@pytest.mark.parametrize("turns", [-0.1, -0.031, 0.0, 0.05, 0.1, 1 / 6])
def test_hue_turns_as_torchvisions(images: Tensor, turns: float) -> None:
    done = crops.turn_hue(images.clone(), each(images, turns))
    expected = floating(images, lambda p: F.adjust_hue(p, turns))
    assert (done - expected).abs().max() < 0.01
    # Pillow has hue, saturation and the turn in 8 bits: some levels off, with no bias.
    difference = done - pillow(images, lambda p: F.adjust_hue(p, turns))
    assert difference.abs().mean() < 3 and difference.mean().abs() < 1


def test_a_hue_of_any_colour_turns_as_torchvisions() -> None:
    levels = torch.tensor([0.0, 1.0, 77.0, 128.0, 254.0, 255.0])
    colours = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 12, 18)
    for turns in (-0.1, 0.0, 0.07):
        done = crops.turn_hue(colours.clone(), each(colours, turns))
        expected = floating(colours, lambda p, turns=turns: F.adjust_hue(p, turns))
        assert (done - expected).abs().max() < 0.01


def test_grey_is_pillows(images: Tensor) -> None:
    expected = pillow(images, lambda p: p.convert("L"))
    assert (crops.luma(images) - expected).abs().max() <= 0.51


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.3, 2.0])
def test_blur_is_torchvisions(images: Tensor, sigma: float) -> None:
    done = crops.blur(images, each(images, sigma))
    expected = floating(images, lambda p: F.gaussian_blur(p, [9, 9], [sigma, sigma]))
    assert (done - expected).abs().max() < 0.01


def test_a_painted_crop_is_torchvisions_step_after_step() -> None:
    config = TrainConfig(local_crops=0)
    drawn = crops.plan(config, 3, rng.key("picture", np.arange(40)), np.full((40, 2), 64))
    noise = torch.randint(0, 256, (40, 3, 9, 9), generator=torch.Generator().manual_seed(2))
    original = F.resize(noise.to(torch.uint8), [32, 32])
    done = crops.recolour(original.clone(), drawn, slice(0, 1)).float()
    steps = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for i, x in enumerate(original.float() / 255):
        x = x.flip(-1) if drawn.flip[i, 0] else x
        for which in drawn.order[i, 0]:
            if which >= 0:
                x = steps[which](x, float(drawn.factor[i, 0, which]))
        if drawn.grey[i, 0]:
            x = F.rgb_to_grayscale(x, num_output_channels=3)
        if drawn.sigma[i, 0]:
            x = F.gaussian_blur(x, [9, 9], [float(drawn.sigma[i, 0])] * 2)
        if drawn.solarise[i, 0]:
            x = torch.where(x >= 128 / 255, 1 - x, x)
        difference = (done[i] - x * 255).abs()
        assert (difference > 0.6).float().mean() < 1e-3, i  # at solarising's edge a hair decides
    assert (drawn.solarise.sum(), (drawn.sigma > 0).sum(), drawn.grey.sum()) > (0, 0, 0)


def test_cutting_is_cropping_then_resizing_with_antialiasing() -> None:
    image = torch.randint(0, 256, (1, 3, 40, 60), dtype=torch.uint8)
    boxes = np.array([[3, 5, 30, 20], [0, 0, 40, 60], [10, 2, 8, 9]])
    done = crops.cut(image, 1, boxes, [24, 24, 16])
    for crop, box, size in zip(done, boxes.tolist(), [24, 24, 16], strict=True):
        expected = F.resized_crop(
            image, *box, size=[size, size], interpolation=v2.InterpolationMode.BICUBIC
        )[0]
        assert (crop.int() - expected.int()).abs().max() <= 1


def test_cutting_together_is_cutting_one_by_one() -> None:
    """What a GPU does, on a CPU: images of two sizes, some of them downsampled."""
    config = TrainConfig(image_size=48, local_size=32, local_crops=2, downsample=0.3)
    sizes = np.array([(64, 64), (60, 72)] * 10)
    noise = torch.randint(0, 256, (20, 3, 9, 9), generator=torch.Generator().manual_seed(2))
    images = [
        F.resize(x[None].to(torch.uint8), size)
        for x, size in zip(noise, sizes.tolist(), strict=True)
    ]
    drawn = crops.plan(config, 0, rng.key("picture", np.arange(20)), sizes)
    assert (drawn.divisor > 1).any()
    drawn = replace(drawn, order=np.full_like(drawn.order, -1), solarise=drawn.solarise & False)
    one_by_one = crops.cut_and_recolour(config, images, drawn)
    together = crops.cut_and_recolour(config, crops.together(images), drawn)
    for ours, theirs in zip(together, one_by_one, strict=True):
        difference = (ours.int() - theirs.int()).abs()
        # One level for each time that the 8-bit way rounds; three of them when downsampled.
        assert ours.shape == theirs.shape and difference.max() <= 4
        assert difference.float().mean() < 0.3


@pytest.mark.parametrize(
    ("box", "size"), [((0, 0, 64, 64), 48), ((3, 5, 30, 20), 32), ((7, 0, 57, 40), 64)]
)
def test_resizing_by_matrices_is_torchs_antialiased_bicubic(box: tuple, size: int) -> None:
    noise = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(4))
    done = crops.resize_boxes(noise.to(torch.uint8), torch.tensor([box]), size)
    expected = F.resized_crop(
        noise.float(), *box, size=[size, size], interpolation=v2.InterpolationMode.BICUBIC
    )
    assert (done - expected.clamp(0, 255)).abs().max() < 0.51


def test_a_downsampled_image_loses_detail_and_keeps_its_size() -> None:
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    whole = np.array([[0, 0, 64, 64]])
    (sharp,), (dull,) = (crops.cut(image, d, whole, [64]) for d in (1, 4))
    assert dull.shape == sharp.shape == (3, 64, 64)
    assert dull.float().std() < 0.5 * sharp.float().std()


@pytest.fixture(scope="module")
def many() -> tuple[TrainConfig, crops.Plan]:
    config = TrainConfig(local_crops=4)
    ids = rng.key("picture", np.arange(6000))
    return config, crops.plan(config, 1, ids, np.full((6000, 2), (256, 192)))


def share(x: np.ndarray) -> float:
    return float(x.mean())


def test_boxes_have_the_areas_and_shapes_asked_for(many: tuple[TrainConfig, crops.Plan]) -> None:
    config, drawn = many
    top, left, height, width = np.moveaxis(drawn.box, -1, 0)
    assert (top >= 0).all() and (left >= 0).all() and (height > 0).all() and (width > 0).all()
    assert (top + height <= 256).all() and (left + width <= 192).all()
    area = height * width / (256 * 192)
    for crop, (low, high) in ((0, config.global_scale), (1, config.local_scale)):
        assert area[:, crop].min() > low * 0.97 and area[:, crop].max() < high * 1.03
    # Local areas always fit, so they are uniform: mean and deviation of U(0.08, 0.32).
    local = area[:, 1:].reshape(-1)
    assert abs(local.mean() - 0.20) < 4 * local.std() / len(local) ** 0.5
    assert abs(local.std() - 0.24 / 12**0.5) < 0.002
    ratio = np.log(width / height)[:, 1:]
    assert abs(ratio.mean()) < 0.01 and np.abs(ratio).max() < np.log(4 / 3) + 0.05


def test_colours_are_as_likely_as_in_the_released_code(
    many: tuple[TrainConfig, crops.Plan],
) -> None:
    _, drawn = many
    within = 4 * 0.5 / 6000**0.5
    assert abs(share(drawn.flip[:, 0]) - 0.5) < within
    assert abs(share(drawn.order[:, 0, 0] >= 0) - 0.8) < within
    assert abs(share(drawn.grey[:, 0]) - 0.2) < within
    assert abs(share(drawn.sigma[:, 0] > 0) - (0.5 + 0.5 * 0.1)) < within
    assert abs(share(drawn.solarise[:, 0]) - 0.5 * 0.2) < within
    assert abs(share(drawn.sigma[:, 1:] > 0) - 0.5) < within
    assert not drawn.solarise[:, 1:].any()
    assert abs(share(drawn.divisor > 1) - 0.05) < within
    assert set(drawn.divisor.tolist()) == {1, 2, 4}
    sigma = drawn.sigma[drawn.sigma > 0]
    assert sigma.min() > 0.1 and sigma.max() < 2 and abs(sigma.mean() - 1.05) < 0.02
    spread = np.abs(drawn.factor - [1, 1, 1, 0]).max((0, 1))
    np.testing.assert_allclose(spread, [0.4, 0.4, 0.2, 0.1], rtol=0.01)
    assert np.unique(drawn.order[drawn.order[..., 0] >= 0], axis=0).shape == (24, 4)
    solarised = drawn.solarise[:, 0]  # only under the recipe that blurs one crop in ten
    assert abs(share(drawn.sigma[solarised, 0] > 0) - 0.1) < 4 * 0.3 / solarised.sum() ** 0.5


def test_a_image_is_drawn_alike_in_any_company() -> None:
    config = TrainConfig(local_crops=2)
    ids, sizes = rng.key("picture", np.arange(10)), np.full((10, 2), 64)
    whole = crops.plan(config, 4, ids, sizes)
    part = crops.plan(config, 4, ids[[7, 2]], sizes[:2])
    for name in vars(whole):
        np.testing.assert_array_equal(getattr(whole, name)[[7, 2]], getattr(part, name))
    other = crops.plan(config, 5, ids, sizes)
    assert (whole.box != other.box).any(-1).all()


def test_painting_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(local_crops=1)
    drawn = crops.plan(config, 0, rng.key("picture", np.arange(9)), np.full((9, 2), 64))
    original = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8)
    whole = crops.recolour(original.clone(), drawn, slice(0, 1))
    monkeypatch.setattr(crops, "CHUNK", 1)
    torch.testing.assert_close(
        crops.recolour(original.clone(), drawn, slice(0, 1)), whole, rtol=0, atol=0
    )
    assert (whole != original).any((1, 2, 3)).sum() >= 8
