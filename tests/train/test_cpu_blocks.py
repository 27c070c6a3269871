"""The block with its gradient written out: timm's own, forward and backward."""

from __future__ import annotations

import pytest
import torch
from timm.models.vision_transformer import Block

from synclr_cli.train import cpu_blocks

WIDTH, SHAPES = 24, [(2, 10), (3, 5)]
ROWS = 2 * 10 + 3 * 5


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    made = Block(WIDTH, num_heads=3, qkv_bias=True).double()
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return made


def rows(seed: int) -> torch.Tensor:
    return torch.randn(
        ROWS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def timms(block: Block, x: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    done = []
    for part, (n, tokens) in zip(x.split([n * t for n, t in SHAPES]), SHAPES, strict=True):
        y = part.view(n, tokens, WIDTH)
        own = 1.0 if kept is None else kept[:n].view(n, 1, 1)
        kept = None if kept is None else kept[n:]
        y = y + own * block.attn(block.norm1(y))
        done.append((y + own * block.mlp(block.norm2(y))).flatten(0, 1))
    return torch.cat(done)


@pytest.mark.parametrize("dropped", [False, True])
def test_rows_and_gradients_are_timms(block: Block, dropped: bool) -> None:
    crops = torch.tensor([1.25, 0.0, 0.0, 1.25, 1.25], dtype=torch.float64) if dropped else None
    kept = (
        None if crops is None else crops.repeat_interleave(torch.tensor([10, 10, 5, 5, 5]))[:, None]
    )
    x, upstream, found = rows(1).requires_grad_(), rows(2), []
    for written_out in (False, True):
        x.grad = None
        block.zero_grad()
        if written_out:
            weights = cpu_blocks.Weights.cast(block, torch.float64)
            y = cpu_blocks.run(block, weights, x, SHAPES, (kept, kept))
        else:
            y = timms(block, x, crops)
        y.backward(upstream)
        found.append([y, x.grad, *(p.grad for p in block.parameters())])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_without_a_gradient_nothing_else_comes_out(block: Block) -> None:
    weights, x = cpu_blocks.Weights.cast(block, torch.float64), rows(3)
    with torch.no_grad():
        y = cpu_blocks.run(block, weights, x, SHAPES)
    assert not y.requires_grad
    torch.testing.assert_close(y, timms(block, x, None), rtol=1e-12, atol=1e-12)


def test_products_in_bfloat16_stay_near_and_the_sum_in_float32(block: Block) -> None:
    block.float()
    x, weights = rows(4).float(), cpu_blocks.Weights.cast(block, torch.bfloat16)
    y = cpu_blocks.run(block, weights, x, SHAPES)
    expected = timms(block, x, None)
    assert y.dtype == torch.float32
    assert (y - expected).norm() < 0.02 * (expected - x).norm()


def test_blocks_with_more_than_the_plain_parts_are_known(block: Block) -> None:
    assert cpu_blocks.is_plain(block)
    assert not cpu_blocks.is_plain(Block(WIDTH, num_heads=3, qkv_bias=True, init_values=1e-5))
    assert not cpu_blocks.is_plain(
        Block(WIDTH, num_heads=3, qkv_bias=True, act_layer=torch.nn.ReLU)
    )
