"""Small labelled images and a small backbone."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from synclr_cli.config import build

CLASSES, SIZE = 4, 32


def png(pixels):
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return {"bytes": sink.getvalue(), "path": None}


def write_split(path, n, seed):
    """Noise with a bright stripe; the class is the stripe's colour."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        label = i % CLASSES
        pixels = rng.integers(0, 120, (SIZE, SIZE, 3))
        at = int(rng.integers(4, SIZE - 12))
        pixels[at : at + 8] = ((250, 30, 30), (30, 250, 30), (30, 30, 250), (250, 250, 30))[label]
        rows.append((png(pixels.astype(np.uint8)), label))
    table = pa.table({"image": [r[0] for r in rows], "label": [r[1] for r in rows]})
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path)


@pytest.fixture(scope="session")
def stripes(tmp_path_factory):
    """A folder of Parquet files: 80 images to train on, 40 to test on, four classes."""
    folder = tmp_path_factory.mktemp("stripes")
    write_split(folder / "train.parquet", 80, 0)
    write_split(folder / "test.parquet", 40, 1)
    return str(folder)


@pytest.fixture
def settings():
    """Make a config of few, small steps."""

    def make(**changes):
        values = {
            "epochs": 2, "warmup_epochs": 1, "batch_size": 16, "base_lr": 8e-3, "workers": 0,
            "weight_ema": 0.9, "drop_path": 0.1, "precision": "float32", "test_crop": 1.0,
        }  # fmt: skip
        return build("finetune", values | changes)

    return make


@pytest.fixture(scope="session")
def new_split():
    """Give the function that writes a split."""
    return write_split
