"""Parameter groups: which weights decay, and how fast each layer learns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

# The stem: everything in front of the first block.
_STEM = ("cls_token", "pos_embed", "reg_token", "patch_embed.", "norm_pre.")
# Tokens and tables are no matrices, although they have more than one dimension.
_NEVER_DECAYED = ("cls_token", "pos_embed", "reg_token")


def layer_decay_groups(
    backbone: nn.Module, rest: Iterable[nn.Module] = (), *, decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Group the parameters of a fine-tuned ViT by layer, earlier layers learning more slowly.

    Layer 0 is the stem, layer i + 1 is block i, and layer depth + 1 is the final norm, the head and
    every module of `rest`. A layer's learning rate is the schedule's times
    `decay ** (depth + 1 - layer)`, so the last layer's is the schedule's own. Biases, norms,
    the cls token and the position table are not decayed.

    timm's `param_groups_layer_decay` counts the final norm to the last block and decays the
    cls token and the position table, which the released code does not; hence our own.

    Args:
        backbone: a timm ViT, with or without its head.
        rest: modules trained beside it, a decoder for instance.

    Returns:
        AdamW groups with `params`, `names`, `lr_scale` and `weight_decay`; frozen parameters are
        left out.
    """
    last = len(backbone.blocks) + 1  # type: ignore[arg-type]
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    modules = [("", backbone), *((f"rest.{i}.", module) for i, module in enumerate(rest))]
    for prefix, module in modules:
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            layer = last if prefix else _layer(name, last)
            decayed = parameter.ndim > 1 and (bool(prefix) or name not in _NEVER_DECAYED)
            group = groups.setdefault(
                (layer, decayed),
                {
                    "params": [],
                    "names": [],
                    "lr_scale": decay ** (last - layer),
                    "weight_decay": weight_decay if decayed else 0.0,
                },
            )
            group["params"].append(parameter)
            group["names"].append(prefix + name)
    return [groups[key] for key in sorted(groups)]


def pretraining_groups(module: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Group the parameters of a pre-trained model: what is a vector is not decayed, all else is.

    As in the released code, the cls token, the mask token, the position table and the prototypes'
    gains have more than one dimension and are decayed.

    Returns:
        Two AdamW groups with `params`, `names` and `weight_decay`.
    """
    groups: list[dict[str, Any]] = [
        {"params": [], "names": [], "weight_decay": weight_decay},
        {"params": [], "names": [], "weight_decay": 0.0},
    ]
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            group = groups[0 if parameter.ndim > 1 else 1]
            group["params"].append(parameter)
            group["names"].append(name)
    return groups


def set_learning_rate(groups: Sequence[dict[str, Any]], lr: float) -> None:
    """Give each group the schedule's learning rate times its own scale."""
    for group in groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def _layer(name: str, last: int) -> int:
    if name.startswith(_STEM):
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return last
