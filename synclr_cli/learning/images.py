"""Pictures from bytes, and the deterministic view of them that judges look at.

bytes --decode--> PIL RGB --EvalTransform--> [3, S, S] float32, normalised
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from synclr_cli.errors import DataError
from synclr_cli.learning.undecodable import DOES_NOT_DECODE


def decode(data: bytes | None, where: str) -> Image.Image:
    """Return the picture as 8-bit RGB, whatever it was stored as.

    Greyscale, palette, CMYK and 16-bit pictures are converted, fractions from 0 to 1 taken as
    shares of white; transparency is laid on white; EXIF's orientation is followed.

    Args:
        data: an encoded picture.
        where: what to call it in an error, "photos.parquet row 17".

    Raises:
        DataError: the bytes are no picture, or a truncated one.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data or b""))
            picture.load()
            ImageOps.exif_transpose(picture, in_place=True)
    except UnidentifiedImageError as e:  # its own words name an address in memory
        raise DataError(f"{where} does not decode as a picture (no known format)") from e
    except (*DOES_NOT_DECODE, Warning) as e:
        raise DataError(f"{where} does not decode as a picture ({e})") from e
    if picture.mode.startswith(("I", "F")):  # PIL would clip, not scale, 16-bit grey
        grey = np.asarray(picture, dtype=np.float64)
        brightest = grey.max(initial=0)
        # I;16 says what white is. The others do not: their brightest pixel tells the range.
        if picture.mode.startswith("I;16") or brightest > 255:
            scale = 255 / 65535
        else:
            scale = 255.0 if picture.mode == "F" and brightest <= 1 else 1.0
        return Image.fromarray((grey * scale).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return picture.convert("RGB")


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
