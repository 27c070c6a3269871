"""One step's loss and gradient: L(global) + mean of L(local) + iBOT, eq. 4, over all ranks' crops.

    batch --teacher--> cls and masked patch features --heads--> candidates, targets
    batch --student--> cls and masked patch features --heads--> anchors, scores --> Losses

Without a teacher (StableRep, SimCLR) the candidates are the student's own projections and both
sides are trained; a cross entropy of classes (supervised) takes the place of the contrast.

With `micro_batch` the ViTs see that many images at a time, the heads and losses always the whole
batch: the student's features are computed without a graph, the losses' gradient at them is kept,
and then each piece is computed again and given its part of that gradient. The result is the
gradient of the whole batch, batch norms and Sinkhorn included; what an image gives does not depend
on the pieces, with MKL not even in its last bit (a ReLU that flips is more than rounding).

Shapes: B images of this rank, L local crops of each, M masked patches, D width, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from synclr_cli.config import TrainConfig
from synclr_cli.learning.backbone import IMAGENET_MEAN, IMAGENET_STD
from synclr_cli.learning.runtime import Runtime
from synclr_cli.train.batches import Batch
from synclr_cli.train.encoder import Encoder
from synclr_cli.train.losses import Scores, Sinkhorn, contrast, patch_loss
from synclr_cli.train.reading import Reading
from synclr_cli.train.student_teacher import Student, Teacher

# Rows of tokens that a CPU works on at a time, so that its caches hold them; changes no result.
CACHED_ROWS = 16 * (197 + 4 * 37)  # 16 images of 224 pixels with 4 local crops of 96


@dataclass(frozen=True)
class Losses:
    """The terms of eq. 4 for this rank; their mean over ranks is the batch's."""

    total: Tensor
    of_globals: Tensor
    of_locals: Tensor
    of_patches: Tensor
    candidates: Tensor  # [all B, E], what the global crops are to the contrast; else features
    labels: Tensor  # [all B]
    targets: Sinkhorn | None  # of this rank's masked patches


@dataclass(frozen=True)
class Features:
    """What the heads need of a ViT's tokens."""

    of_globals: Tensor  # [B, D] cls
    of_locals: Tensor  # [B x L, D] cls; [0, D] of the teacher
    of_patches: Tensor  # [M, D]

    @staticmethod
    def join(pieces: list[Features]) -> Features:
        """Return the features of pieces of a batch as those of the batch."""
        if len(pieces) == 1:
            return pieces[0]
        return Features(
            torch.cat([p.of_globals for p in pieces]),
            torch.cat([p.of_locals for p in pieces]),
            torch.cat([p.of_patches for p in pieces]),
        )

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three, the cls features first."""
        return self.of_globals, self.of_locals, self.of_patches


class Objective:
    """The loss of a batch, as a config asks for it."""

    def __init__(
        self,
        config: TrainConfig,
        runtime: Runtime,
        student: Student,
        teacher: Teacher,
        before_last: Callable[[], None] = lambda: None,
    ):
        """Take the models; `before_last` is called before the last backward pass of a step."""
        self.config, self.runtime, self.before_last = config, runtime, before_last
        self.student, self.teacher = student, teacher
        contrasts = config.objective == "contrast"
        self.taught = config.teacher and (contrasts or config.patch_weight > 0)
        self.fused = config.compile and runtime.compiles
        self._moments = moments(runtime.device)
        patch = int(student.vit.patch_embed.patch_size[0])
        sides = [config.image_size // patch] + [config.local_size // patch] * config.local_crops
        self._rows_of_image = sum(1 + side**2 for side in sides)  # of tokens

    def gradient(self, batch: Batch, teacher_temperature: float) -> Losses:
        """Add the gradient of this rank's losses to the student's, and return the losses."""
        images = len(batch.globals)
        size = self.config.micro_batch or images
        pieces = _cut(slice(0, images), size)
        with self.student.cast(), self.teacher.cast():
            taught = None
            if self.taught:
                with torch.no_grad():
                    taught = Features.join([self._taught(batch, piece) for piece in pieces])
            if len(pieces) == 1:
                learnt = self._learnt(batch, pieces[0])
                losses = self.losses(batch, learnt, taught, teacher_temperature)
                self.before_last()
                losses.total.backward()
            else:
                losses = self._by_pieces(batch, pieces, taught, teacher_temperature)
        return replace(losses, total=losses.total.detach())

    def _by_pieces(
        self,
        batch: Batch,
        pieces: list[slice],
        taught: Features | None,
        teacher_temperature: float,
    ) -> Losses:
        """Do as `gradient` with the graph of one piece in memory at a time.

        The last piece goes first, as autograd goes through a whole batch: sums are rounded alike.
        """
        with torch.no_grad():
            joined = Features.join([self._learnt(batch, piece) for piece in pieces]).tensors()
        learnt = Features(*(t.requires_grad_() for t in joined))
        losses = self.losses(batch, learnt, taught, teacher_temperature)
        losses.total.backward()
        ends = [len(t) for t in joined]
        for piece in reversed(pieces):
            given = []
            for i, (whole, again) in enumerate(
                zip(joined, self._learnt(batch, piece).tensors(), strict=True)
            ):
                start, end = ends[i] - len(again), ends[i]
                ends[i] = start
                if whole.grad is not None and again.requires_grad:
                    given.append((again, whole.grad[start:end]))
            if piece is pieces[0]:
                self.before_last()
            torch.autograd.backward([t for t, _ in given], [g for _, g in given])
        return losses

    def _taught(self, batch: Batch, piece: slice) -> Features:
        """Return the teacher's features of some images; it sees all patches, no local crop."""
        return Features.join([self._seen(self.teacher, batch, p) for p in self._in_cache(piece)])

    def _learnt(self, batch: Batch, piece: slice) -> Features:
        """Return the student's features of some images."""
        return Features.join([self._seen(self.student, batch, p) for p in self._in_cache(piece)])

    def _in_cache(self, piece: slice) -> list[slice]:
        """Return the piece cut so that a CPU's caches hold what is worked on."""
        if self.runtime.device.type != "cpu":
            return [piece]
        return _cut(piece, max(1, CACHED_ROWS // self._rows_of_image))

    def _seen(self, model: Encoder, batch: Batch, piece: slice) -> Features:
        """Return what a model makes of some images: the student masked, and local crops too."""
        crops, is_student = self.config.local_crops, isinstance(model, Student)
        side = model.vit.patch_embed.grid_size[0]
        masks = batch.masks.numpy()[piece] if self.config.patch_weight else None  # [b, N]
        images = [normalise(batch.globals[piece], self._moments)]  # [b, 3, S, S]
        shapes, patches = [(len(images[0]), 1 + side**2)], [masks]
        if is_student and crops:
            of_piece = slice(piece.start * crops, piece.stop * crops)
            images.append(normalise(batch.locals[of_piece], self._moments))  # [b x L, 3, s, s]
            local_side = images[1].shape[-1] // int(model.vit.patch_embed.patch_size[0])
            shapes.append((len(images[1]), 1 + local_side**2))
            patches.append(None)
        reading = Reading.of(patches, shapes)
        hidden = None
        if is_student and masks is not None:
            hidden = self.runtime.upload(torch.from_numpy(masks))  # [b, N]
        kept = self._kept(model, batch, piece) if isinstance(model, Student) else None
        with self.runtime.autocast():
            (cls, tokens), *others = model(
                images, [hidden, None][: len(images)], reading.to(self.runtime), kept
            )
        local = others[0][0] if others else cls.new_empty(0, cls.shape[-1])
        return Features(cls, local, tokens)  # [b, D], [b x L, D], [m, D]

    def _kept(self, student: Student, batch: Batch, piece: slice) -> Tensor | None:
        """Return which layers the crops of some images drop, the global crops first."""
        crops = self.config.local_crops
        ids = batch.ids.numpy().view(np.uint64)[piece]  # [b]
        numbers = np.tile(np.arange(1, 1 + crops), len(ids))  # [b x L]
        kept = student.kept(
            self.config.seed,
            batch.step,
            np.concatenate([ids, np.repeat(ids, crops)]),
            np.concatenate([np.zeros(len(ids), numbers.dtype), numbers]),
        )  # [blocks, 2, b + b x L]
        return None if kept is None else self.runtime.upload(kept)

    def losses(
        self, batch: Batch, learnt: Features, taught: Features | None, teacher_temperature: float
    ) -> Losses:
        """Return the losses of this rank's crops against all ranks' candidates."""
        labels = self.runtime.gather(batch.labels)  # [all B]
        if self.student.classifier is not None:
            of_globals, of_locals, seen = self._classified(batch, learnt)
        else:
            of_globals, of_locals, seen = self._contrasted(batch, learnt, taught, labels)
        of_patches, targets = torch.zeros((), device=self.runtime.device), None
        if taught is not None and self.config.patch_weight:
            of_patches, targets = self._predicted(learnt, taught, teacher_temperature)
        total = of_globals + of_locals + self.config.patch_weight * of_patches
        terms = (of_globals.detach(), of_locals.detach(), of_patches.detach())
        return Losses(total, *terms, seen.detach(), labels, targets)

    def _contrasted(
        self, batch: Batch, learnt: Features, taught: Features | None, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the contrast of global and of local crops, and the candidates [all B, E]."""
        config, runtime, student = self.config, self.runtime, self.student
        images, temperature = len(learnt.of_globals), config.temperature
        assert student.projector is not None
        with runtime.autocast():
            # Global and local crops share the heads' batch statistics.
            features = torch.cat([learnt.of_globals, learnt.of_locals])  # [B + B x L, D]
            anchors = student.projector(features)  # [B + B x L, E]
            if student.predictor is not None:
                anchors = student.predictor(anchors)
        if taught is None or self.teacher.projector is None:
            candidates = self._gather_with_gradient(anchors[:images])  # [all B, E]
        else:
            with torch.no_grad(), runtime.autocast():
                candidates = runtime.gather(self.teacher.projector(taught.of_globals))  # [all B, E]
        own = runtime.rank * images + torch.arange(images, device=runtime.device)  # [B]
        both = candidates.requires_grad
        of_globals = contrast(
            anchors[:images], candidates, batch.labels, labels, own, temperature,
            both=both, fused=self.fused,
        )  # fmt: skip
        of_locals = torch.zeros((), device=runtime.device)
        if config.local_crops:
            # A local crop has its own image's global crop among its positives.
            local_labels = batch.labels.repeat_interleave(config.local_crops)  # [B x L]
            of_locals = contrast(
                anchors[images:], candidates, local_labels, labels, None, temperature,
                both=both, fused=self.fused,
            )  # fmt: skip
        return of_globals, of_locals, candidates

    def _classified(self, batch: Batch, learnt: Features) -> tuple[Tensor, Tensor, Tensor]:
        """Return the cross entropy of global and of local crops, and the features [all B, D]."""
        classifier, runtime = self.student.classifier, self.runtime
        assert classifier is not None
        crops = ((learnt.of_globals, 1), (learnt.of_locals, self.config.local_crops))
        losses = []
        for features, of_image in crops:
            with runtime.autocast():
                logits = classifier(features)  # [n, classes]
            labels = batch.labels.repeat_interleave(of_image)  # [n]
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            losses.append(F.cross_entropy(logits, labels) if len(logits) else logits.sum())
        return losses[0], losses[1], runtime.gather(learnt.of_globals)

    def _predicted(
        self, learnt: Features, taught: Features, teacher_temperature: float
    ) -> tuple[Tensor, Sinkhorn]:
        """Return the loss of this rank's masked patches, and the teacher's targets."""
        config, runtime, student, teacher = self.config, self.runtime, self.student, self.teacher
        assert student.prototypes is not None and teacher.prototypes is not None
        with torch.no_grad():
            with runtime.autocast():
                tokens = teacher.prototypes(taught.of_patches)  # [M, K]
            scores = Scores(
                tokens, teacher.prototypes.prototypes(), runtime.amp_dtype, fused=self.fused
            )
            targets = Sinkhorn(scores, teacher_temperature, config.sinkhorn_iterations, runtime)
        with runtime.autocast():
            tokens = student.prototypes(learnt.of_patches)  # [M, K]
        total = patch_loss(
            tokens,
            student.prototypes.prototypes(),
            targets,
            config.student_temperature,
            runtime.amp_dtype,
        )
        # Each masked image has equally many masked patches, so this is the mean over patches
        # inside an image, then over masked images.
        count = runtime.sum(torch.full((), len(tokens), device=runtime.device)).clamp(min=1)
        return total * (runtime.world / count), targets

    def _gather_with_gradient(self, rows: Tensor) -> Tensor:
        """Return all ranks' rows; what the ranks' losses send back is added up for each row."""
        n, ranks = len(rows), self.runtime
        before, after = ranks.rank * n, (ranks.world - 1 - ranks.rank) * n
        return ranks.sum_with_gradient(F.pad(rows, (0, 0, before, after)))  # [all B, E]


def _cut(piece: slice, size: int) -> list[slice]:
    return [slice(i, min(i + size, piece.stop)) for i in range(piece.start, piece.stop, size)]


def moments(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ImageNet's mean and deviation of 8-bit channels on a device, [3, 1, 1] each."""
    mean, std = (torch.tensor(v)[:, None, None] * 255 for v in (IMAGENET_MEAN, IMAGENET_STD))
    return mean.to(device), std.to(device)


def normalise(crops: Tensor, of_channels: tuple[Tensor, Tensor]) -> Tensor:
    """Return 8-bit crops [n, 3, S, S] as float32 less the mean and divided by the deviation."""
    mean, std = of_channels
    return crops.float().sub_(mean).div_(std)
