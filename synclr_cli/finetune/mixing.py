"""Mixup and cutmix (Table 14), through timm, as a function of the update's number.

    images [B, 3, S, S], labels [B] --mix--> mixed images, soft targets [B, K]

Shapes: B images of this rank, S pixels, K classes.
"""

from __future__ import annotations

import torch
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor

from synclr_cli.config import FinetuneConfig
from synclr_cli.learning import runtime

# Parts of the released command that the paper does not name: every batch is mixed, half of the
# batches by each way, one share for the whole batch.
_PROBABILITY, _CUTMIX_SHARE, _MODE = 1.0, 0.5, "batch"


class Mixing:
    """Mixes the images of a batch with its reverse, and their labels alike."""

    def __init__(self, config: FinetuneConfig, classes: int):
        self.classes, self.smoothing, self.seed = classes, config.label_smoothing, config.seed
        self.mixup = None
        if config.mixup > 0 or config.cutmix > 0:
            self.mixup = Mixup(
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                prob=_PROBABILITY,
                switch_prob=_CUTMIX_SHARE,
                mode=_MODE,
                label_smoothing=config.label_smoothing,
                num_classes=classes,
            )

    def __call__(
        self, images: Tensor, labels: Tensor, step: int, rank: int
    ) -> tuple[Tensor, Tensor]:
        """Return images [B, 3, S, S] and targets [B, K]; a target's entries sum to 1.

        With share lam the target is lam q(y) + (1 - lam) q(y'), where q smooths a label by e:
        1 - e + e / K at the label, e / K elsewhere.
        """
        if self.mixup is None:
            return images, mixup_target(labels, self.classes, 1.0, self.smoothing)  # [B, K]
        with torch.no_grad(), runtime.seeded("finetune.mixing", self.seed, step, rank):
            mixed, targets = self.mixup(images.clone(), labels)  # [B, K]
        return mixed, targets
