"""The other members of the family against their equations: StableRep, SimCLR, supervised."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import reference
import torch

from synclr_cli.config import TrainConfig
from synclr_cli.data import artifacts
from synclr_cli.data.manifest import open_dataset
from synclr_cli.errors import UsageError
from synclr_cli.learning.runtime import Runtime
from synclr_cli.train import batches, losses, masks
from synclr_cli.train.image_index import ImageIndex
from synclr_cli.train.learner import Learner, step_values
from synclr_cli.train.run import run

ALONE = Runtime(torch.device("cpu"), None)
STABLEREP = {"teacher": False, "patch_weight": 0.0, "local_crops": 0}
SIMCLR = STABLEREP | {"positives": "image", "views": 2, "global_crops": 2}
SUPERVISED = STABLEREP | {"objective": "cross-entropy", "positives": "concept"}


def start(config: TrainConfig, images: Path) -> tuple[Learner, batches.Batches]:
    index = ImageIndex(open_dataset(images, "images"))
    learner = Learner(config, ALONE, index.classes(config.positives))
    learner.student.double()
    learner.teacher.double()
    return learner, batches.Batches(index, config, patches=learner.patches)


def projections(learner: Learner, batch: batches.Batch) -> np.ndarray:
    from synclr_cli.train.objective import moments, normalise

    ids = batch.ids.numpy().view(np.uint64)
    kept = learner.student.kept(learner.config.seed, batch.step, ids)
    x = normalise(batch.globals, moments(batch.globals.device))
    cls = learner.student.encode(x, kept=kept)[:, 0]
    assert learner.student.projector is not None
    return learner.student.projector(cls).detach().numpy()


def test_the_gradient_of_both_sides_is_that_of_finite_differences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(8, 4, dtype=torch.float64, requires_grad=True)
    labels, own = torch.tensor([0, 0, 1, 1, 1, 2, 2, 0]), torch.arange(8)
    for most in (losses.BLOCK, 20):
        monkeypatch.setattr(losses, "BLOCK", most)
        assert torch.autograd.gradcheck(
            lambda z: losses.contrast(z, z, labels, labels, own, 0.5, both=True), (x,), atol=1e-8
        )


def test_stablerep_contrasts_the_students_own_projections(images: Path, small: Callable) -> None:
    config = small(**STABLEREP)
    learner, source = start(config, images)
    batch = source.make(1)
    z, labels = projections(learner, batch), batch.labels.tolist()
    found = learner.objective.gradient(batch, 0.04)
    expected = reference.contrast(z, z, labels, labels, range(len(z)), config.temperature)
    assert found.total.item() == pytest.approx(expected, rel=1e-9)
    assert learner.student.predictor is None
    assert sorted(np.unique(labels, return_counts=True)[1]) == [3] * 4


def test_simclr_takes_every_image_for_a_class_of_its_own(images: Path, small: Callable) -> None:
    config = small(**SIMCLR)
    learner, source = start(config, images)
    batch = source.make(1)
    labels = batch.labels.numpy()
    assert len(batch.globals) == 4 * 2 * 2
    assert (np.unique(labels, return_counts=True)[1] == 2).all()  # two crops of each image
    assert (labels[0::2] == labels[1::2]).all()
    assert len(batch.ids.unique()) == 16
    first, second = batch.globals[0::2], batch.globals[1::2]
    assert all((a != b).any() for a, b in zip(first, second, strict=True))
    # NT-Xent as SimCLR writes it: one positive, all other crops but oneself below the line.
    z = projections(learner, batch)
    z = np.stack([reference.unit(row) for row in z])
    total = 0.0
    for i in range(16):
        other = i + 1 if i % 2 == 0 else i - 1
        below = sum(math.exp(z[i] @ z[k] / config.temperature) for k in range(16) if k != i)
        total -= math.log(math.exp(z[i] @ z[other] / config.temperature) / below)
    found = learner.objective.gradient(batch, 0.04)
    assert found.total.item() == pytest.approx(total / 16, rel=1e-9)


def test_supervised_is_the_cross_entropy_of_the_concepts(images: Path, small: Callable) -> None:
    config = small(**SUPERVISED | {"local_crops": 2, "drop_path": 0.0})
    learner, source = start(config, images)
    batch = source.make(0)
    assert batch.labels.max() < 8  # concepts of the folder
    from synclr_cli.train.objective import moments, normalise

    expected = []
    labels = batch.labels.tolist()
    for crops, of_crops in (
        (batch.globals, labels),
        (batch.locals, [label for label in labels for _ in range(2)]),
    ):
        cls = learner.student.encode(normalise(crops, moments(crops.device)))[:, 0]
        assert learner.student.classifier is not None
        logits = learner.student.classifier(cls).detach().numpy()
        rows = [
            math.log(sum(math.exp(v) for v in row)) - row[label]
            for row, label in zip(logits, of_crops, strict=True)
        ]
        expected.append(sum(rows) / len(rows))
    found = learner.objective.gradient(batch, 0.04)
    assert found.of_globals.item() == pytest.approx(expected[0], rel=1e-5)
    assert found.of_locals.item() == pytest.approx(expected[1], rel=1e-5)
    assert learner.student.projector is None
    assert learner.student.classifier is not None
    assert learner.student.classifier.weight.grad is not None


@pytest.mark.parametrize("member", [STABLEREP, SIMCLR, SUPERVISED], ids=str)
def test_micro_batches_of_every_member_give_the_gradient_of_the_whole(
    images: Path, small: Callable, member: dict
) -> None:
    found = []
    for micro_batch in (0, 5):
        learner, source = start(small(**member, micro_batch=micro_batch), images)
        learner.objective.gradient(source.make(0), 0.04)
        found.append({n: p.grad for n, p in learner.student.named_parameters()})
    for name, gradient in found[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize(
    "member",
    [
        STABLEREP,
        {"patch_weight": 0.0, "local_crops": 0},  # + EMA
        {"local_crops": 0},  # + EMA + iBOT
        {"patch_weight": 0.0},  # + EMA + multi-crop
        SIMCLR,
        SUPERVISED,
        {"objective": "cross-entropy", "positives": "caption"},
    ],
    ids=str,
)
def test_every_row_of_tables_4_and_5_trains_and_moves_its_weights(
    images: Path, small: Callable, tmp_path: Path, member: dict
) -> None:
    out = run(small(**member, steps=3, backbone_steps=2), images, tmp_path / "run")
    assert (out / "backbone.safetensors").is_file()
    kept = artifacts.read_tensors(
        out / "backbones" / "step-00000002" / "backbone.safetensors", "backbone"
    )
    last = artifacts.read_tensors(out / "backbone.safetensors", "backbone")
    assert kept[1].facts["steps"] == 2
    assert last[1].facts["weights"] == ("teacher" if member.get("teacher", True) else "student")
    assert (kept[0]["norm.weight"] != last[0]["norm.weight"]).any()


def test_without_a_teacher_the_backbone_is_the_students(images: Path, small: Callable) -> None:
    config = small(**STABLEREP)
    learner, source = start(config, images)
    for step in range(3):
        learner.update(source.make(step), step_values(step, config))
    mine = learner.teacher.state_dict()
    for name, tensor in learner.student.state_dict().items():
        if name in mine:
            torch.testing.assert_close(mine[name], tensor, rtol=0, atol=0)


def test_concepts_may_be_the_classes_of_the_contrast(images: Path, small: Callable) -> None:
    _, source = start(small(positives="concept", captions_per_batch=24), images)
    labels = source.make(0).labels
    assert labels.unique(return_counts=True)[1].tolist() == [9] * 8  # 3 captions x 3 views


def test_the_released_masks_are_those_of_each_captions_first_images() -> None:
    ids = np.arange(12, dtype=np.uint64)
    drawn = masks.draw(
        0, 5, ids, slice(0, 12), patches=16, probability=0.5, ratio=0.5, of_caption=4
    )
    assert drawn.any(1).tolist() == [True, True, False, False] * 3
    assert (drawn.sum(1)[drawn.any(1)] == 8).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positives": "image"}, "train.global_crops: got 1, expected at least 2"),
        ({"teacher": False}, "train.patch_weight: got 1, expected 0 with train.teacher = false"),
        ({"views": 1}, "train.views: got 1, expected at least 2"),
        ({"positives": "word"}, "train.positives: got 'word'"),
        ({"objective": "contrasts"}, "Did you mean contrast"),
    ],
)
def test_switches_that_leave_no_loss_are_refused(
    small: Callable, changes: dict, message: str
) -> None:
    with pytest.raises(
        UsageError,
        match=message.replace("?", r"\?"),
    ) as e:
        small(**changes)
    assert "\n" not in str(e.value)
