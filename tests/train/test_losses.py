"""The losses against the paper's equations, their gradients and their limits."""

from __future__ import annotations

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
    for most in (losses.LOGITS, 30, 1):
        monkeypatch.setattr(losses, "LOGITS", most)
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


def test_the_order_of_the_pictures_does_not_matter() -> None:
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


@pytest.mark.parametrize("iterations", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", [(12, 7), (3, 40), (1, 5), (6, 1)])
def test_sinkhorn_equals_the_loops(iterations: int, shape: tuple[int, int]) -> None:
    scores = rows(*shape, 14) * 0.3
    ours = losses.sinkhorn(scores, 0.04, iterations, ALONE)
    theirs = reference.sinkhorn(scores.numpy(), 0.04, iterations)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-9, atol=1e-14)


def test_sinkhorn_stays_finite_where_exponentials_overflow() -> None:
    scores = (rows(32, 16, 15) * 40).float()  # up to about 100 / 0.04 = 2500 in the exponent
    targets = losses.sinkhorn(scores, 0.04, 3, ALONE)
    assert torch.isfinite(targets).all()
    torch.testing.assert_close(targets.sum(1), torch.ones(32))


def test_many_sinkhorn_iterations_use_all_prototypes_alike() -> None:
    targets = losses.sinkhorn(rows(60, 6, 16), 0.5, 200, ALONE)
    torch.testing.assert_close(targets.sum(0), torch.full((6,), 10.0, dtype=torch.float64))


def test_the_patch_loss_is_the_mean_over_patches_then_masked_pictures() -> None:
    scores, targets = rows(12, 8, 17), rows(12, 8, 18).softmax(1)
    ours = losses.patch_loss(scores, targets, 0.1) / 12
    theirs = reference.patch_loss(
        np.split(scores.numpy(), 3), np.split(targets.numpy(), 3), 0.1
    )  # three pictures of four masked patches each
    assert ours.item() == pytest.approx(theirs, rel=1e-12)
