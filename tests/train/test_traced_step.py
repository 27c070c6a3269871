"""A whole training step on a GPU that is not there, and that nothing breaks its graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tracing

from synclr_cli import rng
from synclr_cli.config import TrainConfig
from synclr_cli.data.manifest import open_dataset
from synclr_cli.learning import runtime
from synclr_cli.learning.runtime import Runtime
from synclr_cli.train import batches, encoder, losses, objective
from synclr_cli.train.image_index import ImageIndex
from synclr_cli.train.learner import Learner, step_values
from synclr_cli.train.metrics import Monitor
from synclr_cli.train.reading import Reading
from synclr_cli.train.student_teacher import Student, Teacher

ALONE = Runtime(torch.device("cpu"), None)
KINDS: dict[str, dict[str, Any]] = {
    "synclr": {"downsample": 1.0, "clip_grad": 1.0},
    "micro-batches, layer norms": {"micro_batch": 5, "head_norm": "layer"},
    "stablerep": {"teacher": False, "patch_weight": 0.0},
    "supervised": {"teacher": False, "patch_weight": 0.0, "positives": "concept",
                   "objective": "cross-entropy"},
}  # fmt: skip


def step(config: TrainConfig, images: Path) -> Learner:
    """Do a step as `synclr train` does it on a GPU: decoded images go in.

    Uncompiled: Inductor would ask the GPU what it can do. What it is given is the same code.
    """
    config = replace(config, compile=False)
    index = ImageIndex(open_dataset(images, "images"))
    source = batches.Batches(index, config, patches=(config.image_size // 8) ** 2)
    uncut = source.read(1)
    with tracing.fake_gpu() as device:
        rt = Runtime(device, torch.bfloat16)
        learner = tracing.build(Learner, config, rt, classes=8)
        monitor = tracing.build(Monitor, config, rt, learner)
        with tracing.Strict():
            batch = uncut.cut(config, device)
            assert batch.globals.device == device
            monitor.add(batch, learner.update(batch, step_values(1, config)))
        for name, p in learner.student.named_parameters():
            assert learner.optimizer.state[p]["exp_avg"].device == p.device == device, name
    return learner


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_runs_on_a_gpu_and_its_host_never_waits(
    images: Path, small: Callable, kind: str
) -> None:
    step(small(**KINDS[kind]), images)


def cpu_constant(crops: torch.Tensor, of_channels: Any) -> torch.Tensor:
    mean = torch.tensor([0.5, 0.5, 0.5])[:, None, None]  # on the CPU
    return crops.float() - mean


def double(crops: torch.Tensor, of_channels: Any) -> torch.Tensor:
    return (crops.double() / 255) @ torch.eye(crops.shape[-1], device=crops.device)


def looking(*arguments: Any) -> Any:
    loss, gradient = losses_block(*arguments)
    return (loss, gradient) if loss > 0 else (loss, -gradient)


def uncast(*arguments: Any) -> Any:
    loss, gradient = losses_block(*arguments)
    return loss, gradient.float()  # times prototypes in bfloat16


def pageable(self: Runtime, x: torch.Tensor) -> torch.Tensor:
    return x.to(self.device)


losses_block = losses.patch_block
MISTAKES = {
    "a constant on the CPU": (objective, "normalise", cpu_constant),
    "a float64 tensor": (objective, "normalise", double),
    "a value the host looks at": (losses, "patch_block", looking),
    "a missing cast": (losses, "patch_block", uncast),
    "a copy that is waited for": (Runtime, "upload", pageable),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_of_device_and_dtype_are_found_without_a_gpu(
    images: Path, small: Callable, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    monkeypatch.setattr(*MISTAKES[mistake])
    with pytest.raises(Exception, match=r"device|dtype|scalar|waited for|DataDependent"):
        step(small(), images)


def views(model: encoder.Encoder, *, local: bool) -> tuple[Any, ...]:
    """Return arguments of a forward pass: 6 images, 3 of them masked, and 12 local crops."""
    masks = np.zeros((6, 16), bool)
    masks[[0, 3, 4], 5:8] = True
    images, hidden = [torch.randn(6, 3, 32, 32)], [torch.from_numpy(masks) if local else None]
    if local:
        images, hidden = [*images, torch.randn(12, 3, 16, 16)], [*hidden, None]
    shapes = [(len(x), 1 + (x.shape[-1] // 8) ** 2) for x in images]
    reading = Reading.of([masks, None][: len(images)], shapes)
    kept = model.kept(0, 1, rng.key("image", np.arange(18))) if local else None
    return images, hidden, reading, kept


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_forward_pass_is_one_graph(small: Callable, who: str) -> None:
    student = Student(small(), ALONE)
    model = student if who == "student" else Teacher(small(), ALONE, student)
    model.written_out = False  # as on a GPU
    with torch.set_grad_enabled(who == "student"):
        told = torch._dynamo.explain(model)(*views(model, local=who == "student"))
    assert (told.graph_count, told.graph_break_count) == (1, 0), told.break_reasons


@pytest.mark.parametrize(
    "piece", ["contrast_block", "add_exponentials", "add_targets", "patch_block"]
)
def test_a_piece_of_the_losses_is_one_graph(piece: str) -> None:
    s, v, labels = torch.randn(4, 6), torch.randn(6), torch.arange(4)
    arguments = {
        "contrast_block": (s, torch.randn(5, 6), labels, torch.arange(5), labels, 0.1),
        "add_exponentials": (v, v, s, torch.tensor(0.1)),
        "add_targets": (v, s, torch.tensor(0.1), v),
        "patch_block": (s, s, 0.1, torch.tensor(0.1), v),
    }[piece]
    told = torch._dynamo.explain(getattr(losses, piece))(*arguments)
    assert (told.graph_count, told.graph_break_count) == (1, 0), told.break_reasons


@pytest.mark.gpu
@pytest.mark.parametrize("compile_", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_does_what_the_cpu_does(
    images: Path, small: Callable, kind: str, compile_: bool
) -> None:
    """Some steps in float32, from one batch each; crops are cut where the step is done."""
    config = small(**KINDS[kind], compile=compile_)
    index = ImageIndex(open_dataset(images, "images"))
    found = []
    for device in (torch.device("cpu"), torch.device("cuda:0")):
        learner = Learner(config, Runtime(device, None), classes=8)
        source = batches.Batches(index, config, patches=learner.patches)
        terms = []
        for number in range(3):
            batch = source.read(number).cut(config, device)
            losses_ = learner.update(batch, step_values(number, config)).losses
            terms.append([losses_.of_globals, losses_.of_locals, losses_.of_patches])
        learner._settle()
        found.append([[float(term) for term in line] for line in terms])
    np.testing.assert_allclose(found[1], found[0], rtol=0.02, atol=1e-3)


@pytest.mark.gpu
def test_a_step_in_bfloat16_is_not_waited_for_on_a_gpu(images: Path, small: Callable) -> None:
    config = small(compile=True, precision="bfloat16")
    index = ImageIndex(open_dataset(images, "images"))
    with runtime.started(config.precision) as rt:
        learner = Learner(config, rt)
        source = batches.Batches(index, config, patches=learner.patches)
        learner.update(source.read(0).cut(config, rt.device), step_values(0, config))
        uncut = source.read(1)
        learner._settle()
        torch.cuda.set_sync_debug_mode("error")
        try:
            update = learner.update(uncut.cut(config, rt.device), step_values(1, config))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        learner._settle()
    assert torch.isfinite(update.losses.total)
