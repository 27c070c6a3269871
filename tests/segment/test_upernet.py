"""The segmenter's shapes, sizes and gradients."""

import pytest
import torch

from synclr_cli.learning import backbone
from synclr_cli.segment.linear import LinearSegmenter
from synclr_cli.segment.upernet import Pyramid, UperNetSegmenter, depths


def vit(image_size=64, patch_size=8, depth=4):
    return backbone.build(
        "vit_tiny_patch16_224", image_size=image_size, patch_size=patch_size, depth=depth
    )


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def test_the_four_depths_are_those_of_the_released_configs():
    assert depths(12) == (3, 5, 7, 11)
    assert depths(24) == (7, 11, 15, 23)
    for blocks in range(1, 40):
        found = depths(blocks)
        assert list(found) == sorted(found)
        assert found[0] >= 0
        assert found[-1] == blocks - 1


def test_the_pyramid_has_four_times_to_half_the_patch_grid():
    maps = [torch.randn(2, 12, 9, 7) for _ in range(4)]
    shapes = [tuple(level.shape) for level in Pyramid(12)(maps)]
    assert shapes == [(2, 12, 36, 28), (2, 12, 18, 14), (2, 12, 9, 7), (2, 12, 4, 3)]


def test_each_head_of_the_pyramid_sees_its_own_depth():
    model = UperNetSegmenter(vit(), 5, channels=16, auxiliary_channels=8).eval()
    seen = {}
    for i, block in enumerate(model.backbone.blocks):
        block.register_forward_hook(lambda _m, _i, out, i=i: seen.__setitem__(i, out))
    levels = []
    model.pyramid.register_forward_hook(lambda _m, given, _o: levels.extend(given[0]))
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
    for i, level in zip(depths(4), levels, strict=True):
        tokens = seen[i][:, 1:]  # the cls token is not a patch
        assert torch.equal(level, tokens.transpose(1, 2).reshape(1, 192, 8, 8))


def test_the_parameter_count_is_the_sum_counted_by_hand():
    d, c, a, k = 192, 24, 16, 7
    model = UperNetSegmenter(vit(), k, channels=c, auxiliary_channels=a)

    def conv(i, o, size):  # convolution without bias, batch norm
        return i * o * size**2 + 2 * o

    pyramid = 3 * (d * d * 4 + d) + 2 * d
    head = (
        4 * conv(d, c, 1)  # pooled
        + conv(d + 4 * c, c, 3)
        + 3 * (conv(d, c, 1) + conv(c, c, 3))  # lateral, smoothed
        + conv(4 * c, c, 3)
        + c * k + k
    )  # fmt: skip
    assert parameters(model.pyramid) == pyramid
    assert parameters(model.head) == head
    assert parameters(model.auxiliary) == conv(d, a, 3) + a * k + k
    assert parameters(model) == pyramid + head + conv(d, a, 3) + a * k + k + parameters(
        model.backbone
    )


@pytest.mark.parametrize(("size", "patch"), [(64, 8), (56, 14), (70, 14)])
def test_logits_come_at_four_patches_a_side_and_at_the_patch_grid(size, patch):
    model = UperNetSegmenter(vit(size, patch), 5, channels=16, auxiliary_channels=8)
    main, auxiliary = model(torch.randn(2, 3, size, size))
    grid = size // patch
    assert main.shape == (2, 5, 4 * grid, 4 * grid)
    assert auxiliary.shape == (2, 5, grid, grid)


def test_every_trained_weight_gets_a_gradient():
    model = UperNetSegmenter(vit(), 5, channels=16, auxiliary_channels=8)
    main, auxiliary = model(torch.randn(2, 3, 64, 64))
    (main.square().mean() + auxiliary.square().mean()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == []


def test_the_linear_head_leaves_the_backbone_frozen_and_in_test_mode():
    model = LinearSegmenter(vit(), 5).train()
    assert not model.backbone.training
    assert model.head.training
    (logits,) = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 5, 8, 8)
    logits.square().mean().backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(p.grad is not None for p in model.head.parameters())
