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


class Pictures(Protocol):
    """Numbered pictures."""

    def image(self, i: int) -> Image.Image:
        """Return picture i as 8-bit RGB."""
        ...


@dataclass(frozen=True)
class EvalTransform:
    """Shorter side to `resize`, centre crop of `size`, normalised."""

    size: int  # pixels
    resize: int  # pixels of the shorter side before the crop
    mean: Sequence[float]
    std: Sequence[float]
    interpolation: str = "bicubic"

    def __call__(self, picture: Image.Image) -> Tensor:
        """Return the view, [3, size, size] float32."""
        mode = InterpolationMode(self.interpolation)
        resized = v2.functional.resize(picture, [self.resize], interpolation=mode)
        cropped = v2.functional.center_crop(resized, [self.size])
        return normalise(cropped, self.mean, self.std)

    def of(self, pictures: Pictures, i: int) -> Tensor:
        """Return the view of picture i."""
        return self(pictures.image(i))


def normalise(picture: Image.Image, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return an RGB picture as [3, H, W] float32, mean subtracted and divided by std."""
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255  # [3, H, W]
    return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
