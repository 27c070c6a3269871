"""The heads against written-out ones: what they compute, and how their weights are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import reference
import torch
from reference import Array
from torch import Tensor, nn

from synclr_cli.config import TrainConfig
from synclr_cli.learning import runtime
from synclr_cli.learning.runtime import Runtime
from synclr_cli.train.heads import PrototypeHead, contrast_head
from synclr_cli.train.student_teacher import Student

ALONE = Runtime(torch.device("cpu"), None)


def rows(n: int, width: int) -> Tensor:
    return torch.randn(n, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def spread(module: nn.Module) -> nn.Module:
    """Move every weight a little, so that none is 0 or 1 as it is at the start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in module.double().parameters():
            p.add_(torch.randn(p.shape, dtype=torch.float64, generator=generator) * 0.02)
    return module


def of_layer(layer: nn.Module, row: Array) -> Array:
    """Return what a linear layer, a norm over the row or a GELU gives, written out."""
    if isinstance(layer, nn.Linear):
        out: Array = layer.weight.detach().numpy() @ row
        return out if layer.bias is None else out + layer.bias.detach().numpy()
    if isinstance(layer, nn.LayerNorm):
        normed = reference.layer_norm(row, eps=1e-5)
        if layer.elementwise_affine:
            normed = layer.weight.detach().numpy() * normed + layer.bias.detach().numpy()
        return normed
    assert isinstance(layer, nn.GELU)
    return reference.gelu(row)


def test_the_released_codes_head_is_linear_norm_gelu_with_an_eps_of_1e_5() -> None:
    """The rows are small, so that the eps is seen."""
    head = spread(contrast_head(3, 8, 16, 4, "layer", ALONE))
    x = 0.1 * rows(6, 8)
    expected = []
    for row in x.numpy():
        for layer in head.children():
            row = of_layer(layer, row)
        expected.append(row)
    np.testing.assert_allclose(head(x).detach().numpy(), expected, rtol=1e-9, atol=1e-12)


def test_tokens_become_unit_vectors_and_prototypes_gain_times_direction() -> None:
    head = PrototypeHead(8, 16, 5, 7)
    spread(head)
    x = 3 * rows(6, 8)
    scores = []
    for row in x.numpy():
        for layer in head.layers:
            row = of_layer(layer, row)
        direction = head.direction.detach().numpy()
        gain = head.gain.detach().numpy()[:, 0]
        scores.append([g * (reference.unit(row) @ reference.unit(d)) for g, d in
                       zip(gain, direction, strict=True)])  # fmt: skip
    ours = head(x) @ head.prototypes().T
    np.testing.assert_allclose(ours.detach().numpy(), scores, rtol=1e-9, atol=1e-12)


def test_every_heads_matrix_is_drawn_with_deviation_0_02_and_no_offset(
    small: Callable[..., TrainConfig],
) -> None:
    sizes = {"head_hidden": 96, "head_out": 64, "patch_head_hidden": 96}
    runtime.seed_everything(0)
    contrast = Student(small(**sizes, head_norm="layer"), ALONE)
    labels = Student(
        small(objective="cross-entropy", teacher=False, patch_weight=0.0), ALONE, classes=100
    )
    heads = {
        "projector": contrast.projector,
        "predictor": contrast.predictor,
        "prototypes": contrast.prototypes,
        "classifier": labels.classifier,
    }
    matrices = 0
    for name, head in heads.items():
        assert head is not None
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                matrices += 1
                w, n = layer.weight.detach().double(), layer.weight.numel()
                assert abs(w.std() - 0.02) < 4 * 0.02 / math.sqrt(2 * n), (name, float(w.std()))
                assert abs(w.mean()) < 4 * 0.02 / math.sqrt(n), name
                assert layer.bias is None or not layer.bias.any(), name
    assert matrices == 3 + 2 + 3 + 1
