"""Images with a class for every pixel: training crops, and testing by a sliding window.

    image [H, W, 3] + mask [H, W] --training_crop--> [3, S, S], [S, S]
    image [3, H, W] --slide--> logits [K, H, W]

Shapes: S side of a crop or window in pixels, K classes, H and W of one image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from synclr_cli.config import SegmentConfig
from synclr_cli.data.labelled import Split
from synclr_cli.learning import transforms

IGNORED = -1  # the id of pixels that teach and count nothing, inside this stage
_TRIES = 10  # crops drawn, at most, in search of one that no class fills
_CLASSES_AT_ONCE = 16  # enlarged together when the winner is looked for: bounds the memory


def read_mask(split: Split, i: int, ignore_index: int) -> np.ndarray:
    """Return the class ids of image i, [H, W] int64, ignored pixels as `IGNORED`."""
    ids = np.array(split.mask(i), dtype=np.int64)
    ids[ids == ignore_index] = IGNORED
    return ids


# ----------------------------------------------------------------------------------- training


def training_crop(
    image: Image.Image,
    ids: np.ndarray,
    config: SegmentConfig,
    mean: Sequence[float],
    std: Sequence[float],
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Resize at random, crop, flip, distort the colours, normalise.

    A crop that one class fills beyond `max_class_share` is drawn again, up to ten times. Where the
    resized image is smaller than the crop, the rest is mean colour and ignored.

    Args:
        ids: class ids [H, W], `IGNORED` where there are none.

    Returns:
        The crop [3, S, S] and its ids [S, S].
    """
    side, (width, height) = config.image_size, image.size
    zoom = rng.uniform(*config.scale)
    if config.short_side:
        zoom *= config.short_side / min(width, height)
    full = max(1, round(height * zoom)), max(1, round(width * zoom))
    shape = min(side, full[0]), min(side, full[1])
    for _ in range(_TRIES):
        top = int(rng.integers(full[0] - shape[0] + 1))
        left = int(rng.integers(full[1] - shape[1] + 1))
        # Crop and resize in one go: only the pixels that are kept get computed.
        box = (
            left * width / full[1],
            top * height / full[0],
            (left + shape[1]) * width / full[1],
            (top + shape[0]) * height / full[0],
        )
        kept = _resize_ids(ids, shape, box)  # [h, w]
        if config.max_class_share >= 1 or _largest_share(kept) <= config.max_class_share:
            break
    crop = image.resize(shape[::-1], Image.Resampling.BILINEAR, box=box)
    x = torch.from_numpy(np.array(crop)).permute(2, 0, 1).float() / 255  # [3, h, w]
    y = torch.from_numpy(kept)
    if rng.random() < 0.5:
        x, y = x.flip(-1), y.flip(-1)
    if config.photometric:
        x = distort_colours(x, rng)
    x = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    missing = (0, side - shape[1], 0, side - shape[0])
    return F.pad(x, missing), F.pad(y, missing, value=IGNORED)  # [3, S, S], [S, S]


def distort_colours(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Change brightness, contrast, saturation and hue of [3, H, W] in 0..1, each half of the time.

    The ranges are those of the usual segmentation recipe: +-32 of 255 in brightness, a factor from
    0.5 to 1.5 for contrast (before or after the colours) and saturation, +-18 of 180 in hue.
    """
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    contrast_first = rng.random() < 0.5
    if rng.random() < 0.5:
        x = (x + rng.uniform(-32, 32) / 255).clamp(0, 1)
    if contrast_first:
        x = (x * contrast).clamp(0, 1)
    if rng.random() < 0.5:
        x = TF.adjust_saturation(x, rng.uniform(0.5, 1.5))
    if rng.random() < 0.5:
        x = TF.adjust_hue(x, rng.uniform(-0.1, 0.1))
    return x if contrast_first else (x * contrast).clamp(0, 1)


def _resize_ids(
    ids: np.ndarray, shape: tuple[int, int], box: tuple[float, float, float, float]
) -> np.ndarray:
    as_image = Image.fromarray(ids.astype(np.int32))
    resized = as_image.resize(shape[::-1], Image.Resampling.NEAREST, box=box)
    return np.array(resized, dtype=np.int64)


def _largest_share(ids: np.ndarray) -> float:
    counts = np.bincount(ids[ids != IGNORED])
    # A crop of nothing but ignored pixels teaches nothing: as bad as one class.
    return float(counts.max() / counts.sum()) if counts.sum() else 1.0


# ------------------------------------------------------------------------------------ testing


def test_view(
    image: Image.Image, short_side: int, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Return the whole image, its shorter side resized (0: as it is), normalised; [3, H, W]."""
    if short_side:
        zoom = short_side / min(image.size)
        size = max(1, round(image.width * zoom)), max(1, round(image.height * zoom))
        image = image.resize(size, Image.Resampling.BILINEAR)
    return transforms.normalise(image, mean, std)


def starts(length: int, window: int, stride: int) -> list[int]:
    """Return where the windows begin along one side: every `stride`, the last one at the end."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def slide(
    logits_of: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    window: int,
    stride: int,
    batch_size: int = 8,
) -> Tensor:
    """Return the logits of a whole image, the mean over the windows that saw each pixel.

    Args:
        logits_of: windows [B, 3, S, S] -> logits [B, K, S, S].
        x: one image [3, H, W]; if smaller than the window it is filled up with mean colour.

    Returns:
        [K, H, W] float32.
    """
    height, width = x.shape[1:]
    x = F.pad(x, (0, max(0, window - width), 0, max(0, window - height)))  # [3, H', W']
    corners = [
        (top, left)
        for top in starts(x.shape[1], window, stride)
        for left in starts(x.shape[2], window, stride)
    ]
    total = torch.empty(0)
    seen = torch.zeros(x.shape[1:], device=x.device)  # [H', W']
    for first in range(0, len(corners), batch_size):
        some = corners[first : first + batch_size]
        cut = torch.stack([x[:, t : t + window, w : w + window] for t, w in some])  # [B, 3, S, S]
        logits = logits_of(cut).float()  # [B, K, S, S]
        if first == 0:
            total = logits.new_zeros(logits.shape[1], *x.shape[1:])  # [K, H', W']
        for (top, left), window_logits in zip(some, logits, strict=True):
            total[:, top : top + window, left : left + window] += window_logits
            seen[top : top + window, left : left + window] += 1
    return (total / seen)[:, :height, :width]  # [K, H, W]


def likeliest(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the likeliest class of every pixel at another size, [H, W] from logits [K, h, w]."""
    best = logits.new_full(size, -torch.inf)  # [H, W]
    chosen = torch.zeros(size, dtype=torch.long, device=logits.device)  # [H, W]
    for first in range(0, len(logits), _CLASSES_AT_ONCE):
        some = logits[None, first : first + _CLASSES_AT_ONCE]
        enlarged = F.interpolate(some, size=size, mode="bilinear", align_corners=False)[0]
        value, index = enlarged.max(0)  # [H, W]
        chosen = torch.where(value > best, index + first, chosen)
        best = torch.maximum(best, value)
    return chosen
