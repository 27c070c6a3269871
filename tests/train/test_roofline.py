"""The bytes that a prototype score costs on a GPU, counted by `benchmarks/train_roofline.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import train_roofline

from synclr_cli.config import TrainConfig
from synclr_cli.learning.runtime import Runtime
from synclr_cli.train.student_teacher import Student, Teacher


def test_a_prototype_score_costs_less_than_sixty_bytes() -> None:
    """784 tokens of 8 images against 65,536 prototypes; uncompiled it is several times as much."""
    config = TrainConfig(arch="vit_tiny_patch16_224", depth=1, prototypes=65_536)
    alone = Runtime(torch.device("cpu"), None)
    student = Student(TrainConfig(arch=config.arch, depth=1, prototypes=8), alone)
    teacher = Teacher(TrainConfig(arch=config.arch, depth=1, prototypes=8), alone, student)
    case = train_roofline.Case(config, 16, 64, 8, student, teacher)
    assert case.tokens == 784
    with train_roofline.h100(), train_roofline.tracing.fake_gpu():
        cost = train_roofline.of_losses(case, None)["prototype scores"]
    scores = case.tokens * config.prototypes
    assert cost.compiled / scores < 60
    # By hand: both products write 2 bytes. Then 2 are read for the first offset, twice 2 for each
    # of two further iterations; 4 are read and 2 written for the loss, and 2 read by two products.
    assert cost.compiled / scores >= 2 * 2 + 2 + 2 * 4 + 6 + 4
    assert cost.eager / scores > 3 * 60


def test_operations_read_and_write_what_they_name() -> None:
    with train_roofline.tracing.fake_gpu() as device:
        x = torch.empty(10, 10, device=device)
        with train_roofline.Traffic() as traffic:
            x.view(-1)  # views are free
            assert traffic.bytes == 0
            x + x.t()  # one tensor read twice through two views, one written
            assert traffic.bytes == 3 * 400
            x.add_(1)
            assert traffic.bytes == 5 * 400
            x[:1].expand(10, 10) + 1  # a row
            assert traffic.bytes == 5 * 400 + 400 + 400
