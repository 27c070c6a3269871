"""Training on a GPU: pictures a second, MFU, and what the input costs, at ViT-B/16 in bfloat16.

    python benchmarks/train_gpu.py [--captions 256] [--micro-batch 256] [--images images/]

First with one random batch again and again, then, with `--images`, with batches of a folder
through the loader, crops cut and painted on the device; `input` is that work of the device alone.
Runs on a CPU too, in float32 where bfloat16 is only emulated; it then only shows that it runs:

    --arch vit_tiny_patch16_224 --captions 2 --micro-batch 4 --prototypes 64 --steps 1 --workers 1
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from train_step import random_batch

from synclr_cli import rng
from synclr_cli.config import TrainConfig
from synclr_cli.data.manifest import open_dataset
from synclr_cli.learning import flops, runtime
from synclr_cli.train import batches, crops
from synclr_cli.train.batches import Batch
from synclr_cli.train.image_index import ImageIndex
from synclr_cli.train.learner import Learner, step_values


def finish(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def speed(learner: Learner, every: Iterator[Batch], steps: int) -> dict[str, float]:
    """Return what `steps` updates reach after two that warm up."""
    config, device = learner.config, learner.runtime.device
    now = step_values(1000, config)
    for _ in range(2):
        learner.update(next(every), now)
    finish(device)
    start = time.perf_counter()
    for _ in range(steps):
        learner.update(next(every), now)
    finish(device)
    seconds = (time.perf_counter() - start) / steps
    teraflops = flops.step_flops(config, learner.student.vit) / seconds / 1e12
    peak = flops.peak_tflops(device)
    found = {
        "images_per_s": round(config.captions_per_batch * config.views / seconds, 1),
        "model_tflop_per_s": round(teraflops, 2),
    }
    if peak is not None:
        found["mfu"] = round(teraflops / peak, 3)
    if device.type == "cuda":
        found["peak_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    return found


def again(batch: Batch) -> Iterator[Batch]:
    """Yield one batch for ever."""
    while True:
        yield batch


def cutting(config: TrainConfig, device: torch.device, pictures: int, rounds: int) -> float:
    """Return pictures a second that are cut and painted, 256 px each and on the device."""
    pixels = torch.randint(0, 256, (pictures, 3, 256, 256), dtype=torch.uint8).to(device)
    sizes = np.full((pictures, 2), 256)
    for round_ in range(rounds + 1):
        if round_ == 1:
            finish(device)
            start = time.perf_counter()
        drawn = crops.plan(config, round_, rng.key("picture", np.arange(pictures)), sizes)
        crops.cut_and_recolour(config, pixels.clone(), drawn)
    finish(device)
    return rounds * pictures / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="vit_base_patch16_224")
    parser.add_argument("--captions", type=int, default=256)
    parser.add_argument("--micro-batch", type=int, default=256)
    parser.add_argument("--prototypes", type=int, default=65_536)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--images", type=Path)
    given = parser.parse_args()
    config = TrainConfig(
        arch=given.arch,
        captions_per_batch=given.captions,
        micro_batch=given.micro_batch,
        prototypes=given.prototypes,
        workers=given.workers,
        compile=given.compile,
    )
    with runtime.started("auto") as rt:
        precision = str(rt.amp_dtype or torch.float32).removeprefix("torch.")
        print(json.dumps({"device": rt.device.type, "precision": precision}))
        learner = Learner(config, rt)
        batch = random_batch(config, learner.patches).to(rt.device)
        print(json.dumps({"batch": "random", **speed(learner, again(batch), given.steps)}))
        rate = cutting(config, rt.device, min(512, 4 * given.captions), given.steps)
        print(json.dumps({"batch": "input", "images_per_s": round(rate, 1)}))
        if given.images:
            index = ImageIndex(open_dataset(given.images, "images"))
            source = batches.Batches(index, config, patches=learner.patches)
            steps = range(given.steps + 2)
            real = batches.load(source, steps, workers=config.workers, device=rt.device)
            print(json.dumps({"batch": "real", **speed(learner, real, given.steps)}))


if __name__ == "__main__":
    main()
