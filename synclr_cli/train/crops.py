"""Crops of a picture and their colours: the "Downsample" step, then BYOL's augmentation.

Every number is drawn from (seed, step, picture, crop); the pixels follow from the numbers alone.
Colours are worked on as 8-bit values that are cut or rounded after each step exactly where Pillow
does it, whole batches at a time.

    picture --cut--> crops, uint8 --paint--> crops, uint8        (normalised later, on the device)

Shapes: B pictures, K crops of a picture (the global one first), n crops of one size S.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from synclr_cli import draws
from synclr_cli.config import TrainConfig

# BYOL's colours, as the released code sets them.
FLIP = 0.5  # probability
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1  # 1 +- the first three, +- hue turns
ALWAYS_BLURRED = 0.5  # share of the global crops under the first recipe: blur, never solarise
GLOBAL_BLUR = 0.1  # under the second recipe
LOCAL_BLUR = 0.5
SIGMA = (0.1, 2.0)  # pixels of a 224 px picture; as much smaller as the global crop is
KERNEL = 9  # pixels
RATIO = (3 / 4, 4 / 3)  # width / height of a crop
TRIES = 10  # boxes tried before the crop falls back to the centre
DOWNSAMPLED = (4, 2)  # StableRep: 256 px down to 64 or 128, and up again
CHUNK = 1 << 20  # pixel values painted together: what fits the cache


@dataclass(frozen=True)
class Plan:
    """Everything that is drawn for the crops of B pictures."""

    divisor: NDArray[np.int64]  # [B], 1: not downsampled
    box: NDArray[np.int64]  # [B, K, 4]: top, left, height, width
    flip: NDArray[np.bool_]  # [B, K]
    factor: NDArray[np.float64]  # [B, K, 4]: brightness, contrast, saturation, hue
    order: NDArray[np.int64]  # [B, K, 4]: which of these comes first, ...; -1: no jitter
    grey: NDArray[np.bool_]  # [B, K]
    sigma: NDArray[np.float64]  # [B, K], 0: not blurred
    solarise: NDArray[np.bool_]  # [B, K]


def plan(config: TrainConfig, step: int, ids: NDArray[np.uint64], sizes: NDArray[np.int64]) -> Plan:
    """Draw the crops of pictures, the global one first.

    Args:
        ids: of the pictures, [B].
        sizes: height and width of each in pixels, [B, 2].
    """
    seed, crops = config.seed, np.arange(1 + config.local_crops)
    is_global = crops == 0  # [K]
    ids = ids[:, None, None]  # [B, 1, 1]
    lots = draws.uniform("train.downsample", seed, step, ids[..., 0], np.arange(2))  # [B, 2]
    choice = np.asarray(DOWNSAMPLED)[(lots[:, 1] * len(DOWNSAMPLED)).astype(int)]  # [B]
    u = draws.uniform("train.colour", seed, step, ids, crops[:, None], np.arange(15))  # [B, K, 15]
    spread = np.array([BRIGHTNESS, CONTRAST, SATURATION, HUE])
    factor = np.array([1, 1, 1, 0]) + spread * (2 * u[..., 0:4] - 1)  # [B, K, 4]
    order = np.where(u[..., 8, None] < config.jitter, u[..., 4:8].argsort(-1), -1)  # [B, K, 4]
    first_recipe = u[..., 11] < ALWAYS_BLURRED  # [B, K]
    blur = np.where(is_global, np.where(first_recipe, 1.0, GLOBAL_BLUR), LOCAL_BLUR)  # [B, K]
    blur = config.blur * blur
    solarise = np.where(is_global & ~first_recipe, config.solarise, 0.0)  # [B, K]
    sigma = SIGMA[0] + (SIGMA[1] - SIGMA[0]) * u[..., 13]  # [B, K]
    sigma = sigma * config.image_size / 224
    return Plan(
        divisor=np.where(lots[:, 0] < config.downsample, choice, 1),
        box=_boxes(config, step, ids, sizes),
        flip=u[..., 9] < FLIP,
        factor=factor,
        order=order,
        grey=u[..., 10] < config.grey,
        sigma=np.where(u[..., 12] < blur, sigma, 0.0),
        solarise=u[..., 14] < solarise,
    )


def _boxes(
    config: TrainConfig, step: int, ids: NDArray[np.uint64], sizes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Draw RandomResizedCrop's boxes, [B, K, 4]: the first of ten tries that fits."""
    crops = np.arange(1 + config.local_crops)
    u = draws.uniform(
        "train.crop", config.seed, step, ids[..., None], crops[:, None, None],
        np.arange(TRIES)[:, None], np.arange(4),
    )  # [B, K, T, 4]  # fmt: skip
    height, width = sizes[:, 0, None, None], sizes[:, 1, None, None]  # [B, 1, 1]
    scales = np.array([config.global_scale] + [config.local_scale] * config.local_crops)  # [K, 2]
    low, high = scales[:, 0, None], scales[:, 1, None]  # [K, 1]
    area = height * width * (low + (high - low) * u[..., 0])  # [B, K, T]
    log_low, log_high = math.log(RATIO[0]), math.log(RATIO[1])
    ratio = np.exp(log_low + (log_high - log_low) * u[..., 1])  # [B, K, T]
    w = np.rint(np.sqrt(area * ratio)).astype(np.int64)  # [B, K, T]
    h = np.rint(np.sqrt(area / ratio)).astype(np.int64)  # [B, K, T]
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)  # [B, K, T]
    top = (u[..., 2] * (height - h + 1)).astype(np.int64)  # [B, K, T]
    left = (u[..., 3] * (width - w + 1)).astype(np.int64)  # [B, K, T]
    tried = np.stack([top, left, h, w], -1)  # [B, K, T, 4]
    first = fits.argmax(-1)[..., None, None]  # [B, K, 1, 1]
    box = np.take_along_axis(tried, first, axis=2)[:, :, 0]  # [B, K, 4]
    height, width = height[..., 0], width[..., 0]  # [B, 1]
    h = np.minimum(height, np.rint(width / RATIO[0]).astype(np.int64))  # [B, 1]
    w = np.minimum(width, np.rint(height * RATIO[1]).astype(np.int64))  # [B, 1]
    centre = np.stack([(height - h) // 2, (width - w) // 2, h, w], -1)  # [B, 1, 4]
    return np.where(fits.any(-1)[..., None], box, centre)


def cut(picture: Tensor, divisor: int, boxes: NDArray[np.int64], sizes: list[int]) -> list[Tensor]:
    """Cut boxes out of one picture, each resized to its size, bicubic with antialiasing.

    Args:
        picture: [1, 3, H, W] uint8.
        divisor: the picture is first made this many times smaller and enlarged again, bilinear.
        boxes: [K, 4].
        sizes: K of them, pixels.
    """
    if divisor > 1:
        full = picture.shape[-2:]
        small = [max(1, side // divisor) for side in full]
        picture = F.interpolate(picture, small, mode="bilinear", antialias=True)
        picture = F.interpolate(picture, full, mode="bilinear", antialias=True)
    crops = []
    for (top, left, height, width), size in zip(boxes.tolist(), sizes, strict=True):
        box = picture[..., top : top + height, left : left + width]
        crops.append(F.interpolate(box, (size, size), mode="bicubic", antialias=True)[0])
    return crops


def paint(crops: Tensor, drawn: Plan, k: slice) -> Tensor:
    """Return the crops with their colours changed, [n, 3, S, S] uint8, in place.

    Args:
        crops: uint8, crop after crop of picture after picture.
        drawn: the plan of these pictures.
        k: which crops of each picture these are.
    """
    flip = torch.from_numpy(drawn.flip[:, k].reshape(-1))  # [n]
    factor = torch.from_numpy(drawn.factor[:, k].reshape(-1, 4)).float()  # [n, 4]
    order = drawn.order[:, k].reshape(-1, 4)  # [n, 4]
    grey = torch.from_numpy(drawn.grey[:, k].reshape(-1))  # [n]
    sigma = torch.from_numpy(drawn.sigma[:, k].reshape(-1)).float()  # [n]
    solarise = torch.from_numpy(drawn.solarise[:, k].reshape(-1))  # [n]
    rows = max(1, CHUNK // max(1, crops[0].numel()))
    for start in range(0, len(crops), rows):
        part = slice(start, start + rows)
        x = crops[part].float()  # [r, 3, S, S]
        _change(x, flip[part], lambda y, _: y.flip(-1))
        for place in range(4):
            for which, change in enumerate((brighten, contrast, saturate, turn_hue)):
                chosen = torch.from_numpy(order[part, place] == which)  # [r]
                _change(x, chosen, change, factor[part, which])
        _change(x, grey[part], lambda y, _: luma(y).expand_as(y))
        _change(x, sigma[part] > 0, blur, sigma[part])
        _change(x, solarise[part], lambda y, _: torch.where(y >= 128, 255 - y, y))
        crops[part] = x.to(torch.uint8)
    return crops


def _change(x: Tensor, chosen: Tensor, change, amount: Tensor | None = None) -> None:
    rows = chosen.nonzero()[:, 0]
    if len(rows):
        x[rows] = change(x[rows], None if amount is None else amount[rows])


def luma(x: Tensor) -> Tensor:
    """Return Pillow's grey, [n, 1, S, S], in whole numbers."""
    red, green, blue = x.split(1, dim=1)
    # Below 2^24, so float32 holds every sum exactly.
    return torch.floor((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536)


def _blend(x: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    factor = factor[:, None, None, None]
    return torch.floor((other + factor * (x - other)).clamp_(0, 255))  # cut, as Pillow does


def brighten(x: Tensor, factor: Tensor) -> Tensor:
    """Blend pictures [n, 3, S, S] with black; factor [n] is 1 for no change."""
    return _blend(x, 0.0, factor)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend pictures with the mean of their grey."""
    mean = torch.floor(luma(x).mean(dim=(1, 2, 3), keepdim=True) + 0.5)
    return _blend(x, mean, factor)


def saturate(x: Tensor, factor: Tensor) -> Tensor:
    """Blend pictures with their grey."""
    return _blend(x, luma(x), factor)


def turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of pictures [n, 3, S, S] by a share [n] of the circle, through 8-bit HSV."""
    value = x.amax(1, keepdim=True)  # [n, 1, S, S]
    spread = value - x.amin(1, keepdim=True)  # [n, 1, S, S]
    divisor = spread.clamp(min=1)
    red, green, blue = x.split(1, dim=1)
    hue = torch.where(
        red == value,
        (green - blue) / divisor,
        torch.where(green == value, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )  # [n, 1, S, S], sixths of the circle
    turned = hue / 6 + 1  # 5/6 to 11/6
    hue = torch.floor((turned - turned.floor()) * 255)  # 0..255
    saturation = torch.floor(spread / value.clamp(min=1) * 255)  # 0..255
    shift = torch.trunc(turns * 255)[:, None, None, None]  # [n, 1, 1, 1]
    turned = hue + shift
    sixths = (turned - 256 * torch.floor(turned / 256)) * (6 / 255)  # 0..6
    chroma = value * (saturation / 255)
    place = sixths + x.new_tensor([5, 3, 1])[:, None, None]  # [n, 3, S, S]
    # Not torch.remainder, which is an order of magnitude slower.
    place = torch.where(place >= 6, place - 6, place)
    return torch.round(value - chroma * torch.minimum(place, 4 - place).clamp_(0, 1))


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur pictures [n, 3, S, S] with Gaussians of deviation sigma [n] pixels."""
    reach = torch.linspace(-(KERNEL // 2), KERNEL // 2, KERNEL)  # [9]
    kernel = torch.exp(-0.5 * (reach / sigma[:, None]) ** 2)  # [n, 9]
    kernel = (kernel / kernel.sum(1, keepdim=True))[:, None, None, None]  # [n, 1, 1, 1, 9]
    size, edge = x.shape[-1], KERNEL // 2
    wide = F.pad(x, (edge, edge, 0, 0), mode="reflect")  # [n, 3, S, S + 8]
    x = kernel[..., 0] * wide[..., :size]
    for i in range(1, KERNEL):
        x.addcmul_(kernel[..., i], wide[..., i : i + size])
    high = F.pad(x, (0, 0, edge, edge), mode="reflect")  # [n, 3, S + 8, S]
    x = kernel[..., 0] * high[..., :size, :]
    for i in range(1, KERNEL):
        x.addcmul_(kernel[..., i], high[..., i : i + size, :])
    return x.round_().clamp_(0, 255)
