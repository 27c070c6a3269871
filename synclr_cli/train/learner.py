"""The state of a training run and its one transition: an update.

    student, teacher, optimiser --update(batch, step's values)--> the same, one step later

The state is these three, and which steps were skipped: batches and every random draw are functions
of the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from timm.models import VisionTransformer
from torch import Tensor

from synclr_cli.config import TrainConfig
from synclr_cli.errors import DivergedError
from synclr_cli.learning import backbone, checkpoint, optim, runtime, schedules, sharded
from synclr_cli.learning.checkpoint import Checkpoint
from synclr_cli.learning.gradients import GradientAverage
from synclr_cli.learning.runtime import Runtime
from synclr_cli.train.batches import Batch
from synclr_cli.train.objective import Losses, Objective
from synclr_cli.train.student_teacher import Student, Teacher

# A skipped step leaves the weights alone: if the fault is a batch's, the next one is fine. When
# more than half of so many steps fail, it is the weights', and no step to come will mend them.
WINDOW = 10


@dataclass(frozen=True)
class StepValues:
    """What changes from step to step, as it is at one of them."""

    lr: float
    weight_decay: float
    ema: float
    teacher_temperature: float


def step_values(step: int, config: TrainConfig) -> StepValues:
    """Return the values of step `step`, the first being 0."""
    steps = config.steps
    return StepValues(
        lr=schedules.warmup_cosine(step, steps, config.warmup_steps, config.peak_lr, config.end_lr),
        weight_decay=schedules.cosine(step, steps, config.weight_decay, config.weight_decay_end),
        # Without a teacher in the loss its weights are the student's, at every step.
        ema=schedules.cosine(step, steps, config.ema, config.ema_end) if config.teacher else 0.0,
        teacher_temperature=schedules.linear(
            step,
            config.teacher_temperature_steps,
            config.teacher_temperature,
            config.teacher_temperature_end,
        ),
    )


@dataclass(frozen=True)
class Skip:
    """A step whose loss or gradient was infinite or no number, so that it changed nothing."""

    step: int
    lr: float
    caption_ids: list[int]


class Diverged(DivergedError):
    """More steps were skipped than may be; `step` is the last of them, which is still to do."""

    def __init__(self, skip: Skip, why: str, do: str):
        ids = ", ".join(map(str, skip.caption_ids[:16]))
        count = len(skip.caption_ids)
        more = f" and {count - 16} more" if count > 16 else ""
        super().__init__(
            f"the loss of step {skip.step} is not finite{why}, at learning rate {skip.lr:.3g} and"
            f" captions {ids}{more}",
            do=do,
        )
        self.step = skip.step


@dataclass(frozen=True)
class Update:
    """What one update did, if its loss was finite."""

    losses: Losses
    grad_norm: Tensor


class Learner:
    """Student, teacher and optimiser, built alike on every rank."""

    def __init__(
        self,
        config: TrainConfig,
        rt: Runtime,
        classes: int = 0,
        start: Mapping[str, Tensor] | None = None,
    ):
        """Draw the weights, or take those of a ViT to start from.

        Args:
            classes: of the images; they matter to a cross entropy only.
            start: a state dict of the student's ViT, which the teacher takes over.
        """
        runtime.seed_everything(config.seed)
        self.config, self.runtime = config, rt
        self.student = Student(config, rt, classes).to(rt.device).train()
        if start is not None:
            self.student.vit.load_state_dict(start)
        self.teacher = Teacher(config, rt, self.student).to(rt.device).train()
        models = (self.student, self.teacher)
        if config.compile and rt.compiles:
            for model in models:
                model.compile_blocks()
        self.sharded = config.shard == "full" and rt.world > 1
        if self.sharded:
            for model in models:
                model.shard(rt)
            self.teacher.pair(self.student)
        self.optimizer = rt.optimizer(
            torch.optim.AdamW,
            optim.pretraining_groups(self.student, weight_decay=config.weight_decay),
            sharded=config.shard == "optimizer",
            lr=0.0,
            betas=(config.beta1, config.beta2),
            fused=True,
        )
        # What is sharded is averaged as it is cut.
        self.average = GradientAverage(() if self.sharded else self.student.parameters(), rt)
        self.objective = Objective(config, rt, self.student, self.teacher, self.average.start)
        self._unread: tuple[Tensor, Skip] | None = None
        self._skipped: list[int] = []  # steps, over all resumes
        self._untold: list[Skip] = []

    @property
    def late(self) -> bool:
        """Return whether the device skips a step that is not finite by itself.

        The host then looks at it one step later, and never waits for the device.
        """
        return self.runtime.device.type in ("cuda", "xpu")

    @property
    def patches(self) -> int:
        """Return how many patches a global crop has."""
        return int(self.student.vit.patch_embed.num_patches)

    def update(self, batch: Batch, values: StepValues) -> Update:
        """Do one update: gradient, AdamW, then the teacher follows the new student.

        A step whose loss or gradient is not finite is skipped; `skips` tells of it.

        Raises:
            Diverged: too many were; on every rank alike, and nothing has changed since `step`.
        """
        self._settle()
        losses = self.objective.gradient(batch, values.teacher_temperature)
        parameters = [p for p in self.student.parameters() if p.grad is not None]
        self.average.finish()
        norm = sharded.norm([p.grad for p in parameters if p.grad is not None], self.runtime)
        finite = self.runtime.all(torch.isfinite(norm + losses.total))
        self._unread = finite, Skip(batch.step, values.lr, batch.caption_ids)
        if not self.late and not self._settle():
            return Update(losses, norm)
        if self.config.clip_grad:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.clip_grad, norm)
        decayed, exempt = self.optimizer.param_groups
        decayed["weight_decay"] = values.weight_decay
        decayed["lr"] = exempt["lr"] = values.lr
        self.runtime.step(self.optimizer, finite if self.late else None)
        self.optimizer.zero_grad()
        self.teacher.follow(values.ema, finite if self.late else None)
        if batch.step + 1 == self.config.steps:
            self._settle()
        return Update(losses, norm)

    def skips(self) -> list[Skip]:
        """Return the steps found to be skipped since the last call."""
        told, self._untold = self._untold, []
        return told

    def _settle(self) -> bool:
        """Look whether the last step was finite, if that is not known; return it.

        Raises:
            Diverged: it was not, once too often.
        """
        if self._unread is None:
            return True
        (finite, skip), self._unread = self._unread, None
        if bool(finite):
            return True
        self.optimizer.zero_grad()
        recent = 1 + sum(step > skip.step - WINDOW for step in self._skipped)
        cure = "lower train.peak_lr or set train.clip_grad=1, and add --overwrite"
        if len(self._skipped) >= self.config.skip_nonfinite:
            raise Diverged(skip, "", do=f"go on with --set train.skip_nonfinite=10, or {cure}")
        if recent > WINDOW // 2:
            raise Diverged(skip, f", as in {recent} of the last {WINDOW} steps", do=cure)
        self._skipped.append(skip.step)
        self._untold.append(skip)
        return False

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """Return everything a checkpoint needs, by name; whole on the main rank.

        Every rank must call it.
        """
        optimizer = checkpoint.optimizer_tensors(
            self.optimizer, self.runtime.state_of(self.optimizer)
        )
        return {
            "student": sharded.whole(self.student.state_dict(), self.runtime),
            "teacher": sharded.whole(self.teacher.state_dict(), self.runtime),
            "optimizer": sharded.whole(optimizer, self.runtime),
        }

    def backbone(self) -> VisionTransformer:
        """Return the teacher's ViT; if it is sharded, a whole copy, which the main rank has.

        Every rank must call it.
        """
        vit, config = self.teacher.vit, self.config
        if not self.sharded:
            return vit
        weights = sharded.whole(vit.state_dict(), self.runtime)
        with torch.device("meta"):
            copy = backbone.build(
                config.arch,
                image_size=config.image_size,
                patch_size=config.patch_size,
                depth=config.depth,
            )
        if not self.runtime.is_main:
            return copy
        copy.load_state_dict(weights, assign=True)
        return copy.to(self.runtime.device)

    def restore(self, saved: Checkpoint, skipped: Sequence[int] = ()) -> None:
        """Put back what `groups` gave, and the steps skipped by then."""
        groups: Mapping[str, Mapping[str, Tensor]] = saved.groups
        for model, name in ((self.student, "student"), (self.teacher, "teacher")):
            own = model.state_dict()
            model.load_state_dict(sharded.as_sharded(groups[name], own, self.runtime))
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = groups["optimizer"]  # numbered as the parameters are
        like = {key: parameters[int(key.partition(".")[0])] for key in moments}
        moments = sharded.as_sharded(moments, like, self.runtime)
        checkpoint.restore_optimizer(self.optimizer, moments)
        self._skipped = list(skipped)
