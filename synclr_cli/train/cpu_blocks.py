"""A ViT block with its gradient written out: what a CPU runs instead of timm's modules.

    rows of tokens [R, D] --norm, attention, norm, MLP--> [R, D]

Crops of all sizes lie one below the other, so each linear layer is one product for all of them;
only the attention goes size by size. Weights are cast once a step, the sum of the branches stays in
float32, and nothing is copied that a product can read as it lies. Autograd with autocast does the
same sums with a third more time in casts and copies (`benchmarks/train_step.py`).

Shapes: R rows (tokens of all crops), D width, n crops of one size, T tokens of each, H heads,
d = D / H.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

Shape = tuple[int, int]  # crops, tokens of each
# What the rows of the attention and of the MLP branch are multiplied by, [R, 1]; None: 1
Kept = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Weights:
    """A block's weights, those of products cast to the dtype they are multiplied in."""

    norm1: tuple[Tensor, Tensor]
    qkv: tuple[Tensor, Tensor]
    proj: tuple[Tensor, Tensor]
    norm2: tuple[Tensor, Tensor]
    fc1: tuple[Tensor, Tensor]
    fc2: tuple[Tensor, Tensor]
    heads: int
    eps: tuple[float, float]

    @property
    def dtype(self) -> torch.dtype:
        """Return what is multiplied in."""
        return self.qkv[0].dtype

    @staticmethod
    def cast(block: Block, dtype: torch.dtype) -> Weights:
        """Return the weights of a plain block."""
        linear = (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
        qkv, proj, fc1, fc2 = (
            (m.weight.detach().to(dtype), m.bias.detach().to(dtype)) for m in linear
        )
        norm1, norm2 = ((m.weight.detach(), m.bias.detach()) for m in (block.norm1, block.norm2))
        eps = (block.norm1.eps, block.norm2.eps)
        return Weights(norm1, qkv, proj, norm2, fc1, fc2, block.attn.num_heads, eps)


def is_plain(block: nn.Module) -> bool:
    """Return whether `run` computes what this block does, of those that `require_plain` lets by."""
    mlp: Any = block.mlp
    attention: Any = block.attn
    return (
        isinstance(block.ls1, nn.Identity)
        and isinstance(block.ls2, nn.Identity)
        and isinstance(block.norm1, nn.LayerNorm)
        and isinstance(block.norm2, nn.LayerNorm)
        and type(mlp) is Mlp
        and isinstance(mlp.act, nn.GELU)
        and mlp.act.approximate == "none"
        and isinstance(mlp.norm, nn.Identity)
        and not any(d.p for d in (mlp.drop1, mlp.drop2, attention.attn_drop, attention.proj_drop))
        and all(m.bias is not None for m in (attention.proj, mlp.fc1, mlp.fc2))
    )


def parameters(block: Block) -> tuple[nn.Parameter, ...]:
    """Return the parameters that `run` gives a gradient, in its order."""
    modules = (
        block.norm1,
        block.attn.qkv,
        block.attn.proj,
        block.norm2,
        block.mlp.fc1,
        block.mlp.fc2,
    )
    return tuple(p for m in modules for p in (m.weight, m.bias))


def run(
    block: Block,
    weights: Weights,
    x: Tensor,
    shapes: Sequence[Shape],
    kept: Kept = (None, None),
) -> Tensor:
    """Return what the block makes of rows of tokens.

    Args:
        block: whose parameters the gradient goes to.
        weights: of this block.
        x: [R, D], the crops of `shapes` one below the other.
        kept: what the attention and the MLP branch of each row are multiplied by, [R, 1]; None: 1.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return _Block.apply(x, weights, tuple(shapes), kept, *parameters(block))
    return _forward(x, weights, shapes, kept, None)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Weights,
        shapes: Sequence[Shape],
        kept: Kept,
        *_parameters: nn.Parameter,
    ) -> Tensor:
        saved: list[Tensor] = []
        y = _forward(x, weights, shapes, kept, saved)
        ctx.save_for_backward(*saved)
        ctx.rest = weights, shapes, kept
        return y

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        weights, shapes, kept = ctx.rest
        x, gradients = _backward(upstream, weights, shapes, kept, list(ctx.saved_tensors))
        return x, None, None, None, *gradients


def _forward(
    x: Tensor,
    w: Weights,
    shapes: Sequence[Shape],
    kept: Kept,
    saved: list[Tensor] | None,
) -> Tensor:
    """Return the rows after the block; what the gradient needs is appended to `saved`."""
    width, dtype = [x.shape[1]], w.dtype
    normed, mean1, rstd1 = torch.native_layer_norm(x, width, *w.norm1, w.eps[0])
    a = normed.to(dtype)  # [R, D]
    qkv = _linear(a, w.qkv)  # [R, 3 D]
    attended = qkv.new_empty(x.shape)  # [R, D]
    parts: list[Tensor] = []
    for rows, (n, tokens) in _rows(shapes):
        heads = qkv[rows].view(n, tokens, 3, w.heads, -1).permute(2, 0, 3, 1, 4).contiguous()
        q, k, v = heads.flatten(1, 2)  # [n x H, T, d]
        p = _scaled(q, k).softmax(-1)  # [n x H, T, T]
        o = torch.bmm(p, v).view(n, w.heads, tokens, -1)  # [n, H, T, d]
        attended[rows].view(n, tokens, w.heads, -1).copy_(o.transpose(1, 2))
        parts += [heads, p]
    branch = _linear(attended, w.proj)  # [R, D]
    y = x + (branch if kept[0] is None else branch.mul_(kept[0]))
    normed, mean2, rstd2 = torch.native_layer_norm(y, width, *w.norm2, w.eps[1])
    b = normed.to(dtype)  # [R, D]
    h = _linear(b, w.fc1)  # [R, 4 D]
    g = nn.functional.gelu(h)
    branch = _linear(g, w.fc2)  # [R, D]
    z = y + (branch if kept[1] is None else branch.mul_(kept[1]))
    if saved is not None:
        saved += [x, mean1, rstd1, a, attended, y, mean2, rstd2, b, h, g, *parts]
    return z


def _backward(
    dz: Tensor,
    w: Weights,
    shapes: Sequence[Shape],
    kept: Kept,
    saved: list[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """Return the gradient of the rows, and of the parameters in the order of `parameters`."""
    x, mean1, rstd1, a, attended, y, mean2, rstd2, b, h, g, *parts = saved
    width, dtype = [x.shape[1]], w.dtype
    d = _branch_gradient(dz, kept[1], dtype)  # [R, D]
    of_fc2, d = _linear_backward(d, g, w.fc2)  # [R, 4 D]
    d = torch.ops.aten.gelu_backward(d, h)
    of_fc1, d = _linear_backward(d, b, w.fc1)  # [R, D]
    d, *of_norm2 = torch.ops.aten.native_layer_norm_backward(
        d.to(x.dtype), y, width, mean2, rstd2, *w.norm2, [True] * 3
    )
    dy = d.add_(dz)
    d = _branch_gradient(dy, kept[0], dtype)  # [R, D]
    of_proj, d = _linear_backward(d, attended, w.proj)  # [R, D]
    of_qkv = a.new_empty(len(x), 3 * x.shape[1])  # [R, 3 D]
    for i, (rows, (n, tokens)) in enumerate(_rows(shapes)):
        heads, p = parts[2 * i : 2 * i + 2]
        q, k, v = heads.flatten(1, 2)  # [n x H, T, d]
        of_heads = torch.empty_like(heads)  # [3, n, H, T, d]
        dq, dk, dv = of_heads.flatten(1, 2)
        do = d[rows].view(n, tokens, w.heads, -1).transpose(1, 2).reshape(q.shape)
        torch.bmm(p.transpose(1, 2), do, out=dv)
        dp = torch.bmm(do, v.transpose(1, 2))  # [n x H, T, T]
        ds = torch._softmax_backward_data(dp, p, -1, dtype).mul_(_scale(q))
        torch.bmm(ds, k, out=dq)
        torch.bmm(ds.transpose(1, 2), q, out=dk)
        of_qkv[rows].view(n, tokens, 3, w.heads, -1).copy_(of_heads.permute(1, 3, 0, 2, 4))
    of_qkv_weights, d = _linear_backward(of_qkv, a, w.qkv)  # [R, D]
    d, *of_norm1 = torch.ops.aten.native_layer_norm_backward(
        d.to(x.dtype), x, width, mean1, rstd1, *w.norm1, [True] * 3
    )
    gradients = [*of_norm1, *of_qkv_weights, *of_proj, *of_norm2, *of_fc1, *of_fc2]
    return d.add_(dy), gradients


def _linear(x: Tensor, layer: tuple[Tensor, Tensor]) -> Tensor:
    return torch.addmm(layer[1], x, layer[0].T)


def _linear_backward(
    d: Tensor, x: Tensor, layer: tuple[Tensor, Tensor]
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Return the gradients of weight and bias, and that of the layer's input."""
    return (d.T @ x, d.sum(0)), d @ layer[0]


def _branch_gradient(d: Tensor, kept: Tensor | None, dtype: torch.dtype) -> Tensor:
    return d.to(dtype) if kept is None else d.to(dtype) * kept


def _scale(q: Tensor) -> float:
    return float(q.shape[-1] ** -0.5)


def _scaled(q: Tensor, k: Tensor) -> Tensor:
    """Return q k / sqrt(d), [n x H, T, T]; the first argument of baddbmm is not read."""
    return torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=_scale(q))


def _rows(shapes: Sequence[Shape]) -> list[tuple[slice, Shape]]:
    """Return which rows the crops of each size have."""
    pieces, start = [], 0
    for n, tokens in shapes:
        pieces.append((slice(start, start + n * tokens), (n, tokens)))
        start += n * tokens
    return pieces
