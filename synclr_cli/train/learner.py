"""The state of a training run and its one transition: an update.

    student, teacher, optimiser --update(batch, step's values)--> the same, one step later

The state is these three alone: batches and every random draw are functions of the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from synclr_cli.config import TrainConfig
from synclr_cli.learning import checkpoint, optim, runtime, schedules
from synclr_cli.learning.checkpoint import Checkpoint
from synclr_cli.learning.runtime import Runtime
from synclr_cli.train.batches import Batch
from synclr_cli.train.objective import Losses, Objective
from synclr_cli.train.student_teacher import Student, Teacher


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


class NotFinite(Exception):
    """The loss or the gradient of a step was infinite or no number; it changed nothing."""

    def __init__(self, step: int, lr: float, caption_ids: list[int]):
        super().__init__(f"step {step}")
        self.step, self.lr, self.caption_ids = step, lr, caption_ids


@dataclass(frozen=True)
class Update:
    """What one update did."""

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
            classes: of the pictures; they matter to a cross entropy only.
            start: a state dict of the student's ViT, which the teacher takes over.
        """
        runtime.seed_everything(config.seed)
        self.config, self.runtime = config, rt
        self.student = Student(config, rt, classes).to(rt.device).train()
        if start is not None:
            self.student.vit.load_state_dict(start)
        self.teacher = Teacher(config, rt, self.student).to(rt.device).train()
        self.optimizer = rt.optimizer(
            torch.optim.AdamW,
            optim.pretraining_groups(self.student, weight_decay=config.weight_decay),
            sharded=config.shard_optimizer,
            lr=0.0,
            betas=(config.beta1, config.beta2),
            fused=True,
        )
        self.objective = Objective(config, rt, self.student, self.teacher)
        self._unread: tuple[Tensor, NotFinite] | None = None
        if config.compile:
            for model in (self.student, self.teacher):
                model.compile_blocks()

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

        Raises:
            NotFinite: on every rank alike, before anything is changed: of this step or, on a GPU,
                of the one before; then the same call does this one.
        """
        self.settle()
        losses = self.objective.gradient(batch, values.teacher_temperature)
        parameters = [p for p in self.student.parameters() if p.grad is not None]
        self.runtime.average_gradients(parameters)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        finite = self.runtime.all(torch.isfinite(norm + losses.total))
        self._unread = finite, NotFinite(batch.step, values.lr, batch.caption_ids)
        if not self.late:
            self.settle()
        if self.config.clip_grad:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.clip_grad, norm)
        decayed, exempt = self.optimizer.param_groups
        decayed["weight_decay"] = values.weight_decay
        decayed["lr"] = exempt["lr"] = values.lr
        self.runtime.step(self.optimizer, finite if self.late else None)
        self.optimizer.zero_grad()
        self.teacher.follow(values.ema, finite if self.late else None)
        return Update(losses, norm)

    def settle(self) -> None:
        """Look whether the last update was one; nothing to do if that is known.

        Raises:
            NotFinite: it was none.
        """
        if self._unread is None:
            return
        (finite, failure), self._unread = self._unread, None
        if not bool(finite):
            self.optimizer.zero_grad()
            raise failure

    def groups(self) -> dict[str, dict[str, Tensor]]:
        """Return everything a checkpoint needs, by name; whole on the main rank.

        Every rank must call it.
        """
        return {
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": checkpoint.optimizer_tensors(
                self.optimizer, self.runtime.state_of(self.optimizer)
            ),
        }

    def restore(self, saved: Checkpoint) -> None:
        """Put back what `groups` gave."""
        groups: Mapping[str, Mapping[str, Tensor]] = saved.groups
        self.student.load_state_dict(groups["student"])
        self.teacher.load_state_dict(groups["teacher"])
        checkpoint.restore_optimizer(self.optimizer, groups["optimizer"])
