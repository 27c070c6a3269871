"""What a step costs, against torch's own counter of products."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from synclr_cli import gpus
from synclr_cli.config import TrainConfig
from synclr_cli.data.manifest import open_dataset
from synclr_cli.learning import backbone, flops
from synclr_cli.learning.runtime import Runtime
from synclr_cli.train import batches
from synclr_cli.train.image_index import ImageIndex
from synclr_cli.train.learner import Learner

ALONE = Runtime(torch.device("cpu"), None)


def test_a_vit_costs_what_torch_counts() -> None:
    vit = backbone.build("vit_tiny_patch16_224", image_size=64, patch_size=8, depth=3).eval()
    for block in vit.blocks:
        block.attn.fused_attn = False  # torch counts plain products on every device
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        vit.forward_features(torch.zeros(1, 3, 64, 64))
    assert flops._forward(vit, 65, 65) == pytest.approx(counted.get_total_flops(), rel=1e-6)


@pytest.mark.parametrize(
    "changes",
    [{}, {"local_crops": 0, "patch_weight": 0.0, "teacher": False}, {"patch_weight": 0.0}],
    ids=str,
)
def test_a_step_costs_what_torch_counts(images: Path, small: Callable, changes: dict) -> None:
    # Wide enough that no product is small beside the backward passes left out at the leaves.
    config: TrainConfig = small(drop_path=0.0, arch="vit_small_patch16_224", **changes)
    learner = Learner(config, ALONE)
    for model in (learner.student, learner.teacher):
        for block in model.vit.blocks:
            block.attn.fused_attn = False
    index = ImageIndex(open_dataset(images, "images"))
    batch = batches.Batches(index, config, patches=learner.patches).make(0)
    with FlopCounterMode(display=False) as counted:
        learner.objective.gradient(batch, 0.04)
    ours = flops.step_flops(config, learner.student.vit)
    assert ours == pytest.approx(counted.get_total_flops(), rel=0.04)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10G", 70.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_a_gpu_is_known_by_the_name_that_torch_gives(name: str, peak: float | None) -> None:
    gpu = gpus.of_device(name)
    assert (gpu.tflops if gpu else None) == peak


def test_a_cpu_has_no_peak() -> None:
    assert flops.peak_tflops(torch.device("cpu")) is None
