"""Crops of an image and their colours: the "Downsample" step, then BYOL's augmentation.

Every number is drawn from (seed, step, image, crop); the pixels follow from the numbers alone.
Colours are changed as float32 from 0 to 255, whole batches at a time: each step cuts to that range
where Pillow does, and they are rounded to 8 bits once, at the end. (Pillow rounds after each step.)

    image --cut--> crops, uint8 --recolour--> crops, uint8        (normalised later, on the device)

Shapes: B images, K crops of an image (the global one first), n crops of one size S.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from synclr_cli import rng
from synclr_cli.config import TrainConfig
from synclr_cli.learning.runtime import send

# BYOL's colours, as the released code sets them.
FLIP = 0.5  # probability
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1  # 1 +- the first three, +- hue turns
ALWAYS_BLURRED = 0.5  # share of the global crops under the first recipe: blur, never solarise
GLOBAL_BLUR = 0.1  # under the second recipe
LOCAL_BLUR = 0.5
SIGMA = (0.1, 2.0)  # pixels of a 224 px image; as much smaller as the global crop is
KERNEL = 9  # pixels
RATIO = (3 / 4, 4 / 3)  # width / height of a crop
TRIES = 10  # boxes tried before the crop falls back to the centre
DOWNSAMPLED = (4, 2)  # StableRep: 256 px down to 64 or 128, and up again
LUMA = (0.299, 0.587, 0.114)  # grey of red, green and blue, ITU-R 601
CHUNK = 1 << 17  # pixel values recoloured together: what fits a core's cache
CHUNK_ON_GPU = 1 << 26
TOGETHER = 128  # images that a GPU cuts at a time


@dataclass(frozen=True)
class Plan:
    """Everything that is drawn for the crops of B images."""

    size: NDArray[np.int64]  # [B, 2]: height, width
    divisor: NDArray[np.int64]  # [B], 1: not downsampled
    box: NDArray[np.int64]  # [B, K, 4]: top, left, height, width
    flip: NDArray[np.bool_]  # [B, K]
    factor: NDArray[np.float64]  # [B, K, 4]: brightness, contrast, saturation, hue
    order: NDArray[np.int64]  # [B, K, 4]: which of these comes first, ...; -1: no jitter
    grey: NDArray[np.bool_]  # [B, K]
    sigma: NDArray[np.float64]  # [B, K], 0: not blurred
    solarise: NDArray[np.bool_]  # [B, K]


def plan(config: TrainConfig, step: int, ids: NDArray[np.uint64], sizes: NDArray[np.int64]) -> Plan:
    """Draw the crops of images, the global one first.

    Args:
        ids: of the images, [B].
        sizes: height and width of each in pixels, [B, 2].
    """
    seed, crops = config.seed, np.arange(1 + config.local_crops)
    is_global = crops == 0  # [K]
    ids = ids[:, None, None]  # [B, 1, 1]
    lots = rng.uniform("train.downsample", seed, step, ids[..., 0], np.arange(2))  # [B, 2]
    choice = np.asarray(DOWNSAMPLED)[(lots[:, 1] * len(DOWNSAMPLED)).astype(int)]  # [B]
    u = rng.uniform("train.colour", seed, step, ids, crops[:, None], np.arange(15))  # [B, K, 15]
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
        size=sizes,
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
    u = rng.uniform(
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


def cut(image: Tensor, divisor: int, boxes: NDArray[np.int64], sizes: list[int]) -> list[Tensor]:
    """Cut boxes out of one image, each resized to its size, bicubic with antialiasing.

    Args:
        image: [1, 3, H, W] uint8.
        divisor: the image is first made this many times smaller and enlarged again, bilinear.
        boxes: [K, 4].
        sizes: K of them, pixels.
    """
    if divisor > 1:
        image = _dull(image, divisor)
    crops = []
    for (top, left, height, width), size in zip(boxes.tolist(), sizes, strict=True):
        box = image[..., top : top + height, left : left + width]
        crops.append(F.interpolate(box, (size, size), mode="bicubic", antialias=True)[0])
    return crops


def together(images: Sequence[Tensor] | Tensor) -> Tensor:
    """Return images [1, 3, H, W] as one tensor, smaller ones filled up at right and bottom."""
    if isinstance(images, Tensor):
        return images
    height, width = (max(p.shape[i] for p in images) for i in (2, 3))
    if all(p.shape[2:] == (height, width) for p in images):
        return torch.cat(list(images))
    every = images[0].new_zeros(len(images), 3, height, width)
    for whole, image in zip(every, images, strict=True):
        whole[:, : image.shape[2], : image.shape[3]] = image[0]
    return every


def cut_and_recolour(
    config: TrainConfig, images: Sequence[Tensor] | Tensor, plan: Plan
) -> tuple[Tensor, Tensor]:
    """Return the global crops [B, 3, S, S] and the local ones [B x L, 3, s, s] of B images."""
    sizes = [config.image_size] + [config.local_size] * config.local_crops
    if isinstance(images, Tensor):
        cut_global, cut_local = _cut_together(images, plan, sizes)
    else:
        crops = [
            cut(image, int(plan.divisor[i]), plan.box[i], sizes) for i, image in enumerate(images)
        ]
        cut_global, small = (
            torch.stack([c[0] for c in crops]),
            [c for of_one in crops for c in of_one[1:]],
        )
        empty = cut_global.new_empty(0, 3, config.local_size, config.local_size)
        cut_local = torch.stack(small) if small else empty
    if len(cut_local):
        recolour(cut_local, plan, slice(1, None))
    return recolour(cut_global, plan, slice(0, 1)), cut_local


def _cut_together(images: Tensor, plan: Plan, sizes: list[int]) -> tuple[Tensor, Tensor]:
    """Do as `cut` for all images [B, 3, H, W], those of one divisor having one size."""
    for i in np.flatnonzero(plan.divisor > 1):
        height, width = plan.size[i].tolist()
        whole = images[i : i + 1, :, :height, :width]
        whole.copy_(_dull(whole.float(), int(plan.divisor[i])).round_().clamp_(0, 255))
    box = send(plan.box, images.device)  # [B, K, 4]
    local, size = [], sizes[-1]
    for start in range(0, len(images), TOGETHER):
        some, boxes = images[start : start + TOGETHER], box[start : start + TOGETHER]
        small = [resize_boxes(some, boxes[:, k], size) for k in range(1, len(sizes))]
        local.append(
            torch.stack(small, 1).flatten(0, 1) if small else some.new_empty(0, 3, size, size)
        )
    large = [
        resize_boxes(images[i : i + TOGETHER], box[i : i + TOGETHER, 0], sizes[0])
        for i in range(0, len(images), TOGETHER)
    ]
    return torch.cat(large), torch.cat(local)


def resize_boxes(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Return box n of image n as [n, 3, size, size] uint8, bicubic with antialiasing: for a GPU.

    A resized line is a weighted sum of the lines under it, so a crop is R x image x C^T. The
    weights are those of torch's antialiased resizing, which on a CPU is faster image by image.

    Args:
        images: [n, 3, H, W] uint8.
        boxes: [n, 4] top, left, height, width.
    """
    top, left, height, width = boxes.float().unbind(1)
    rows = resize_weights(top, height, size, images.shape[2])  # [n, S, H]
    columns = resize_weights(left, width, size, images.shape[3])  # [n, S, W]
    x = images.float() @ columns[:, None].transpose(2, 3)  # [n, 3, H, S]
    x = rows[:, None] @ x  # [n, 3, S, S]
    return x.clamp_(0, 255).round_().to(torch.uint8)


def resize_weights(start: Tensor, length: Tensor, size: int, whole: int) -> Tensor:
    """Return what each of `whole` pixels adds to each of `size` that a stretch becomes.

    Args:
        start, length: of the stretches, [n] pixels.

    Returns:
        [n, size, whole]; each line sums to 1.
    """
    start, length = start[:, None, None], length[:, None, None]
    scale = length / size  # pixels there for one here
    centre = scale * (torch.arange(size, device=start.device)[:, None] + 0.5)  # [n, size, 1]
    pixel = torch.arange(whole, device=start.device) - start  # [n, 1, whole]
    share = keys_cubic((pixel + 0.5 - centre) / scale.clamp(min=1))  # [n, size, whole]
    share = torch.where((pixel >= 0) & (pixel < length), share, 0.0)
    return share / share.sum(2, keepdim=True)


def keys_cubic(x: Tensor, a: float = -0.5) -> Tensor:
    """Return Keys's kernel; -0.5 is what Pillow and torch's antialiasing take."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


def _dull(image: Tensor, divisor: int) -> Tensor:
    full = image.shape[-2:]
    small = [max(1, side // divisor) for side in full]
    image = F.interpolate(image, small, mode="bilinear", antialias=True)
    return F.interpolate(image, full, mode="bilinear", antialias=True)


def recolour(crops: Tensor, plan: Plan, k: slice) -> Tensor:
    """Return the crops with their colours changed, [n, 3, S, S] uint8, in place.

    Crops whose colours change in the same order are worked on together, as floating point numbers
    that are rounded once, at the end.

    Args:
        crops: uint8, crop after crop of image after image.
        plan: the plan of these images.
        k: which crops of each image these are.
    """
    order = plan.order[:, k].reshape(-1, 4)  # [n, 4]
    flat = _Recolouring(
        flip=plan.flip[:, k].reshape(-1),
        factor=plan.factor[:, k].reshape(-1, 4).astype(np.float32),
        grey=plan.grey[:, k].reshape(-1),
        sigma=plan.sigma[:, k].reshape(-1).astype(np.float32),
        solarise=plan.solarise[:, k].reshape(-1),
    )
    most = max(1, (CHUNK if crops.device.type == "cpu" else CHUNK_ON_GPU) // crops[0].numel())
    _, kind = np.unique(order @ np.array([64, 16, 4, 1]), return_inverse=True)  # [n]
    for group in np.split(kind.argsort(kind="stable"), np.bincount(kind).cumsum()[:-1]):
        for start in range(0, len(group), most):
            rows = group[start : start + most]  # [r]
            of_rows = _take(crops, rows)  # [r, 3, S, S]
            _put(crops, rows, _recolour(of_rows, flat.of(rows), order[group[0]].tolist()))
    return crops


@dataclass(frozen=True)
class _Recolouring:
    flip: NDArray[np.bool_]  # [n]
    factor: NDArray[np.float32]  # [n, 4]
    grey: NDArray[np.bool_]  # [n]
    sigma: NDArray[np.float32]  # [n]
    solarise: NDArray[np.bool_]  # [n]

    def of(self, rows: NDArray[np.int64]) -> _Recolouring:
        return _Recolouring(**{name: values[rows] for name, values in vars(self).items()})


def _recolour(crops: Tensor, plan: _Recolouring, order: list[int]) -> Tensor:
    """Return crops [r, 3, S, S] whose colours change in one order."""
    _change(crops, plan.flip, lambda y: y.flip(-1))
    x = crops.float()
    for which in order:
        if which >= 0:
            factor = send(plan.factor[:, which], x.device)  # [r]
            (brighten, contrast, saturate, turn_hue)[which](x, factor)
    _change(x, plan.grey, lambda y: luma(y).expand_as(y))
    sigma = send(plan.sigma[plan.sigma > 0], x.device)
    _change(x, plan.sigma > 0, lambda y: blur(y, sigma))
    _change(x, plan.solarise, lambda y: torch.where(y >= 128, 255 - y, y))
    x.add_(0.5)
    if x.device.type == "cpu":  # numpy cuts to 8 bits several times faster than torch
        return torch.from_numpy(x.numpy().astype(np.uint8))
    return x.to(torch.uint8)


def _change(x: Tensor, chosen: NDArray[np.bool_], change: Callable[[Tensor], Tensor]) -> None:
    if chosen.all():
        x.copy_(change(x))
    elif chosen.any():
        rows = chosen.nonzero()[0]
        _put(x, rows, change(_take(x, rows)))


def _take(x: Tensor, rows: NDArray[np.int64]) -> Tensor:
    # Indexing does the same on a CPU, twenty times more slowly.
    return x.index_select(0, send(rows, x.device))


def _put(x: Tensor, rows: NDArray[np.int64], values: Tensor) -> None:
    if x.device.type == "cpu":  # where indexing is slower than a copy of each row
        for row, value in zip(rows.tolist(), values, strict=True):
            x[row].copy_(value)
    else:
        x[send(rows, x.device)] = values


def luma(x: Tensor) -> Tensor:
    """Return the grey of images [n, 3, S, S], [n, 1, S, S]."""
    red, green, blue = x.split(1, dim=1)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def brighten(x: Tensor, factor: Tensor) -> Tensor:
    """Blend images [n, 3, S, S] with black, in place; factor [n] is 1 for no change."""
    return x.mul_(factor[:, None, None, None]).clamp_(max=255)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Blend images with the mean of their grey, in place."""
    weights = torch.cat([x.new_full((1,), share) for share in LUMA])  # [3], made where it is used
    mean = x.mean(dim=(2, 3)) @ weights  # [n]
    rest = (1 - factor) * mean
    return x.mul_(factor[:, None, None, None]).add_(rest[:, None, None, None]).clamp_(0, 255)


def saturate(x: Tensor, factor: Tensor) -> Tensor:
    """Blend images with their grey, in place."""
    factor = factor[:, None, None, None]
    rest = luma(x).mul_(1 - factor)  # [n, 1, S, S]
    return x.mul_(factor).add_(rest).clamp_(0, 255)


def turn_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of images by a share [n] of the circle, at most a sixth, in place.

    With v the highest channel, m the lowest, c = v - m and h the hue in sixths of the circle, HSV
    gives each channel v - c f(h + offset), where f is a trapezium of period 6. Multiplied by c
    nothing is divided: c h is c - m + g + b - r with the sign of g - b, and within a sixth of a
    turn c f is a fold: ||h + o| - 3| - 1, cut to 0..1, times c.
    """
    red, green, blue = x.unbind(1)  # [n, S, S]
    highest = torch.maximum(torch.maximum(red, green), blue)
    lowest = torch.minimum(torch.minimum(red, green), blue)
    chroma = highest - lowest
    away = (green + blue).sub_(red).add_(chroma).sub_(lowest)  # from red, 0..3 chroma
    hue = torch.copysign(away, green - blue).addcmul_(chroma, (6 * turns)[:, None, None])
    top = highest + chroma
    for channel, offset in ((red, 3), (green, 1), (blue, -1)):
        fold = torch.add(hue, chroma, alpha=offset).abs_().add_(chroma, alpha=-3).abs_()
        torch.clamp(torch.sub(top, fold, out=fold), lowest, highest, out=channel)
    return x


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Return images [n, 3, S, S] blurred with Gaussians of deviation sigma [n] pixels."""
    reach = torch.linspace(-(KERNEL // 2), KERNEL // 2, KERNEL, device=x.device)  # [9]
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
    return x
