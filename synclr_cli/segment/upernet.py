"""UperNet on a plain ViT: a pyramid from four depths, a decode head and an auxiliary head.

    images [B, 3, S, S] --blocks--> 4 x [B, D, g, g] --pyramid--> [B, D, 4g ... g/2] --> logits

The heads' parts are those of transformers; what it leaves open (weights at the start, dropout, the
pyramid of a ViT) is here, after the recipe the released configs extend.
Shapes: B images, S pixels, g patches along a side, D width of the ViT, C channels, K classes.
"""

from __future__ import annotations

from timm.models import VisionTransformer
from torch import Tensor, nn
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetConvModule, UperNetHead

_DROPOUT = 0.1  # of channels, before each classifier
_POOL_SCALES = (1, 2, 3, 6)
_AUXILIARY_LEVEL = 2  # the level of the patch grid


def depths(blocks: int) -> tuple[int, int, int, int]:
    """Return the four blocks whose output is used: at a third, a half, two thirds, and the last.

    3, 5, 7, 11 of 12 and 7, 11, 15, 23 of 24, as in the released configs.
    """
    third, half, two_thirds = (round(blocks * part) for part in (1 / 3, 1 / 2, 2 / 3))
    return max(third, 1) - 1, max(half, 1) - 1, max(two_thirds, 1) - 1, blocks - 1


class Pyramid(nn.Module):
    """Four maps of one size become four sizes: x4, x2, x1 and x1/2."""

    def __init__(self, width: int):
        super().__init__()
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, stride=2),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, stride=2),
        )
        self.up2 = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.down2 = nn.MaxPool2d(2)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return [B, D, 4g, 4g], [B, D, 2g, 2g], [B, D, g, g], [B, D, g/2, g/2]."""
        first, second, third, fourth = maps
        return [self.up4(first), self.up2(second), third, self.down2(fourth)]


class UperNetSegmenter(nn.Module):
    """A ViT with pyramid, UperNet head and auxiliary head; all of it is trained."""

    loss_parts = 2  # the decode head's, the auxiliary head's

    def __init__(
        self, backbone: VisionTransformer, classes: int, *, channels: int, auxiliary_channels: int
    ):
        super().__init__()
        width = backbone.embed_dim
        self.backbone = backbone
        # The blocks' raw outputs are used, so the final norm would be a weight without gradient.
        self.backbone.norm = nn.Identity()
        self.depths = depths(len(backbone.blocks))
        self.pyramid = Pyramid(width)
        config = UperNetConfig(
            hidden_size=channels, pool_scales=list(_POOL_SCALES), num_labels=classes
        )
        self.head = UperNetHead(config, in_channels=[width] * 4)
        self.auxiliary = nn.Sequential(
            UperNetConvModule(width, auxiliary_channels, kernel_size=3, padding=1),
            nn.Conv2d(auxiliary_channels, classes, kernel_size=1),
        )
        start_head(self.head)
        start_head(self.auxiliary)
        self.head.classifier = nn.Sequential(nn.Dropout2d(_DROPOUT), self.head.classifier)
        self.auxiliary.insert(1, nn.Dropout2d(_DROPOUT))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the logits of both heads, [B, K, 4g, 4g] and [B, K, g, g]."""
        maps = self.backbone.forward_intermediates(
            images, indices=sorted(set(self.depths)), intermediates_only=True
        )
        by_depth = dict(zip(sorted(set(self.depths)), maps, strict=True))
        levels = self.pyramid([by_depth[i] for i in self.depths])
        return [self.head(levels), self.auxiliary(levels[_AUXILIARY_LEVEL])]

    def new_parts(self) -> list[nn.Module]:
        """Return what is trained from scratch."""
        return [self.pyramid, self.head, self.auxiliary]


def start_head(head: nn.Module) -> None:
    """Draw a head's weights: He for convolutions in front of a ReLU, std 0.01 for classifiers."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            if module.bias is None:  # a batch norm follows
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
