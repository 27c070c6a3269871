"""One small whole file or folder of each kind that a command takes, to be damaged by the tests."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from synclr_cli.data import artifacts
from synclr_cli.data.artifacts import Header
from synclr_cli.learning import backbone as backbones, runtime

SIZE = 16  # pixels
ARCH = {"arch": "vit_tiny_patch16_224", "image_size": SIZE, "patch_size": 8, "depth": 1}


def png(seed: int, size: tuple[int, int] = (SIZE, SIZE)) -> bytes:
    """Return a PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    return encoded(Image.fromarray(pixels))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    """Return an image's bytes."""
    sink = io.BytesIO()
    image.save(sink, kind)
    return sink.getvalue()


def mask(seed: int, classes: int = 3) -> bytes:
    """Return a PNG of class ids."""
    ids = np.random.default_rng(seed).integers(0, classes, (SIZE, SIZE), np.uint8)
    return encoded(Image.fromarray(ids))


def labelled(path: Path, **columns: Any) -> Path:
    """Write a Parquet file of images and labels; `columns` replace or add some."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(i), "path": None} for i in range(24)]
    table = {"image": images, "label": [i % 3 for i in range(24)], **columns}
    pq.write_table(pa.table({k: v for k, v in table.items() if v is not None}), path)
    return path


def report(path: Path, **changes: Any) -> Path:
    """Write a report as an evaluation does; `changes` replace some of its values, None drops."""
    digest = "sha256:" + "0" * 64
    header = Header("report", config={"seed": 0})
    record = {
        "schema": "report", "version": 1, "task": "linear-probe", "metric": "top1", "value": 50.0,
        "unit": "%", "split": "test", "n": 10, "seed": 0, "interval": [40.0, 60.0], "top1": 50.0,
        "backbone": {"spec": "runs/a", "name": "a", "digest": digest, "image_size": 32},
        "data": {"spec": "d", "name": "d", "digest": digest, "classes": 3},
        "config": {"seed": 0}, "header": json.loads(header.json()), **changes,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({k: v for k, v in record.items() if v is not None}))
    return path


def backbone(folder: Path) -> Path:
    """Save a ViT of one block."""
    with runtime.seeded("attack", 0):
        model = backbones.build(**ARCH)
    backbones.save(folder, model, Header("backbone", config={}), **ARCH)
    return folder


def make_all(root: Path, synclr: Callable[..., Any]) -> dict[str, Path]:
    """Make one of each; `synclr` runs a command line and returns its exit code."""

    def run(*arguments: object) -> None:
        assert synclr(*arguments) == 0, arguments

    words = root / "words.txt"
    words.write_text("a red fox\na blue bird\na green frog\n")
    captions, images, trained = root / "captions", root / "images", root / "trained"
    run("captions", "--concepts", words, "-n", "8", "--engine", "template:", "--out", captions,
        "--set", "captions.captions_per_part=4", "-q")  # fmt: skip
    run("render", captions, "--engine", "procedural:", "--views", "2", "--out", images, "-q",
        "--set", "render.captions_per_part=4", "--set", "render.engine.size=32")  # fmt: skip
    run("train", images, "--out", trained, "-q", *small_training())
    photos = root / "photos"
    photos.mkdir()
    for i in range(6):
        (photos / f"a fox {i}.png").write_bytes(png(i))
    masks = [{"bytes": mask(i), "path": None} for i in range(24)]
    return {
        "words": words,
        "captions": captions,
        "images": images,
        "run": trained,
        "backbone": backbone(root / "backbone"),
        "photos": photos,
        "labelled": labelled(root / "labelled" / "train.parquet").parent,
        "masks": labelled(root / "masks" / "train.parquet", label=None, mask=masks).parent,
        "report": report(root / "report" / "report.json").parent,
    }


def small_training(**changes: Any) -> list[str]:
    """Return `--set` flags of a training run of two steps."""
    values = {
        "steps": 2, "warmup_steps": 1, "checkpoint_steps": 1, "depth": 1, "image_size": SIZE,
        "local_size": 8, "views": 2, "captions_per_batch": 2, "workers": 0, "head_hidden": 8,
        "head_out": 8, "patch_head_hidden": 8, "patch_head_bottleneck": 8, "prototypes": 8,
        "precision": '"float32"', "teacher_temperature_steps": 1, **changes,
    }  # fmt: skip
    return [part for k, v in values.items() for part in ("--set", f"train.{k}={v}")]


def safetensors(path: Path, header: bytes, body: bytes = b"") -> Path:
    """Write a file that begins as safetensors do, whatever the header says."""
    path.write_bytes(len(header).to_bytes(8, "little") + header + body)
    return path


def with_header(source: Path, target: Path, header: str) -> Path:
    """Copy a safetensors or Parquet file of ours, another header in its metadata."""
    if source.suffix == ".parquet":
        table = pq.read_table(source)
        metadata = {**(table.schema.metadata or {}), artifacts.HEADER_KEY.encode(): header}
        pq.write_table(table.replace_schema_metadata(metadata), target)
        return target
    from safetensors.numpy import load_file, save_file

    save_file(load_file(source), target, metadata={artifacts.HEADER_KEY: header})
    return target
