"""A folder for transformers: ViTModel's names and config, and the view of an image it expects.

    AutoModel.from_pretrained(FOLDER)            last_hidden_state [B, 1 + N, D], cls token first
    AutoImageProcessor.from_pretrained(FOLDER)   shorter side to S, centre crop S, mean, std

timm's fused qkv is cut in three. The names are those of the models on the hub, which every version
of transformers reads.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from timm.models import VisionTransformer
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

from synclr_cli.data import storage
from synclr_cli.errors import UsageError
from synclr_cli.learning.backbone import Backbone

PACKAGES = ("transformers",)
BICUBIC = {"nearest": 0, "bilinear": 2, "bicubic": 3}  # as Pillow numbers its filters
# timm's name in a block -> transformers' name in a layer.
_LAYER = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def write(opened: Backbone, folder: Path) -> None:
    """Write `model.safetensors`, `config.json` and `preprocessor_config.json`.

    Raises:
        UsageError: transformers' ViT cannot compute what this one does.
    """
    vit = opened.model
    _require_plain(opened)
    block = vit.blocks[0]
    storage.write_json(
        folder / "config.json",
        {
            "architectures": ["ViTModel"],
            "model_type": "vit",
            "hidden_size": vit.embed_dim,
            "num_hidden_layers": len(vit.blocks),
            "num_attention_heads": block.attn.num_heads,
            "intermediate_size": block.mlp.fc1.out_features,
            "hidden_act": "gelu",
            "layer_norm_eps": block.norm1.eps,
            "qkv_bias": True,
            "image_size": opened.image_size,
            "patch_size": opened.patch_size,
            "num_channels": 3,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
    )
    storage.write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": opened.image_size},
            "resample": BICUBIC.get(opened.interpolation, 3),
            "do_center_crop": True,
            "crop_size": {"height": opened.image_size, "width": opened.image_size},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(opened.mean),
            "image_std": list(opened.std),
        },
    )
    save_file(renamed(vit), folder / "model.safetensors", metadata={"format": "pt"})


def renamed(vit: VisionTransformer) -> dict[str, Tensor]:
    """Return a timm ViT's state dict under transformers' names."""
    state = vit.state_dict()
    renamed = {
        "embeddings.cls_token": state["cls_token"],
        "embeddings.position_embeddings": state["pos_embed"],
    }
    for kind in ("weight", "bias"):
        renamed[f"embeddings.patch_embeddings.projection.{kind}"] = state[
            f"patch_embed.proj.{kind}"
        ]
        renamed[f"layernorm.{kind}"] = state[f"norm.{kind}"]
        for i in range(len(vit.blocks)):
            layer = f"encoder.layer.{i}"
            for timm_name, vit_name in _LAYER.items():
                renamed[f"{layer}.{vit_name}.{kind}"] = state[f"blocks.{i}.{timm_name}.{kind}"]
            parts = state[f"blocks.{i}.attn.qkv.{kind}"].chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                renamed[f"{layer}.attention.attention.{name}.{kind}"] = part
    return {name: tensor.contiguous() for name, tensor in renamed.items()}


@torch.no_grad()
def features(folder: Path, images: Tensor) -> Tensor:
    """Return what transformers makes of images, [B, 1 + N, D], the folder opened as users do."""
    from transformers import ViTModel

    model = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokens: Tensor = model(pixel_values=images).last_hidden_state
    return tokens


def _require_plain(opened: Backbone) -> None:
    vit = opened.model
    block = vit.blocks[0]
    plain = (
        all(type(b) is Block and type(b.attn) is Attention for b in vit.blocks)
        and isinstance(block.ls1, nn.Identity)
        and isinstance(vit.norm_pre, nn.Identity)
        and isinstance(getattr(block.attn, "q_norm", nn.Identity()), nn.Identity)
        and vit.num_prefix_tokens == 1
        and isinstance(block.mlp.act, nn.GELU)
        and block.attn.qkv.bias is not None
        and vit.patch_embed.proj.bias is not None
    )
    if not plain:
        raise UsageError(
            f"{opened.spec}: transformers' ViT has no layer scale, extra norms or extra tokens",
            do="export it --to timm, which transformers opens as a TimmWrapper model",
        )
