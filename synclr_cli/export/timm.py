"""A folder in the form of timm's models on the hub: `timm.create_model("local-dir:FOLDER")`."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from synclr_cli.data import storage
from synclr_cli.learning import backbone as backbones
from synclr_cli.learning.backbone import Backbone

PACKAGES = ("timm",)


def write(opened: Backbone, folder: Path) -> None:
    """Write `model.safetensors` and timm's `config.json`."""
    storage.write_json(folder / "config.json", backbones.timm_config(opened))
    state = {k: v.contiguous() for k, v in opened.model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@torch.no_grad()
def features(folder: Path, images: Tensor) -> Tensor:
    """Return what timm makes of images, [B, 1 + N, D], the folder opened as its users do."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    tokens: Tensor = model.forward_features(images)
    return tokens
