"""Boxes of many pictures cut and resized together, as two products of matrices: for a GPU.

    pictures, boxes --matrices--> rows [n, S, H], columns [n, S, W] --products--> crops [n, 3, S, S]

A resized line is a weighted sum of the lines under it, so a crop is R x picture x C^T. The weights
are those of torch's antialiased bicubic resizing, which on a CPU is faster picture by picture.

Shapes: n crops, S pixels of a crop, H and W of the pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor


def resize(pictures: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Return box n of picture n as [n, 3, size, size] uint8, bicubic with antialiasing.

    Args:
        pictures: [n, 3, H, W] uint8.
        boxes: [n, 4] top, left, height, width.
    """
    top, left, height, width = boxes.float().unbind(1)
    rows = weights(top, height, size, pictures.shape[2])  # [n, S, H]
    columns = weights(left, width, size, pictures.shape[3])  # [n, S, W]
    x = pictures.float() @ columns[:, None].transpose(2, 3)  # [n, 3, H, S]
    x = rows[:, None] @ x  # [n, 3, S, S]
    return x.clamp_(0, 255).round_().to(torch.uint8)


def weights(start: Tensor, length: Tensor, size: int, whole: int) -> Tensor:
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
    found = cubic((pixel + 0.5 - centre) / scale.clamp(min=1))  # [n, size, whole]
    found = torch.where((pixel >= 0) & (pixel < length), found, 0.0)
    return found / found.sum(2, keepdim=True)


def cubic(x: Tensor, a: float = -0.5) -> Tensor:
    """Return Keys's kernel; -0.5 is what Pillow and torch's antialiasing take."""
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))
