"""What a step costs: its model FLOP, and the share of the hardware's peak that a run reaches.

Counted are the matrix products that the method needs, two FLOP for a multiply and add: student
forward and twice that backward, teacher forward, the last block for the tokens that are read alone.
What `micro_batch` computes again is not counted, so that recomputing does not look like speed.

Shapes: T tokens of a crop, k of them read after the last block, D width, F hidden width of the MLP.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from timm.models import VisionTransformer
from torch import nn

from synclr_cli import gpus
from synclr_cli.config import TrainConfig


def peak_tflops(device: torch.device) -> float | None:
    """Return the device's peak in bfloat16, None if it is not a GPU or one that is not listed."""
    if device.type != "cuda":
        return None
    gpu = gpus.of_device(torch.cuda.get_device_name(device))
    return gpu.tflops if gpu else None


def step_flops(config: TrainConfig, vit: VisionTransformer, classes: int = 0) -> float:
    """Return the model FLOP of one update of the whole batch, over all ranks.

    Args:
        config: of the run.
        vit: its ViT; the weights may lie on the meta device.
        classes: of a cross entropy.
    """
    patch = int(vit.patch_embed.patch_size[0])
    images = config.captions_per_batch * config.views * config.global_crops
    crops = images * config.local_crops
    n = (config.image_size // patch) ** 2  # patches of a global crop
    masked = int(images * config.mask_probability) if config.patch_weight else 0
    of_image = int(n * config.mask_ratio)
    of_globals = (images - masked) * _forward(vit, 1 + n, 1) + masked * _forward(
        vit, 1 + n, 1 + of_image
    )
    of_locals = crops * _forward(vit, 1 + (config.local_size // patch) ** 2, 1)
    taught = config.teacher and (config.objective == "contrast" or masked > 0)
    total = 3 * (of_globals + of_locals) + of_globals * taught
    heads = head_weights(config, vit.embed_dim, classes)
    contrasted = heads.projector + heads.predictor + heads.classifier
    total += 3 * (images + crops) * 2 * contrasted
    if heads.projector:
        total += taught * images * 2 * heads.projector
        # Similarities and the gradient at the anchors; without a teacher at both sides.
        total += (2 if taught else 3) * 2 * (images + crops) * images * config.head_out
    total += 4 * masked * of_image * 2 * heads.prototypes
    return float(total)


def forward_flops(config: TrainConfig, vit: VisionTransformer) -> float:
    """Return the FLOP of the student's ViT forward on the batch: what `micro_batch` repeats."""
    patch = int(vit.patch_embed.patch_size[0])
    images = config.captions_per_batch * config.views * config.global_crops
    sides = [config.image_size // patch] + [config.local_size // patch] * config.local_crops
    return float(images * sum(_forward(vit, 1 + side**2, 1) for side in sides))


class HeadWeights(NamedTuple):
    """How many weights the products of each head have; norms and biases are not counted."""

    projector: int
    predictor: int  # of the student alone
    classifier: int
    prototypes: int


def head_weights(config: TrainConfig, width: int, classes: int = 0) -> HeadWeights:
    """Return the heads of a config on a ViT of this width; see `train/heads.py`."""
    hidden, out = config.head_hidden, config.head_out
    contrasts = config.objective == "contrast"
    projector = width * hidden + hidden * hidden + hidden * out if contrasts else 0
    predictor = out * hidden + hidden * out if contrasts and config.teacher else 0
    classifier = 0 if contrasts else width * classes
    inner, k = config.patch_head_hidden, config.patch_head_bottleneck
    prototypes = width * inner + inner * inner + inner * k + k * config.prototypes
    return HeadWeights(projector, predictor, classifier, prototypes if config.patch_weight else 0)


def _forward(vit: VisionTransformer, tokens: int, read: int) -> float:
    """Return the FLOP of a ViT on one crop of T tokens, k of which are read after it."""
    patch = vit.patch_embed.proj.weight.shape[1:].numel()  # of a weight that may be sharded
    *blocks, last = vit.blocks
    total = 2.0 * (tokens - 1) * patch * vit.embed_dim
    for block in blocks:
        total += tokens * _weights(block) + 4 * tokens**2 * vit.embed_dim
    keys_and_values = 2 * 2 * vit.embed_dim**2  # of every token, whatever is read
    total += tokens * keys_and_values + read * (_weights(last) - keys_and_values)
    return float(total + 4 * read * tokens * vit.embed_dim)


def _weights(module: nn.Module) -> float:
    """Return the FLOP of the module's linear layers on one row."""
    return 2.0 * sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))
