"""Heads: projector and predictor of the contrast, and the prototypes of the patch loss.

    cls token [B, D] --projector--> [B, E] --predictor (student only)--> [B, E]
    cls token [B, D] --classifier, where classes are told apart by cross entropy--> [B, classes]
    masked patch tokens [M, D] --PrototypeHead--> unit vectors [M, K], prototypes [P, K]

Shapes: B crops, D width of the ViT, E embedding, M masked patches, P prototypes, K bottleneck.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synclr_cli.learning.runtime import Runtime


class BatchNorm(nn.Module):
    """Batch normalisation over the crops of all ranks; it keeps no running statistics.

    The heads are never evaluated and always see a whole batch, so nothing would read them.
    """

    def __init__(self, width: int, runtime: Runtime, *, affine: bool):
        super().__init__()
        self.runtime = runtime
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.bias = nn.Parameter(torch.zeros(width)) if affine else None
        self.eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, D]; every rank gives equally many rows."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.runtime.world == 1:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        rows = len(x) * self.runtime.world
        centred = x - self.runtime.sum_with_gradient(x.sum(0)) / rows
        variance = self.runtime.sum_with_gradient(centred.square().sum(0)) / rows  # [D]
        x = centred * torch.rsqrt(variance + self.eps)
        if self.weight is None or self.bias is None:
            return x
        return x * self.weight + self.bias


def contrast_head(
    layers: int, width: int, hidden: int, out: int, norm: str, runtime: Runtime
) -> nn.Sequential:
    """Build a projector (3 layers) or predictor (2 layers).

    Args:
        norm: batch: MoCo v3's, with ReLU and no bias in front of a norm; layer: the released
            code's, with GELU and biases. Both end in a norm without weights.
    """
    widths = [width] + [hidden] * (layers - 1) + [out]
    head = nn.Sequential()
    for i, (d_in, d_out) in enumerate(itertools.pairwise(widths)):
        last = i == layers - 1
        head.append(linear(d_in, d_out, bias=norm == "layer" and not last))
        if norm == "batch":
            head.append(BatchNorm(d_out, runtime, affine=not last))
        else:
            head.append(nn.LayerNorm(d_out, eps=1e-5, elementwise_affine=not last))
        if not last:
            head.append(nn.ReLU() if norm == "batch" else nn.GELU())
    return head


class PrototypeHead(nn.Module):
    """DINO's head: three layers, l2 normalisation, and directions with a trained gain each."""

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int):
        super().__init__()
        self.layers = nn.Sequential(
            linear(width, hidden),
            nn.GELU(),
            linear(hidden, hidden),
            nn.GELU(),
            linear(hidden, bottleneck),
        )
        # A linear layer's default draw; its scale does not matter, the gain has it.
        self.direction = nn.Parameter(nn.Linear(bottleneck, prototypes, bias=False).weight.detach())
        self.gain = nn.Parameter(torch.ones(prototypes, 1))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return unit vectors [M, K] of tokens [M, D]; times the prototypes they are scores."""
        x = self.layers(tokens)  # [M, K]
        return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)

    def prototypes(self) -> Tensor:
        """Return the prototypes, [P, K]."""
        return self.gain * F.normalize(self.direction, dim=-1)


def linear(d_in: int, d_out: int, *, bias: bool = True) -> nn.Linear:
    """Build a linear layer as all heads draw theirs: weights of deviation 0.02, no offset."""
    layer = nn.Linear(d_in, d_out, bias=bias)
    nn.init.normal_(layer.weight, std=0.02)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
