"""Masks: exact counts, drawn over all views, alike on any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest

from synclr_cli import rng
from synclr_cli.train import masks


def draw(step: int, n: int = 32, own: slice = slice(None), **changes: float) -> np.ndarray:
    ids = rng.key("picture", np.arange(n))
    return masks.draw(
        3, step, ids, own, **{"patches": 49, "probability": 0.5, "ratio": 0.5} | changes
    )


@pytest.mark.parametrize(
    ("n", "patches", "probability", "ratio", "images", "tokens"),
    [
        (32, 196, 0.5, 0.5, 16, 98),
        (33, 49, 0.5, 0.5, 16, 24),  # cut, not rounded
        (100, 100, 0.29, 0.29, 28, 28),  # the floating product is 28.999...
        (8, 16, 1.0, 1.0, 8, 16),
        (8, 16, 0.0, 0.5, 0, 0),
        (3, 16, 0.3, 0.5, 0, 0),
    ],
)
def test_the_counts_are_exact(
    n: int, patches: int, probability: float, ratio: float, images: int, tokens: int
) -> None:
    drawn = draw(0, n, patches=patches, probability=probability, ratio=ratio)
    counts = drawn.sum(1)
    assert (counts > 0).sum() == images
    assert set(counts[counts > 0]) <= {tokens}


def test_ranks_draw_the_parts_of_the_same_masks() -> None:
    whole = draw(5)
    parts = [draw(5, own=slice(i, i + 8)) for i in range(0, 32, 8)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_step_has_masks_of_its_own() -> None:
    assert (draw(1) == draw(1)).all()
    assert (draw(1) != draw(2)).any()


def test_every_image_and_every_patch_is_masked_equally_often() -> None:
    drawn = np.stack([draw(step) for step in range(400)])  # [steps, B, N]
    images = drawn.any(2).mean(0)
    assert np.abs(images - 0.5).max() < 4 * 0.5 / 400**0.5
    patches = drawn.sum((0, 1)) / drawn.any(2).sum()
    assert np.abs(patches - 24 / 49).max() < 4 * 0.5 / (400 * 16) ** 0.5
