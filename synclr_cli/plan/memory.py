"""GPU memory of one rank in training, in bytes, from the shapes of what it keeps.

    weights + gradients + moments + the teacher        whatever the batch is
    activations of `micro_batch` images                what a backward pass needs of the ViT
    heads, scores, images of the rank's whole batch

Activations are those of uncompiled blocks in bfloat16 autocast with flash attention; compiling
keeps less. Shapes: D width, F hidden width of the MLP, T tokens of an image with its local crops.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from timm.models import VisionTransformer

from synclr_cli.config import TrainConfig
from synclr_cli.learning import flops

# As of train/losses.py, where they are what a GPU works with; a test holds them equal.
BLOCK_ON_GPU, KEPT_ON_GPU = 1 << 26, 1 << 32


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one rank."""

    weights: float  # student and teacher, and the 16-bit copies of autocast
    gradients: float  # with the buckets that average them
    optimizer: float
    activations: float
    heads: float
    prototype_scores: float
    images: float

    def total(self) -> float:
        """Return all of them together."""
        return float(sum(asdict(self).values()))


@dataclass(frozen=True)
class Weights:
    """How many weights a run has."""

    vit: int
    student: int
    teacher: int

    @staticmethod
    def of(config: TrainConfig, vit: VisionTransformer) -> Weights:
        """Count a config's; norms and biases of the heads are left out, 0.1 % of them."""
        own = sum(p.numel() for p in vit.parameters())
        heads = flops.head_weights(config, vit.embed_dim)
        teacher = own + heads.projector + heads.prototypes
        return Weights(own, teacher + heads.predictor + heads.classifier, teacher)


def of_rank(config: TrainConfig, vit: VisionTransformer, ranks: int) -> TrainingMemory:
    """Return the memory of one of so many ranks."""
    n = Weights.of(config, vit)
    images = images_of_rank(config, ranks)
    crops = images * config.local_crops
    patch = int(vit.patch_embed.patch_size[0])
    masked = int(images * config.mask_probability) if config.patch_weight else 0
    tokens = masked * int((config.image_size // patch) ** 2 * config.mask_ratio)
    compiled = config.compile
    # Inside a head's hidden layer: the product in 16 bits, norm's input and output, the activation.
    layers = (3 if config.teacher else 2) if config.objective == "contrast" else 0
    heads = 12.0 * layers * config.head_hidden * (images + crops)
    heads += 2 * 4.0 * config.patch_head_hidden * tokens
    weights = 4.0 * (n.student + n.teacher)
    gradients = 4.0 * n.student * (2 if ranks > 1 else 1)
    if config.shard == "full":  # and one block, which is whole and has a gradient, and the next
        weights = weights / ranks + 2 * 4.0 * n.vit / len(vit.blocks)
        gradients = 4.0 * n.student / ranks + 2 * 4.0 * n.vit / len(vit.blocks)
    of_image = config.image_size**2 + config.local_crops * config.local_size**2
    return TrainingMemory(
        weights=weights + 2.0 * 2 * n.vit,
        gradients=gradients,
        optimizer=8.0 * n.student / (1 if config.shard == "none" else ranks),
        activations=min(config.micro_batch or images, images) * activations_of_image(config, vit),
        heads=heads,
        prototype_scores=_scores(config, tokens, images, ranks, compiled=compiled),
        images=2 * 3.0 * of_image * images,  # 8-bit, of this step and the next
    )


def images_of_rank(config: TrainConfig, ranks: int) -> int:
    """Return how many global crops a rank's batch has."""
    captions = -(-config.captions_per_batch // ranks)
    return captions * config.views * config.global_crops


def activations_of_image(config: TrainConfig, vit: VisionTransformer) -> float:
    """Return the bytes that the backward pass of one image needs, local crops included.

    A block keeps of each token two inputs of norms in 32 bits, and in 16 bits two outputs of norms,
    queries, keys, values, what attention gives, and both sides of the MLP's activation: 20 D + 4 F.
    """
    patch = int(vit.patch_embed.patch_size[0])
    sides = [config.image_size // patch] + [config.local_size // patch] * config.local_crops
    tokens = sum(1 + side**2 for side in sides)
    hidden = int(cast(Any, vit.blocks[0]).mlp.fc1.out_features)
    return float(tokens * len(vit.blocks) * (20 * vit.embed_dim + 4 * hidden))


def largest_micro_batch(
    config: TrainConfig, vit: VisionTransformer, ranks: int, usable: float
) -> int:
    """Return the largest power of two that fits into `usable` bytes, 0 if none does."""
    size = 1 << (max(1, images_of_rank(config, ranks) - 1).bit_length() - 1)
    while size and of_rank(replace(config, micro_batch=size), vit, ranks).total() > usable:
        size //= 2
    return size


def _scores(config: TrainConfig, tokens: int, images: int, ranks: int, *, compiled: bool) -> float:
    """Return the bytes of scores that are kept, of student and teacher, and of the blocks."""
    whole = 2.0 * tokens * config.prototypes
    kept = 2 * whole if whole <= KEPT_ON_GPU else 0.0
    # Of a block: the gradient in 16 bits where the rest is fused, else four more in 32 bits.
    patches = min(BLOCK_ON_GPU, tokens * config.prototypes) * (2.0 if compiled else 18.0)
    contrast = min(BLOCK_ON_GPU, images * ranks * images) * (4.0 if compiled else 20.0)
    return kept + max(patches, contrast)
