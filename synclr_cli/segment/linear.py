"""The cheap protocol: a frozen backbone, and one linear classifier for every patch.

    images [B, 3, S, S] --frozen ViT--> [B, D, g, g] --batch norm, 1x1 convolution--> logits

Shapes: B images, S pixels, g patches along a side, D width of the ViT, K classes.
"""

from __future__ import annotations

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from synclr_cli.segment.upernet import start_head


class LinearSegmenter(nn.Module):
    """Patch tokens after the final norm, normalised over the batch, and a linear classifier."""

    loss_parts = 1

    def __init__(self, backbone: VisionTransformer, classes: int):
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.head = nn.Sequential(
            nn.BatchNorm2d(backbone.embed_dim), nn.Conv2d(backbone.embed_dim, classes, 1)
        )
        start_head(self.head)

    def train(self, mode: bool = True) -> LinearSegmenter:
        """Set the head's mode; the backbone always works as it will be tested."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the logits [B, K, g, g]."""
        with torch.no_grad():
            (patches,) = self.backbone.forward_intermediates(
                images, indices=1, norm=True, intermediates_only=True
            )  # [B, D, g, g]
        return [self.head(patches)]

    def new_parts(self) -> list[nn.Module]:
        """Return what is trained from scratch."""
        return [self.head]
