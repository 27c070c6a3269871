"""One update against the written-out optimiser, and what an update must leave alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import reference
import torch

from synclr_cli.config import TrainConfig
from synclr_cli.data.manifest import open_dataset
from synclr_cli.learning.runtime import Runtime
from synclr_cli.train import batches
from synclr_cli.train.image_index import ImageIndex
from synclr_cli.train.learner import Diverged, Learner, step_values
from synclr_cli.train.student_teacher import Encoder

ALONE = Runtime(torch.device("cpu"), None)


def start(config: TrainConfig, images: Path) -> tuple[Learner, batches.Batches]:
    learner = Learner(config, ALONE)
    learner.student.double()
    learner.teacher.double()
    index = ImageIndex(open_dataset(images, "images"))
    return learner, batches.Batches(index, config, patches=learner.patches)


@pytest.mark.parametrize("head_norm", ["batch", "layer"])
def test_updates_equal_the_written_out_adamw(
    images: Path, small: Callable[..., TrainConfig], head_norm: str
) -> None:
    config = small(head_norm=head_norm)
    learner, source = start(config, images)
    watched = {
        "projector.0.weight": 1.0,
        "vit.cls_token": 1.0,  # more than one dimension: decayed
        "mask_token": 1.0,
        "prototypes.gain": 1.0,
        "vit.norm.weight": 0.0,
        "vit.blocks.1.attn.qkv.bias": 0.0,
    }
    parameters = dict(learner.student.named_parameters())
    before = {n: parameters[n].detach().numpy().copy() for n in watched}
    gradients: dict[str, list[np.ndarray]] = {n: [] for n in watched}
    values = [step_values(step, config) for step in range(4)]
    for step, now in enumerate(values):
        batch = source.make(step)
        learner.objective.gradient(batch, now.teacher_temperature)
        for name in watched:
            gradients[name].append(parameters[name].grad.numpy().copy())
        learner.optimizer.zero_grad()
        learner.update(batch, now)
    for name, decayed in watched.items():
        expected = reference.adamw(
            before[name],
            gradients[name],
            [now.lr for now in values],
            [decayed * now.weight_decay for now in values],
            config.beta1,
            config.beta2,
        )
        np.testing.assert_allclose(
            parameters[name].detach().numpy(), expected, rtol=1e-9, atol=1e-12, err_msg=name
        )


def test_the_first_update_of_a_warmup_moves_nothing_but_the_moments(
    images: Path, small: Callable
) -> None:
    config = small()
    learner, source = start(config, images)
    before = {n: p.detach().clone() for n, p in learner.student.named_parameters()}
    learner.update(source.make(0), step_values(0, config))
    assert all(torch.equal(p, before[n]) for n, p in learner.student.named_parameters())
    assert all(s["exp_avg"].abs().max() > 0 for s in learner.optimizer.state.values())


def test_the_teacher_follows_the_student_that_the_update_made(
    images: Path, small: Callable[..., TrainConfig]
) -> None:
    """After each update, teacher <- m teacher + (1 - m) student, the student being the new one."""
    config = small(ema=0.8, ema_end=0.9)
    learner, source = start(config, images)
    teacher = dict(learner.teacher.named_parameters())
    student = dict(learner.student.named_parameters())
    expected = {n: p.numpy().copy() for n, p in teacher.items()}
    for step in range(1, 4):  # from 1 on: the learning rate of step 0 is 0
        before = {n: student[n].detach().clone() for n in teacher}
        values = step_values(step, config)
        learner.update(source.make(step), values)
        assert not any(torch.equal(student[n], before[n]) for n in teacher)
        for name, weights in expected.items():
            new = student[name].detach().numpy()
            expected[name] = reference.moving_average(weights, [new], [values.ema])
            np.testing.assert_allclose(
                teacher[name].numpy(), expected[name], rtol=1e-12, atol=1e-15, err_msg=name
            )


def test_every_parameter_learns(images: Path, small: Callable[..., TrainConfig]) -> None:
    learner, source = start(small(), images)
    learner.objective.gradient(source.make(0), 0.04)
    for name, parameter in learner.student.named_parameters():
        assert parameter.grad is not None, name
    assert all(p.grad is None for p in learner.teacher.parameters())


def test_the_total_is_the_sum_of_its_terms(images: Path, small: Callable[..., TrainConfig]) -> None:
    learner, source = start(small(patch_weight=0.5), images)
    losses = learner.objective.gradient(source.make(1), 0.05)
    expected = losses.of_globals + losses.of_locals + 0.5 * losses.of_patches
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-12)


def scores(model: Encoder, tokens: torch.Tensor) -> np.ndarray:
    return (model.prototypes(tokens) @ model.prototypes.prototypes().T).numpy()


def test_the_terms_equal_the_equations(images: Path, small: Callable[..., TrainConfig]) -> None:
    """Eq. 4 read anew from the embeddings: what is an anchor, a candidate, a positive."""
    config = small(drop_path=0.0, head_norm="layer", sinkhorn_iterations=3)
    learner, source = start(config, images)
    batch = source.make(2)
    losses = learner.objective.gradient(batch, 0.05)
    student, teacher = learner.student, learner.teacher
    with torch.no_grad():
        mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        g = ((batch.globals / 255 - mean) / std).double()
        s = ((batch.locals / 255 - mean) / std).double()
        candidates = teacher.projector(teacher.encode(g)[:, 0]).numpy()
        tokens = student.encode(g, batch.masks)
        anchors = student.predictor(student.projector(tokens[:, 0])).numpy()
        local = student.predictor(student.projector(student.encode(s)[:, 0])).numpy()
        pairs = zip(tokens, batch.masks, strict=True)
        seen = [scores(student, t[1:][m]) for t, m in pairs]
        hidden = teacher.encode(g)[:, 1:][batch.masks]
        targets = reference.sinkhorn(scores(teacher, hidden), 0.05, 3)
    labels = batch.labels.tolist()
    of_globals = reference.contrast(
        anchors, candidates, labels, labels, list(range(len(labels))), config.temperature
    )
    of_locals = reference.contrast(
        local, candidates, [x for x in labels for _ in range(2)], labels, None, config.temperature
    )
    masked = [x for x in seen if len(x)]
    of_patches = reference.patch_loss(
        masked, np.split(targets, len(masked)), config.student_temperature
    )
    # Images are normalised in float32, here and there in another order.
    assert losses.of_globals.item() == pytest.approx(of_globals, rel=1e-5)
    assert losses.of_locals.item() == pytest.approx(of_locals, rel=1e-5)
    assert losses.of_patches.item() == pytest.approx(of_patches, rel=1e-5)


@pytest.mark.parametrize("late", [False, True])
def test_a_loss_that_is_not_finite_changes_nothing(
    images: Path, small: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """Nor do the moments count it; a device that tells late skips it by itself."""
    monkeypatch.setattr(Learner, "late", late)
    config = small()
    learner, source = start(config, images)
    learner.update(source.make(2), step_values(2, config))
    with torch.no_grad():
        healthy = learner.student.predictor[0].weight[0, 0].clone()
        learner.student.predictor[0].weight[0, 0] = torch.nan
    groups = learner.groups()
    before = {(g, n): t.clone() for g, tensors in groups.items() for n, t in tensors.items()}
    with pytest.raises(Diverged) as raised:
        learner.update(source.make(3), step_values(3, config))
        assert late
        learner.update(source.make(4), step_values(4, config))
    assert raised.value.step == 3
    for group, tensors in learner.groups().items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(
                tensor, before[group, name], rtol=0, atol=0, equal_nan=True, msg=name
            )
    with torch.no_grad():
        learner.student.predictor[0].weight[0, 0] = healthy
    learner.update(source.make(5), step_values(5, config))  # the last, so looked at
    assert learner.skips() == []


def test_looking_late_changes_no_bit(
    images: Path, small: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    states, config = [], small(clip_grad=1.0, ema=0.9)
    for late in (False, True):
        monkeypatch.setattr(Learner, "late", late)
        learner, source = start(config, images)
        for step in range(3):
            learner.update(source.make(step), step_values(step, config))
        states.append(learner.groups())
    for group, tensors in states[0].items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, states[1][group][name]), name


def test_clipping_bounds_the_gradient(images: Path, small: Callable[..., TrainConfig]) -> None:
    config = small(clip_grad=1e-3, beta1=0.0)
    learner, source = start(config, images)
    update = learner.update(source.make(0), step_values(0, config))
    assert update.grad_norm > 1
    clipped = torch.stack([s["exp_avg"].norm() for s in learner.optimizer.state.values()]).norm()
    assert clipped.item() == pytest.approx(1e-3, rel=1e-4)


@pytest.mark.parametrize("without", ["local_crops", "patch_weight"])
def test_a_term_that_is_switched_off_is_zero(
    images: Path, small: Callable[..., TrainConfig], without: str
) -> None:
    config = small(**{without: 0})
    learner, source = start(config, images)
    losses = learner.update(source.make(0), step_values(0, config)).losses
    term = losses.of_locals if without == "local_crops" else losses.of_patches
    assert term.item() == 0 and torch.isfinite(losses.total)


@pytest.mark.parametrize("head_norm", ["batch", "layer"])
@pytest.mark.parametrize("micro_batch", [1, 5])
def test_micro_batches_give_the_gradient_of_the_whole(
    images: Path, small: Callable[..., TrainConfig], head_norm: str, micro_batch: int
) -> None:
    results = []
    for size in (0, micro_batch):
        learner, source = start(small(head_norm=head_norm, micro_batch=size), images)
        losses = learner.objective.gradient(source.make(1), 0.05)
        gradients = {n: p.grad for n, p in learner.student.named_parameters()}
        results.append((losses, gradients))
    (whole, wanted), (pieced, found) = results
    for term in ("total", "of_globals", "of_locals", "of_patches"):
        torch.testing.assert_close(getattr(pieced, term), getattr(whole, term), rtol=1e-10, atol=0)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-10, msg=name)


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_a_image_gives_the_same_bits_in_any_piece(
    images: Path, small: Callable[..., TrainConfig], micro_batch: int
) -> None:
    """In float32 on one thread: else a ReLU may flip, and the gradient differs by far more."""
    config, found = small(micro_batch=micro_batch), []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for own in (small(), config):
            learner = Learner(own, ALONE)
            index = ImageIndex(open_dataset(images, "images"))
            batch = batches.Batches(index, own, patches=learner.patches).make(1)
            losses = learner.objective.gradient(batch, 0.05)
            gradient = torch.cat([p.grad.flatten() for p in learner.student.parameters()])
            found.append((losses.total, gradient))
    finally:
        torch.set_num_threads(threads)
    (loss, whole), (again, pieces) = found
    assert torch.equal(again, loss)
    assert (pieces - whole).norm() < 1e-6 * whole.norm()
