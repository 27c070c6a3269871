"""Student and teacher: an encoder that is trained, and a slowly following copy of it.

The student also has a mask token and a predictor, which the teacher lacks; only the student drops
layers. The teacher is never trained: it follows the student as a moving average of its parameters.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from synclr_cli import rng
from synclr_cli.config import TrainConfig
from synclr_cli.learning.runtime import Runtime
from synclr_cli.learning.sharded import share
from synclr_cli.train.encoder import Encoder
from synclr_cli.train.heads import contrast_head, linear


class Student(Encoder):
    """The encoder that is trained."""

    def __init__(self, config: TrainConfig, runtime: Runtime, classes: int = 0):
        """Build it; `classes` are those of a cross entropy, which has no projector."""
        super().__init__(config, runtime)
        width, hidden, out = self.vit.embed_dim, config.head_hidden, config.head_out
        self.predictor = self.classifier = None
        if config.objective == "cross-entropy":
            self.classifier = linear(width, classes)
        elif config.teacher:  # without one both sides go through the projector alone
            self.predictor = contrast_head(2, out, hidden, out, config.head_norm, runtime)
        if config.patch_weight:
            self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        # Rising with depth.
        self.drop_rates = np.linspace(0, config.drop_path, len(self.vit.blocks))  # [blocks]

    def kept(self, seed: int, step: int, ids: ArrayLike, crop: ArrayLike = 0) -> Tensor | None:
        """Draw which branches of crops are dropped: a function of (seed, step, image, crop).

        Args:
            seed, step: of the run.
            ids: of the images of the crops, [B].
            crop: the number of each crop in its image, [B] or one for all; the global one is 0.

        Returns:
            What each block's two branches are multiplied by, [blocks, 2, B], on the host: 0, or
            1 / (1 - rate), which keeps the mean; None if no layer is ever dropped.
        """
        if not self.drop_rates.any():
            return None
        blocks, branches = np.arange(len(self.drop_rates))[:, None, None], np.arange(2)[:, None]
        lots = rng.uniform("train.depth", seed, step, ids, crop, blocks, branches)
        rates = self.drop_rates[:, None, None]
        kept = torch.from_numpy((lots >= rates) / (1 - rates))  # [blocks, 2, B]
        return kept.to(self.vit.pos_embed.dtype)


class Teacher(Encoder):
    """The encoder that follows."""

    def __init__(self, config: TrainConfig, runtime: Runtime, student: Student):
        super().__init__(config, runtime)
        own = self.state_dict()
        self.load_state_dict({k: v for k, v in student.state_dict().items() if k in own})
        self.requires_grad_(False)
        self.pair(student)

    def pair(self, student: Student) -> None:
        """Follow these parameters of a student: again, once both have been sharded."""
        followed = dict(student.named_parameters())
        self._pairs = [(p, followed[name]) for name, p in self.named_parameters()]

    @torch.no_grad()
    def follow(self, momentum: float, finite: Tensor | None = None) -> None:
        """Move the parameters: teacher <- momentum x teacher + (1 - momentum) x student.

        Args:
            momentum: of the average.
            finite: whether to move at all, on the device; None: yes.
        """
        own, students = [[share(p) for p in side] for side in zip(*self._pairs, strict=True)]
        if finite is None:
            torch._foreach_lerp_(own, students, 1 - momentum)
        else:
            weight = finite.to(own[0].dtype) * (1 - momentum)
            torch._foreach_lerp_(own, students, [weight] * len(own))
