"""The deterministic view of an image that evaluations look at.

PIL RGB --EvalTransform--> [3, S, S] float32, normalised
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2


class Images(Protocol):
    """Numbered images."""

    def image(self, i: int) -> Image.Image:
        """Return image i as 8-bit RGB."""
        ...


@dataclass(frozen=True)
class EvalTransform:
    """Shorter side to `resize`, centre crop of `size`, normalised."""

    size: int  # pixels
    resize: int  # pixels of the shorter side before the crop
    mean: Sequence[float]
    std: Sequence[float]
    interpolation: str = "bicubic"

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the view, [3, size, size] float32."""
        mode = InterpolationMode(self.interpolation)
        resized = v2.functional.resize(image, [self.resize], interpolation=mode)
        cropped = v2.functional.center_crop(resized, [self.size])
        return normalise(cropped, self.mean, self.std)

    def of(self, images: Images, i: int) -> Tensor:
        """Return the view of image i."""
        return self(images.image(i))


def normalise(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return an RGB image as [3, H, W] float32, mean subtracted and divided by std."""
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255  # [3, H, W]
    return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
