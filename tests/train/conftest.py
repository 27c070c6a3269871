"""A small images/1 folder, written with the trunk alone: stripes, one direction a concept."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from synclr_cli.config import TrainConfig
from synclr_cli.data import artifacts, image_facts
from synclr_cli.data.artifacts import Header
from synclr_cli.data.shards import ShardedDataset

CONCEPTS = 8


def image(concept: int, caption: int, view: int, size: int) -> bytes:
    """Draw one view: the concept sets direction and colour, the view phase, light and noise."""
    rng = np.random.default_rng([concept, caption, view])
    angle, pitch = np.pi * concept / CONCEPTS, 4 + concept % 4
    y, x = np.mgrid[0:size, 0:size]
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / pitch + rng.uniform(0, 6))
    colour = np.random.default_rng(concept).uniform(40, 215, 3)
    pixels = (
        colour + 60 * wave[..., None] + rng.normal(0, 12, (size, size, 3)) + rng.uniform(-30, 30)
    )
    sink = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(sink, "JPEG", quality=90)
    return sink.getvalue()


def write_images(
    folder: Path,
    *,
    captions: int = 24,
    views: int = 4,
    size: int = 48,
    parts: int = 2,
    edit: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] = lambda rows: rows,
) -> Path:
    """Write a finished images/1 folder; `edit` may change the rows first."""
    rows = edit(
        [
            {
                "caption_id": 100 + c,
                "view": v,
                "caption": f"caption number {c}",
                "concept": f"concept {c % CONCEPTS}",
                "image": {"bytes": image(c % CONCEPTS, c, v, size), "path": None},
                "width": size,
                "height": size,
                "seed": 0,
                "mask": None,
            }
            for c in range(captions)
            for v in range(views)
        ]
    )
    header = Header(schema="images", config={"views": views})
    schema = artifacts.arrow_schema("images")
    ids = sorted({r["caption_id"] for r in rows})
    dataset = ShardedDataset(folder, "images", header)
    with dataset.claim():
        for i, own in enumerate(np.array_split(ids, parts)):
            table = pa.Table.from_pylist([r for r in rows if r["caption_id"] in own], schema=schema)
            facts = image_facts.of_part(table, [], [])
            dataset.write(i, table, rows_per_group=2 * views, facts=facts)
        dataset.finish(parts, lambda parts: image_facts.of_whole(parts, views=views))
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="session")
def make_images() -> Callable[..., Path]:
    return write_images


@pytest.fixture(scope="session")
def small() -> Callable[..., TrainConfig]:
    def config(**changes: Any) -> TrainConfig:
        values: dict[str, Any] = {
            "arch": "vit_tiny_patch16_224",
            "patch_size": 8,
            "depth": 2,
            "drop_path": 0.2,
            "head_hidden": 32,
            "head_out": 16,
            "patch_head_hidden": 32,
            "patch_head_bottleneck": 16,
            "prototypes": 24,
            "captions_per_batch": 4,
            "views": 3,
            "image_size": 32,
            "local_size": 16,
            "local_crops": 2,
            "workers": 0,
            "teacher_temperature_steps": 4,
            "steps": 6,
            "warmup_steps": 2,
            "peak_lr": 1e-3,
            "precision": "float32",
            "checkpoint_steps": 3,
            "log_steps": 1,
        }
        return TrainConfig(**values | changes)

    return config
