"""A data set a linear classifier can learn and a backbone small enough to wait for."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synclr_cli import config as configs

SMALL = {"image_size": 32, "penalties": 5, "workers": 0, "iterations": 60, "batch_size": 16}
BACKBONE = "random:vit_tiny_patch16_224"


@pytest.fixture
def small():
    """Build a linear-probe config whose work takes a second."""

    def build(**changes):
        return configs.build("linear-probe", {**SMALL, **changes})

    return build


@pytest.fixture(scope="session")
def stripes(tmp_path_factory) -> Path:
    """Write noisy images of level, upright and plain texture into train, val and test."""
    root = tmp_path_factory.mktemp("stripes")
    rng = np.random.default_rng(0)
    waves = np.sign(np.sin(np.arange(32) * 0.8))
    textures = {
        "level": np.tile(waves[:, None], (1, 32)),
        "plain": np.zeros((32, 32)),
        "upright": np.tile(waves, (32, 1)),
    }
    for split, n in (("train", 12), ("val", 6), ("test", 8)):
        for name, texture in textures.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                shift, colour = rng.integers(0, 32), rng.uniform(60, 190, 3)
                texture = np.roll(texture, shift, (0, 1))
                noise = rng.normal(0, 25, (32, 32, 3))
                pixels = colour + 40 * texture[..., None] + noise
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    return root
