"""One step's loss: L(global) + mean of L(local) + iBOT, eq. 4, over the crops of all ranks.

    batch --teacher--> candidates, targets   --\
    batch --student--> anchors, scores       ----> Losses

Shapes: B pictures of this rank, L local crops of each, M masked patches, D width, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from synclr_cli.config import TrainConfig
from synclr_cli.learning.backbone import IMAGENET_MEAN, IMAGENET_STD
from synclr_cli.learning.runtime import Runtime
from synclr_cli.train.batches import Batch
from synclr_cli.train.losses import contrast, patch_loss, sinkhorn
from synclr_cli.train.student_teacher import Student, Teacher


@dataclass(frozen=True)
class Losses:
    """The terms of eq. 4 for this rank; their mean over ranks is the batch's."""

    total: Tensor
    of_globals: Tensor
    of_locals: Tensor
    of_patches: Tensor


class Objective:
    """The loss of a batch, as a config asks for it."""

    def __init__(self, config: TrainConfig, runtime: Runtime, student: Student, teacher: Teacher):
        self.config, self.runtime = config, runtime
        self.student, self.teacher = student, teacher

    def __call__(self, batch: Batch, teacher_temperature: float) -> Losses:
        """Return the losses of this rank's crops against all ranks' candidates."""
        config, runtime, student, teacher = self.config, self.runtime, self.student, self.teacher
        pictures, zero = len(batch.globals), torch.zeros((), device=runtime.device)
        masked = batch.masks if config.patch_weight else None
        ids, crop = batch.ids.cpu().numpy().view(np.uint64), np.arange(1, 1 + config.local_crops)
        globals_ = normalise(batch.globals)  # [B, 3, S, S]
        with torch.no_grad(), runtime.autocast():
            tokens = teacher.encode(globals_)  # [B, 1 + N, D]
            candidates = teacher.projector(tokens[:, 0])  # [B, E]
            hidden = tokens[:, 1:][masked] if masked is not None else None  # [M, D]
        with runtime.autocast():
            student.set_depth(config.seed, batch.step, ids)
            tokens = student.encode(globals_, masked)  # [B, 1 + N, D]
            features = tokens[:, 0]  # [B, D]
            if config.local_crops:
                locals_ = normalise(batch.locals)  # [B x L, 3, s, s]
                student.set_depth(
                    config.seed,
                    batch.step,
                    np.repeat(ids, config.local_crops),
                    np.tile(crop, pictures),
                )
                features = torch.cat([features, student.encode(locals_)[:, 0]])  # [B + B x L, D]
            anchors = student.predictor(student.projector(features))  # [B + B x L, E]

        candidates = runtime.gather(candidates)  # [all B, E]
        labels, own_labels = runtime.gather(batch.labels), batch.labels  # [all B], [B]
        own = runtime.rank * pictures + torch.arange(pictures, device=runtime.device)  # [B]
        temperature = config.temperature
        of_globals = contrast(anchors[:pictures], candidates, own_labels, labels, own, temperature)
        of_locals = of_patches = zero
        if config.local_crops:
            # A local crop has its own picture's global crop among its positives.
            local_labels = own_labels.repeat_interleave(config.local_crops)  # [B x L]
            of_locals = contrast(
                anchors[pictures:], candidates, local_labels, labels, None, temperature
            )
        if masked is not None and hidden is not None:
            with torch.no_grad(), runtime.autocast():
                scores = teacher.prototypes(hidden)  # [M, P]
            targets = sinkhorn(scores, teacher_temperature, config.sinkhorn_iterations, runtime)
            with runtime.autocast():
                scores = student.prototypes(tokens[:, 1:][masked])  # [M, P]
            # Each masked picture has equally many masked patches, so this is the mean over
            # patches inside a picture, then over masked pictures.
            count = runtime.sum(masked.sum()).clamp(min=1)
            share = runtime.world / count
            of_patches = share * patch_loss(scores, targets, config.student_temperature)
        total = of_globals + of_locals + config.patch_weight * of_patches
        return Losses(total, of_globals.detach(), of_locals.detach(), of_patches.detach())


def normalise(crops: Tensor) -> Tensor:
    """Return 8-bit crops [n, 3, S, S] as float32 with ImageNet's mean and deviation."""
    mean = torch.tensor(IMAGENET_MEAN, device=crops.device)[:, None, None] * 255
    std = torch.tensor(IMAGENET_STD, device=crops.device)[:, None, None] * 255
    return (crops.float() - mean) / std
