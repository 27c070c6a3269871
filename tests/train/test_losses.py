"""The losses against the paper's equations, their gradients and their limits."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import reference
import torch
from torch import Tensor

from synclr_cli.learning.runtime import Runtime
from synclr_cli.train import losses

ALONE = Runtime(torch.device("cpu"), None)


def rows(n: int, width: int, seed: int) -> Tensor:
    return torch.randn(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 1])


@pytest.mark.parametrize("own", [None, torch.arange(10)])
@pytest.mark.parametrize("temperature", [0.08, 1.0])
def test_the_contrast_equals_the_equations(own: Tensor | None, temperature: float) -> None:
    a, b = rows(10, 6, 0), rows(10, 6, 1)
    ours = losses.contrast(a, b, LABELS, LABELS, own, temperature).item()
    theirs = reference.contrast(
        a.numpy(), b.numpy(), LABELS.tolist(), LABELS.tolist(),
        None if own is None else own.tolist(), temperature,
    )  # fmt: skip
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_more_anchors_than_candidates_have_their_own_labels() -> None:
    a, b, labels = rows(20, 6, 2), rows(10, 6, 3), LABELS.repeat_interleave(2)
    ours = losses.contrast(a, b, labels, LABELS, None, 0.08).item()
    theirs = reference.contrast(a.numpy(), b.numpy(), labels.tolist(), LABELS.tolist(), None, 0.08)
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_the_gradient_of_the_contrast_is_that_of_finite_differences() -> None:
    a, b, own = rows(10, 5, 4).requires_grad_(), rows(10, 5, 5), torch.arange(10)
    assert torch.autograd.gradcheck(
        lambda x: losses.contrast(x, b, LABELS, LABELS, own, 0.5), (a,), atol=1e-8
    )


def test_blocks_of_rows_change_neither_loss_nor_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for most in (losses.BLOCK, 30, 1):
        monkeypatch.setattr(losses, "BLOCK", most)
        monkeypatch.setattr(losses, "KEPT", most)
        a = rows(10, 5, 6).requires_grad_()
        loss = losses.contrast(a, rows(10, 5, 7), LABELS, LABELS, torch.arange(10), 0.1)
        loss.backward()
        results.append((loss.detach(), a.grad))
    for loss, gradient in results[1:]:
        torch.testing.assert_close(loss, results[0][0], rtol=1e-13, atol=0)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-12, atol=1e-15)


def test_no_gradient_reaches_the_candidates() -> None:
    a, b = rows(10, 5, 8).requires_grad_(), rows(10, 5, 9).requires_grad_()
    losses.contrast(a, b, LABELS, LABELS, None, 0.1).backward()
    assert a.grad is not None and b.grad is None


def test_the_order_of_the_images_does_not_matter() -> None:
    a, b, order = rows(10, 5, 10), rows(10, 5, 11), torch.randperm(10)
    own = torch.arange(10)
    first = losses.contrast(a, b, LABELS, LABELS, own, 0.1)
    second = losses.contrast(a[order], b[order], LABELS[order], LABELS[order], own, 0.1)
    torch.testing.assert_close(first, second, rtol=1e-12, atol=0)


def test_an_anchor_without_a_positive_adds_nothing_and_poisons_nothing() -> None:
    labels = torch.tensor([0, 0, 1])  # the third is alone
    a, b, own = rows(3, 4, 12).requires_grad_(), rows(3, 4, 13), torch.arange(3)
    loss = losses.contrast(a, b, labels, labels, own, 0.1)
    loss.backward()
    expected = reference.contrast(
        a.detach().numpy(), b.numpy(), [0, 0, 1], [0, 0, 1], [0, 1, 2], 0.1
    )
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert a.grad is not None and a.grad[2].abs().max() == 0


def sinkhorn(scores: Tensor, temperature: float, iterations: int) -> Tensor:
    """Return the package's targets for given scores: tokens are the scores, prototypes axes."""
    axes = torch.eye(scores.shape[1], dtype=scores.dtype)
    made = losses.Scores(scores, axes)
    targets = losses.Sinkhorn(made, temperature, iterations, ALONE)
    return torch.cat([targets[block] for block in made.blocks()])


@pytest.mark.parametrize("iterations", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", [(12, 7), (3, 40), (1, 5), (6, 1)])
@pytest.mark.parametrize("most", [losses.BLOCK, 25])
def test_sinkhorn_equals_the_loops(
    iterations: int, shape: tuple[int, int], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "BLOCK", most)
    monkeypatch.setattr(losses, "KEPT", most)  # 25: by blocks of a few rows
    scores = rows(*shape, 14) * 0.3
    theirs = reference.sinkhorn(scores.numpy(), 0.04, iterations)
    np.testing.assert_allclose(
        sinkhorn(scores, 0.04, iterations).numpy(), theirs, rtol=1e-9, atol=1e-14
    )


def test_sinkhorn_stays_finite_where_exponentials_overflow() -> None:
    scores = (rows(32, 16, 15) * 40).float()  # up to about 100 / 0.04 = 2500 in the exponent
    targets = sinkhorn(scores, 0.04, 3)
    assert torch.isfinite(targets).all()
    torch.testing.assert_close(targets.sum(1), torch.ones(32))


def test_many_sinkhorn_iterations_use_all_prototypes_alike() -> None:
    targets = sinkhorn(rows(60, 6, 16), 0.5, 200)
    torch.testing.assert_close(targets.sum(0), torch.full((6,), 10.0, dtype=torch.float64))


def patch_case() -> tuple[Tensor, Tensor, losses.Sinkhorn]:
    tokens, prototypes = rows(12, 4, 17).requires_grad_(), rows(8, 4, 18).requires_grad_()
    scores = losses.Scores(rows(12, 4, 19) * 0.1, rows(8, 4, 20))
    return tokens, prototypes, losses.Sinkhorn(scores, 0.07, 3, ALONE)


@pytest.mark.parametrize("most", [losses.BLOCK, 25])
def test_the_patch_loss_is_the_mean_over_patches_then_masked_images(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "BLOCK", most)
    monkeypatch.setattr(losses, "KEPT", most)
    tokens, prototypes, targets = patch_case()
    ours = losses.patch_loss(tokens, prototypes, targets, 0.1) / 12
    scores = (tokens @ prototypes.T).detach().numpy()
    taught = reference.sinkhorn((rows(12, 4, 19) * 0.1 @ rows(8, 4, 20).T).numpy(), 0.07, 3)
    theirs = reference.patch_loss(np.split(scores, 3), np.split(taught, 3), 0.1)
    assert ours.item() == pytest.approx(theirs, rel=1e-12)  # 3 images of 4 masked patches each


@pytest.mark.parametrize("most", [losses.BLOCK, 25])
def test_the_gradient_of_the_patch_loss_is_that_of_finite_differences(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "BLOCK", most)
    monkeypatch.setattr(losses, "KEPT", most)
    tokens, prototypes, targets = patch_case()
    assert torch.autograd.gradcheck(
        lambda t, c: losses.patch_loss(t, c, targets, 0.5), (tokens, prototypes), atol=1e-7
    )


def unit(n: int, width: int, seed: int) -> Tensor:
    return torch.nn.functional.normalize(rows(n, width, seed).float(), dim=1)


def both_losses(*, fused: bool, device: str = "cpu") -> list[Tensor]:
    """Return losses, targets and gradients in float32: 60 tokens in blocks of 20."""
    tokens, prototypes, a, b = (
        unit(*shape).to(device).requires_grad_()
        for shape in ((60, 8, 30), (24, 8, 31), (20, 6, 32), (20, 6, 33))
    )
    scores = losses.Scores(unit(60, 8, 34).to(device), unit(24, 8, 35).to(device), fused=fused)
    targets = losses.Sinkhorn(scores, 0.05, 3, Runtime(torch.device(device), None))
    of_patches = losses.patch_loss(tokens, prototypes, targets, 0.1)
    labels, own = (torch.arange(20, device=device) % k for k in (7, 20))
    of_globals = losses.contrast(a, b, labels, labels, own, 0.1, both=True, fused=fused)
    (of_patches + of_globals).backward()
    offset = targets.offset.detach()
    results = (of_patches, of_globals, offset, tokens.grad, prototypes.grad, a.grad, b.grad)
    return [x.detach().cpu() for x in results]


def against_the_loops(found: list[Tensor]) -> None:
    scores = (unit(60, 8, 34).double() @ unit(24, 8, 35).double().T).numpy()
    targets = reference.sinkhorn(scores, 0.05, 3)
    seen = (unit(60, 8, 30).double() @ unit(24, 8, 31).double().T).numpy()
    of_patches = 60 * reference.patch_loss([seen], [targets], 0.1)
    labels = [i % 7 for i in range(20)]
    of_globals = reference.contrast(
        unit(20, 6, 32).double().numpy(), unit(20, 6, 33).double().numpy(), labels, labels,
        range(20), 0.1,
    )  # fmt: skip
    assert found[0].item() == pytest.approx(of_patches, rel=1e-6)
    assert found[1].item() == pytest.approx(of_globals, rel=1e-6)


@pytest.mark.skipif(not shutil.which("g++"), reason="Inductor needs a C++ compiler on a CPU")
def test_the_compiled_losses_are_the_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor's, on a CPU in float32: to 1e-6, and the loops' of `reference`."""
    monkeypatch.setattr(losses, "BLOCK", 20 * 24)
    monkeypatch.setattr(losses, "KEPT", 0)
    plain, compiled = both_losses(fused=False), both_losses(fused=True)
    for ours, theirs in zip(compiled, plain, strict=True):
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()
    against_the_loops(plain)
    against_the_loops(compiled)


@pytest.mark.gpu
def test_the_losses_on_a_gpu_are_those_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "BLOCK_ON_GPU", 20 * 24)
    monkeypatch.setattr(losses, "KEPT_ON_GPU", 0)
    plain, compiled = both_losses(fused=False), both_losses(fused=True, device="cuda")
    for ours, theirs in zip(compiled, plain, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
    against_the_loops(compiled)
