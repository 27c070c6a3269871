"""What an image costs before the ViT sees it: ours, torchvision v1 on Pillow, v2 on uint8 tensors.

    OMP_NUM_THREADS=1 python benchmarks/train_input.py [--images 96] [--rounds 5] [--size 256]

An image is a JPEG of 256 px; what comes out is its global crop of 224 px and four local ones of
96 px, with colours, blur and solarising drawn by the same recipe, decoding included. Ours is the
loader itself, `Batches.make`, reading row groups of a Parquet file. All in one process on one core,
taking turns; the figure of each is the median round. With `--train-steps` a ViT-S is then trained
on these images with one loader process, and the share of time that it waited is told.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms as v1
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from synclr_cli.config import TrainConfig
from synclr_cli.data import artifacts
from synclr_cli.data.artifacts import Header
from synclr_cli.data.manifest import Manifest, open_dataset
from synclr_cli.data.shards import ShardedDataset
from synclr_cli.learning import runtime
from synclr_cli.train import batches, image_reader
from synclr_cli.train.image_index import ImageIndex
from synclr_cli.train.run import run as train

VIEWS = 4


def jpeg(seed: int, size: int) -> bytes:
    """Return an image with the detail of a photo: smooth shapes under fine noise, quality 95."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3)).astype(np.uint8))
    pixels = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
    noisy = (pixels + rng.normal(0, 10, pixels.shape)).clip(0, 255).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noisy).save(sink, "JPEG", quality=95)
    return sink.getvalue()


def write(folder: Path, images: list[bytes], size: int) -> Manifest:
    """Write the images as an images/2 folder of one part, as `synclr render` does."""
    rows = [
        {
            "caption_id": i // VIEWS,
            "view": i % VIEWS,
            "caption": f"caption {i // VIEWS}",
            "concept": "",
            "image": {"bytes": data, "path": None},
            "width": size,
            "height": size,
            "seed": 0,
            "mask": None,
        }
        for i, data in enumerate(images)
    ]
    table = pa.Table.from_pylist(rows, schema=artifacts.arrow_schema("images"))
    dataset = ShardedDataset(folder, "images", Header(schema="images", config={}))
    with dataset.claim():
        dataset.write(0, table, rows_per_group=16 * VIEWS)
        dataset.finish(1)
    return open_dataset(folder, "images")


def on_pillow(config: TrainConfig) -> list:
    """Return the recipes of a crop as torchvision v1's users write them: global ones, local one."""

    class Blur:
        def __call__(self, x: Image.Image) -> Image.Image:
            return x.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))

    class Solarise:
        def __call__(self, x: Image.Image) -> Image.Image:
            return ImageOps.solarize(x)

    def recipe(size: int, scale: tuple[float, float], blur: float, solarise: float):
        return v1.Compose(
            [
                v1.RandomResizedCrop(size, scale, interpolation=v1.InterpolationMode.BICUBIC),
                v1.RandomHorizontalFlip(),
                v1.RandomApply([v1.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                v1.RandomGrayscale(0.2),
                v1.RandomApply([Blur()], p=blur),
                v1.RandomApply([Solarise()], p=solarise),
                v1.ToTensor(),
                v1.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    return _recipes(config, recipe)


def on_uint8(config: TrainConfig) -> list:
    """Return the same of torchvision v2, on uint8 tensors."""

    def recipe(size: int, scale: tuple[float, float], blur: float, solarise: float):
        return v2.Compose(
            [
                v2.RandomResizedCrop(
                    size, scale, interpolation=v2.InterpolationMode.BICUBIC, antialias=True
                ),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                v2.RandomGrayscale(0.2),
                v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], p=blur),
                v2.RandomSolarize(128, p=solarise),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    return _recipes(config, recipe)


def _recipes(config: TrainConfig, recipe) -> list:
    return [
        v1.RandomChoice(
            [
                recipe(config.image_size, config.global_scale, 1.0, 0.0),
                recipe(config.image_size, config.global_scale, 0.1, 0.2),
            ]
        ),
        *[recipe(config.local_size, config.local_scale, 0.5, 0.0)] * config.local_crops,
    ]


def waiting(folder: Path, steps: int) -> dict[str, float]:
    """Train on the part in a folder; return speed and waiting share of all steps but the first."""
    config = TrainConfig(
        arch="vit_small_patch16_224",
        captions_per_batch=4,
        prototypes=8192,
        steps=1 + steps,
        warmup_steps=1,
        log_steps=1,
        workers=1,
    )
    out = train(config, folder, folder / "run")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()[1:]]
    wanted = ("images_per_s", "data_wait_share")
    return {key: round(float(np.mean([line[key] for line in lines])), 4) for key in wanted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--train-steps", type=int, default=0)
    given = parser.parse_args()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    runtime.keep_freed_memory()
    images = [jpeg(i, given.size) for i in range(given.images)]
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(captions_per_batch=given.images // VIEWS, views=VIEWS)
        index = ImageIndex(write(Path(folder), images, given.size))
        source = batches.Batches(index, config, patches=196)
        pillow, uint8 = on_pillow(config), on_uint8(config)

        def ours(step: int) -> None:
            source.make(step)

        def torchvision_v1(_: int) -> None:
            for data in images:
                image = Image.open(io.BytesIO(data)).convert("RGB")
                for recipe in pillow:
                    recipe(image)

        def torchvision_v2(_: int) -> None:
            for data in images:
                encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
                image = decode_jpeg(encoded, ImageReadMode.RGB)
                for recipe in uint8:
                    recipe(image)

        def decoding(_: int) -> None:
            for data in images:
                image_reader.decode(data, "")

        variants = {
            "ours": ours,
            "torchvision v1 on Pillow": torchvision_v1,
            "torchvision v2 on uint8": torchvision_v2,
            "decoding alone": decoding,
        }
        taken: dict[str, list[float]] = {name: [] for name in variants}
        for round_ in range(given.rounds + 1):  # the first warms up
            for name, work in variants.items():
                start = time.process_time()
                work(round_)
                if round_:
                    taken[name].append(1000 * (time.process_time() - start) / len(images))
        for name, each in taken.items():
            figure = {"input": name, "cpu_ms_per_image": round(float(np.median(each)), 2)}
            print(json.dumps(figure), flush=True)
        if given.train_steps:
            torch.set_num_threads(threads)
            print(json.dumps({"training": "ViT-S", **waiting(Path(folder), given.train_steps)}))


if __name__ == "__main__":
    main()
