"""What Pillow raises for bytes that are no whole picture, in one place."""

from __future__ import annotations

from PIL import Image

DOES_NOT_DECODE = (
    OSError,  # UnidentifiedImageError among them
    ValueError,
    SyntaxError,  # of a PNG's chunks
    Image.DecompressionBombError,  # a header that claims billions of pixels
)
