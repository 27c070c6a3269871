"""The learning rate and the weight decay of every parameter, against a reading of its own."""

import pytest
import torch
from torch import nn

from synclr_cli.config import FinetuneConfig
from synclr_cli.finetune import recipe
from synclr_cli.learning import backbone, optim


def vit(depth=3, classes=5):
    model = backbone.build("vit_tiny_patch16_224", image_size=32, patch_size=16, depth=depth)
    return recipe.classifier(model, classes, seed=0)


def by_name(groups):
    return {name: group for group in groups for name in group["names"]}


def test_scales_are_those_of_the_released_code_layer_by_layer():
    depth, decay = 12, 0.65
    found = by_name(optim.layer_decay_groups(vit(depth), decay=decay, weight_decay=0.05))
    expected = {}
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"):
        expected[name] = 0.65**13
    scale = 1.0
    for block in reversed(range(depth)):  # from the head down, one factor a block
        scale *= decay
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            for kind in ("weight", "bias"):
                expected[f"blocks.{block}.{part}.{kind}"] = scale
    for name in ("norm.weight", "norm.bias", "head.weight", "head.bias"):
        expected[name] = 1.0
    assert set(found) == set(expected)
    for name, scale in expected.items():
        assert found[name]["lr_scale"] == pytest.approx(scale, rel=1e-12), name


def test_vectors_tokens_and_tables_are_not_decayed():
    found = by_name(optim.layer_decay_groups(vit(), decay=0.65, weight_decay=0.05))
    for name, group in found.items():
        matrix = name.endswith(".weight") and "norm" not in name
        assert group["weight_decay"] == (0.05 if matrix else 0.0), name


def test_every_parameter_is_in_one_group_and_modules_beside_learn_at_full_rate():
    model, beside = vit(), nn.Linear(3, 4)
    groups = optim.layer_decay_groups(model, [beside], decay=0.5, weight_decay=0.1)
    ids = [id(p) for group in groups for p in group["params"]]
    every = [*model.parameters(), *beside.parameters()]
    assert sorted(ids) == sorted(map(id, every))
    assert by_name(groups)["rest.0.weight"]["lr_scale"] == 1.0


def test_frozen_parameters_are_left_out():
    model = vit()
    model.blocks.requires_grad_(False)
    names = by_name(optim.layer_decay_groups(model, decay=0.5, weight_decay=0.1))
    assert not any(name.startswith("blocks") for name in names)


def test_the_schedule_is_scaled_by_group_down_to_its_floor():
    config = FinetuneConfig(
        epochs=10, warmup_epochs=2, batch_size=512, base_lr=5e-5, min_lr=1e-6, layer_decay=0.5
    )
    groups = optim.layer_decay_groups(vit(), decay=0.5, weight_decay=0.05)
    optimizer = torch.optim.AdamW(groups, lr=0.0)
    peak = 5e-5 * 512 / 256
    for step, expected in [(0, 0.0), (20, peak / 2), (40, peak), (200, 1e-6)]:
        lr = recipe.learning_rate(config, step, 20)
        optim.set_learning_rate(optimizer.param_groups, lr)
        assert lr == pytest.approx(expected, rel=1e-9)
        found = by_name(optimizer.param_groups)
        assert found["pos_embed"]["lr"] == pytest.approx(expected * 0.5**4)
        assert found["head.weight"]["lr"] == pytest.approx(expected)


def test_the_new_head_is_small_and_the_same_for_the_same_seed():
    first, second, other = (
        recipe.classifier(
            backbone.build("vit_tiny_patch16_224", image_size=32, depth=1), 100, seed
        ).head
        for seed in (0, 0, 1)
    )
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, other.weight)
    assert first.weight.std().item() == pytest.approx(2e-5, rel=0.05)
    assert first.bias.abs().max() == 0
