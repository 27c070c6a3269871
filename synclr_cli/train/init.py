"""Weights to start from: another backbone's, made to fit (`--init`, continued pre-training).

    spec --open--> Backbone --fit--> the ViT's state dict, for the student and so for the teacher

Heads, mask token and predictor start at random: no released weights have them. The position table
is resized to the crops; a backbone that was trained with another mean and deviation gets its patch
embedding changed so that it computes the same from images normalised the way training does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from synclr_cli.config import TrainConfig
from synclr_cli.data import artifacts
from synclr_cli.errors import UsageError
from synclr_cli.learning import backbone
from synclr_cli.learning.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone


def open_start(config: TrainConfig) -> Backbone | None:
    """Open what the run starts from; None if its weights are drawn.

    Raises:
        UsageError: it is of another architecture; names the settings that differ.
        DataError, EngineError: it cannot be read or fetched.
    """
    if not config.init:
        return None
    start = backbone.open_backbone(config.init, image_size=config.image_size)
    model = backbone.build(
        config.arch,
        image_size=config.image_size,
        patch_size=config.patch_size,
        depth=config.depth,
    )
    source = start.model
    differing = {
        "depth": (len(source.blocks), len(model.blocks)),
        "patch_size": (start.patch_size, int(model.patch_embed.patch_size[0])),
        "arch's width": (source.embed_dim, model.embed_dim),
    }
    wrong = {name: pair for name, pair in differing.items() if pair[0] != pair[1]}
    if wrong:
        sets = " ".join(f"--set train.{n}={pair[0]}" for n, pair in wrong.items() if " " not in n)
        raise UsageError(
            f"train.init {config.init}",
            got=", ".join(f"{name} {pair[0]}" for name, pair in wrong.items()),
            expected=", ".join(str(pair[1]) for pair in wrong.values()),
            do=f"add {sets}" if len(wrong) == sets.count("--set") else "name its train.arch",
        )
    backbone.load_weights(model, source.state_dict(), Path(config.init))  # the rest of its shape
    return start


def parent(start: Backbone) -> dict[str, object]:
    """Describe the start for the header of the run."""
    return artifacts.parent(Path(start.name), start.header, start.digest)


def fit(start: Backbone) -> Mapping[str, Tensor]:
    """Return the weights, such that images with ImageNet's mean and deviation suit them.

    With x' = (p - m') / s' of training and x = (p - m) / s of the start, x = x' s' / s + (m' - m) /
    s, which the patch embedding takes up: W x + b = (W s' / s) x' + (b + sum W (m' - m) / s). If it
    has no offset b, the position table of the patches gets it.
    """
    state = dict(start.model.state_dict())
    mean, std = torch.tensor(start.mean), torch.tensor(start.std)
    own_mean, own_std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    if torch.equal(mean, own_mean) and torch.equal(std, own_std):
        return state
    weight = state["patch_embed.proj.weight"]  # [D, 3, P, P]
    shift = (weight * ((own_mean - mean) / std)[:, None, None]).sum((1, 2, 3))  # [D]
    state["patch_embed.proj.weight"] = weight * (own_std / std)[:, None, None]
    if "patch_embed.proj.bias" in state:
        state["patch_embed.proj.bias"] = state["patch_embed.proj.bias"] + shift
    else:
        table = state["pos_embed"].clone()  # [1, 1 + N, D]
        table[:, 1:] += shift
        state["pos_embed"] = table
    return state
