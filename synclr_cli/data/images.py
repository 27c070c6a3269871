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


MOST_PIXELS = 1 << 26  # of an image: 200 MB as RGB
MOST_ELONGATED = 200  # longer to shorter side: resized to a short side of 224, 45,000 pixels long


def require_size(size: tuple[int, int], where: str) -> None:
    """Refuse an image, by its header, that would take too much memory.

    Raises:
        DataError: it has too many pixels, or is too long for its width.
    """
    short, long = sorted(size)
    if short * long > MOST_PIXELS or long > MOST_ELONGATED * short:
        raise DataError(
            f"{where} is too large to decode",
            got=f"{size[0]}x{size[1]} pixels",
            expected=f"at most {MOST_PIXELS:,}, and one side at most {MOST_ELONGATED} times the"
            " other",
        )


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return the width and height in a JPEG's header, None if it has none; 3 microseconds."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 7 : at + 9]), int.from_bytes(data[at + 5 : at + 7])
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


def open_image(data: bytes | None, where: str) -> Image.Image:
    """Open an encoded image, of a size that may be decoded; its pixels are not read yet.

    Raises:
        DataError: it is too large. One of `DECODE_ERRORS` if it is none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ours is stricter
        image = Image.open(io.BytesIO(data or b""))
    require_size(image.size, where)
    return image


def decode(data: bytes | None, where: str) -> Image.Image:
    """Return the image as 8-bit RGB, whatever it was stored as.

    Greyscale, palette, CMYK and 16-bit images are converted, fractions from 0 to 1 taken as
    shares of white; transparency is laid on white; EXIF's orientation is followed.

    Args:
        data: an encoded image.
        where: what to call it in an error, "photos.parquet row 17".

    Raises:
        DataError: the bytes are no image, or a truncated one.
    """
    try:
        image = open_image(data, where)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except UnidentifiedImageError as e:  # its own words name an address in memory
        raise DataError(f"{where} does not decode as an image (no known format)") from e
    except DECODE_ERRORS as e:
        raise DataError(f"{where} does not decode as an image ({e})") from e
    if image.mode.startswith(("I", "F")):  # PIL would clip, not scale, 16-bit grey
        grey = np.array(image, dtype=np.float64)
        brightest = grey.max(initial=0)
        # I;16 says what white is. The others do not: their brightest pixel tells the range.
        if image.mode.startswith("I;16") or brightest > 255:
            scale = 255 / 65535
        else:
            scale = 255.0 if image.mode == "F" and brightest <= 1 else 1.0
        grey *= scale  # in place: it may be 0.5 GB
        grey.round(out=grey).clip(0, 255, out=grey)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
