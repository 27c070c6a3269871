"""Images from bytes: bytes --decode--> PIL, 8-bit RGB."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from synclr_cli.errors import DataError

# What Pillow raises for bytes that are no whole image.
DECODE_ERRORS = (
    OSError,  # UnidentifiedImageError among them
    ValueError,
    SyntaxError,  # of a PNG's chunks
    Image.DecompressionBombError,  # a header that claims billions of pixels
)


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
    except (*DECODE_ERRORS, Warning) as e:
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
