"""What changes from step to step: learning rate, weight decay, EMA momentum, temperature."""

from __future__ import annotations

from dataclasses import dataclass

from synclr_cli.config import TrainConfig
from synclr_cli.learning import schedules


@dataclass(frozen=True)
class Now:
    """The values of one step."""

    lr: float
    weight_decay: float
    ema: float
    teacher_temperature: float


def at(step: int, config: TrainConfig) -> Now:
    """Return the values of step `step`, the first being 0."""
    steps = config.steps
    return Now(
        lr=schedules.warmup_cosine(step, steps, config.warmup_steps, config.peak_lr, config.end_lr),
        weight_decay=schedules.cosine(step, steps, config.weight_decay, config.weight_decay_end),
        # Without a teacher in the loss its weights are the student's, whenever they are asked for.
        ema=schedules.cosine(step, steps, config.ema, config.ema_end) if config.teacher else 0.0,
        teacher_temperature=schedules.linear(
            step,
            config.teacher_temperature_steps,
            config.teacher_temperature,
            config.teacher_temperature_end,
        ),
    )
