"""UperNet on ViT-B/16 at 512 pixels: parameters, shapes, and the memory of a step and a test.

    python benchmarks/segment_memory.py [--batch 2] [--image 512x683] [--precision auto]

One training step (forward, backward, AdamW) on random crops with 150 classes, then one image
tested by the sliding window of Table 15 (window 512, stride 341). Prints one JSON object. The peak
is of the whole process, Python and libraries included: resident memory on a CPU, allocated on CUDA.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import torch

from synclr_cli import config
from synclr_cli.learning import backbone, optim, runtime
from synclr_cli.learning.backbone import Backbone
from synclr_cli.segment import dense, grading
from synclr_cli.segment.run import loss_of, segmenter

CLASSES = 150  # ADE20k


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--arch", default="vit_base_patch16_224")
    options.add_argument("--batch", type=int, default=2)
    options.add_argument("--image", default="512x683", help="HEIGHTxWIDTH of the tested image")
    options.add_argument("--precision", default="auto", choices=config.PRECISIONS)
    given = options.parse_args()
    settings = config.SegmentConfig(batch_size=given.batch, precision=given.precision)
    size = settings.image_size

    with runtime.started(settings.precision) as rt:
        model = _segmenter(settings, given.arch).to(rt.device)
        groups = optim.layer_decay_groups(
            model.backbone, model.new_parts(),
            decay=settings.layer_decay, weight_decay=settings.weight_decay,
        )  # fmt: skip
        optimizer = torch.optim.AdamW(groups, lr=settings.lr)
        found = {
            "arch": given.arch,
            "device": str(rt.device),
            "precision": str(rt.amp_dtype or torch.float32).removeprefix("torch."),
            "batch": given.batch,
            "parameters_backbone": _count(model.backbone),
            "parameters_pyramid": _count(model.pyramid),
            "parameters_head": _count(model.head),
            "parameters_auxiliary": _count(model.auxiliary),
            "parameters": _count(model),
        }

        crops = torch.randn(given.batch, 3, size, size, device=rt.device)
        ids = torch.randint(0, CLASSES, (given.batch, size, size), device=rt.device)
        began = time.perf_counter()
        with rt.autocast():
            logits = model.train()(crops)
        loss = loss_of(logits, ids, settings.auxiliary_weight, rt)
        loss.backward()
        optimizer.step()
        found |= {
            "logits": [list(each.shape) for each in logits],
            "loss": round(loss.item(), 3),
            "step_seconds": round(time.perf_counter() - began, 1),
            "step_peak_gib": _peak_gib(rt),
        }

        height, width = map(int, given.image.split("x"))
        image = torch.randn(3, height, width, device=rt.device)
        began = time.perf_counter()
        with torch.inference_mode():
            predicted = grading.segment_image(model.eval(), image, (height, width), settings, rt)
        windows = [len(dense.starts(n, size, settings.stride)) for n in (height, width)]
        found |= {
            "test_windows": windows[0] * windows[1],
            "prediction": list(predicted.shape),
            "test_seconds": round(time.perf_counter() - began, 1),
            "test_peak_gib": _peak_gib(rt),
        }
    print(json.dumps(found))


def _segmenter(settings: config.SegmentConfig, arch: str) -> torch.nn.Module:
    vit = backbone.build(arch, image_size=settings.image_size, drop_path=settings.drop_path)
    opened = Backbone(
        vit, arch, arch, "", settings.image_size,
        backbone.IMAGENET_MEAN, backbone.IMAGENET_STD, "bicubic",
    )  # fmt: skip
    return segmenter(settings, opened, CLASSES)


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _peak_gib(rt: runtime.Runtime) -> float:
    if rt.device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(rt.device) / 2**30, 2)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


if __name__ == "__main__":
    main()
