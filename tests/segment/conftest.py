"""Small images with masks and a small backbone."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from synclr_cli.config import build

SIZE, UNLABELLED = 32, 255
COLOURS = ((40, 40, 40), (220, 40, 40), (40, 220, 40))


def png(pixels):
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return {"bytes": sink.getvalue(), "path": None}


def write_split(path, n, seed, spoil=None):
    """Coloured boxes on a dark ground, some pixels unlabelled; `spoil(ids, i)` changes masks."""
    rng = np.random.default_rng(seed)
    images, masks = [], []
    for i in range(n):
        height, width = SIZE + int(rng.integers(0, 9)), SIZE + int(rng.integers(0, 9))
        ids = np.zeros((height, width), np.uint8)
        for k in (1, 2):
            top, left = rng.integers(0, SIZE - 12, 2)
            ids[top : top + 14, left : left + 14] = k
        pixels = np.array(COLOURS)[ids] + rng.integers(-30, 30, (height, width, 3))
        ids[:2] = UNLABELLED
        images.append(png(pixels.clip(0, 255).astype(np.uint8)))
        masks.append(png(spoil(ids, i) if spoil else ids))
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": images, "mask": masks}), path)


@pytest.fixture(scope="session")
def new_split():
    """Give the function that writes a split."""
    return write_split


@pytest.fixture(scope="session")
def boxes(tmp_path_factory):
    """A folder of Parquet files: 40 images to train on, 12 to test on, three classes."""
    folder = tmp_path_factory.mktemp("boxes")
    write_split(folder / "train.parquet", 40, 0)
    write_split(folder / "test.parquet", 12, 1)
    return str(folder)


@pytest.fixture
def settings():
    """Make a config of few, small steps."""

    def make(**changes):
        values = {
            "image_size": SIZE, "short_side": SIZE, "stride": 21, "steps": 6, "warmup_steps": 2,
            "batch_size": 8, "lr": 2e-3, "channels": 16, "auxiliary_channels": 8, "workers": 0,
            "validation_steps": 3, "checkpoint_steps": 4, "precision": "float32",
        }  # fmt: skip
        return build("segment", values | changes)

    return make
