"""Images of every kind become 8-bit RGB, and judges see the view the protocol says."""

import io

import numpy as np
import pytest
from PIL import Image

from synclr_cli.data.images import decode
from synclr_cli.errors import DataError
from synclr_cli.learning.transforms import EvalTransform

RAMP = np.linspace(0, 255, 12).round().astype(np.uint8).reshape(3, 4)


def stored(image, kind="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_grey_is_repeated_over_the_channels():
    found = np.asarray(decode(stored(Image.fromarray(RAMP)), "x"))
    assert found.shape == (3, 4, 3)
    assert (found == RAMP[..., None]).all()


def test_sixteen_bit_grey_is_scaled_not_clipped():
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    found = np.asarray(decode(stored(deep), "x"))
    assert (found == RAMP[..., None]).all()


def test_a_dark_sixteen_bit_image_is_as_dark_as_it_says():
    deep = Image.fromarray(np.full((3, 4), 200, np.uint16))
    assert set(np.asarray(decode(stored(deep), "x")).ravel()) == {1}


def test_fractions_are_shares_of_white():
    fractions = Image.fromarray(RAMP.astype(np.float32) / 255)
    found = np.asarray(decode(stored(fractions, "TIFF"), "x"))
    assert (found == RAMP[..., None]).all()


def test_a_image_is_turned_as_its_exif_says():
    sideways, exif = Image.fromarray(RAMP).convert("RGB"), Image.Exif()
    exif[0x0112] = 6  # the camera was held with its right side down
    buffer = io.BytesIO()
    sideways.save(buffer, "PNG", exif=exif)
    found = np.asarray(decode(buffer.getvalue(), "x"))
    assert (found[..., 0] == np.rot90(RAMP, -1)).all()


def test_one_bit_images_are_black_and_white():
    found = np.asarray(decode(stored(Image.fromarray(RAMP > 100)), "x"))
    assert set(found.ravel()) == {0, 255}


def test_transparency_is_laid_on_white():
    clear = np.zeros((2, 2, 4), np.uint8)
    clear[0, 0] = (10, 20, 30, 255)
    found = np.asarray(decode(stored(Image.fromarray(clear)), "x"))
    assert found[0, 0].tolist() == [10, 20, 30]
    assert found[1, 1].tolist() == [255, 255, 255]


def test_palettes_and_cmyk_keep_their_colours():
    red = Image.new("RGB", (4, 4), (250, 10, 10))
    palette = np.asarray(decode(stored(red.quantize(4)), "x"))
    cmyk = np.asarray(decode(stored(red.convert("CMYK"), "TIFF"), "x"))
    for found in (palette, cmyk):
        assert np.abs(found.astype(int) - [250, 10, 10]).max() <= 2


@pytest.mark.parametrize("data", [None, b"", b"no image", stored(Image.fromarray(RAMP))[:-30]])
def test_what_does_not_decode_is_named(data):
    with pytest.raises(DataError, match="row 3 does not decode"):
        decode(data, "row 3")


def test_the_view_is_the_shorter_side_resized_then_the_centre():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    found = EvalTransform(size=20, resize=24, mean=mean, std=std)(image)
    # By PIL alone: 40 -> 24, so 60 -> 36; then 20 x 20 around the centre.
    small = np.asarray(image.resize((36, 24), Image.Resampling.BICUBIC))[2:22, 8:28]
    expected = (small / 255.0 - mean) / std
    assert found.shape == (3, 20, 20)
    assert np.abs(found.permute(1, 2, 0).numpy() - expected).max() < 1e-5


def test_a_view_may_be_larger_than_the_image():
    found = EvalTransform(size=32, resize=32, mean=(0,) * 3, std=(1,) * 3)(
        Image.fromarray(RAMP).convert("RGB")
    )
    assert found.shape == (3, 32, 32)
