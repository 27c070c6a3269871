"""What a step costs: its model FLOP, and the share of the hardware's peak that a run reaches.

Counted are the matrix products that the method needs, two FLOP for a multiply and add: student
forward and twice that backward, teacher forward, the last block for the tokens that are read alone.
What `micro_batch` computes again is not counted, so that recomputing does not look like speed.

Shapes: T tokens of a crop, k of them read after the last block, D width, F hidden width of the MLP.
"""

from __future__ import annotations

import torch
from timm.models import VisionTransformer
from torch import nn

from synclr_cli.config import TrainConfig
from synclr_cli.train.heads import PrototypeHead
from synclr_cli.train.student_teacher import Student

# Dense bfloat16 TFLOP/s from the makers' data sheets (tensor cores, no sparsity), by a part of the
# name that torch gives. The longest that fits counts: an "H100 PCIe" is no "H100".
PEAK_TFLOPS = {
    "B200": 2250.0, "H200": 989.0, "GH200": 989.0, "H20": 148.0,
    "H100": 989.0, "H100 PCIe": 756.0, "H100 NVL": 835.0,
    "A100": 312.0, "A800": 312.0, "A40": 149.7, "A30": 165.0, "A10": 125.0, "A10G": 70.0,
    "L40S": 362.0, "L40": 181.0, "L4": 121.0,
    "RTX 6000 Ada": 364.0, "RTX A6000": 154.8, "RTX 4090": 165.2, "RTX 3090": 71.0,
    "MI300X": 1307.0, "MI250X": 191.5,  # of one of its two dies, which is what torch calls a device
}  # fmt: skip


def peak_tflops(device: torch.device) -> float | None:
    """Return the device's peak in bfloat16, None if it is no GPU or one that is not listed."""
    if device.type != "cuda":
        return None
    return _peak_of(torch.cuda.get_device_name(device))


def _peak_of(name: str) -> float | None:
    words = f" {name.replace('-', ' ').replace('_', ' ')} "
    fitting = [known for known in PEAK_TFLOPS if f" {known} " in words]
    return PEAK_TFLOPS[max(fitting, key=len)] if fitting else None


def step_flops(config: TrainConfig, student: Student) -> float:
    """Return the model FLOP of one update of the whole batch, over all ranks."""
    vit = student.vit
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
    if student.classifier is not None:
        total += 3 * (images + crops) * _weights(student.classifier)
    if student.projector is not None:
        total += 3 * (images + crops) * _weights(student.projector)
        total += taught * images * _weights(student.projector)
        # Similarities and the gradient at the anchors; without a teacher at both sides.
        total += (2 if taught else 3) * 2 * (images + crops) * images * config.head_out
    if student.predictor is not None:
        total += 3 * (images + crops) * _weights(student.predictor)
    if student.prototypes is not None:
        total += 4 * masked * of_image * _of_prototypes(student.prototypes)
    return float(total)


def _forward(vit: VisionTransformer, tokens: int, read: int) -> float:
    """Return the FLOP of a ViT on one crop of T tokens, k of which are read after it."""
    patch = vit.patch_embed.proj.weight[0].numel()
    *blocks, last = vit.blocks
    total = 2.0 * (tokens - 1) * patch * vit.embed_dim
    for block in blocks:
        total += tokens * _weights(block) + 4 * tokens**2 * vit.embed_dim
    keys_and_values = 2 * 2 * vit.embed_dim**2  # of every token, whatever is read
    total += tokens * keys_and_values + read * (_weights(last) - keys_and_values)
    return total + 4 * read * tokens * vit.embed_dim


def _weights(module: nn.Module) -> float:
    """Return the FLOP of the module's linear layers on one row."""
    return 2.0 * sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def _of_prototypes(head: PrototypeHead) -> float:
    return _weights(head.layers) + 2.0 * head.direction.numel()
