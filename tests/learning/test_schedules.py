"""The four schedules against their formulas, at their ends too."""

from __future__ import annotations

import pytest
import reference

from synclr_cli.config import TrainConfig
from synclr_cli.learning import schedules
from synclr_cli.train.learner import step_values

STEPS = (0, 1, 79_999, 80_000, 80_001, 300_000, 499_999)


@pytest.mark.parametrize("step", STEPS)
def test_the_papers_values_at_every_kind_of_step(step: int) -> None:
    config = TrainConfig()
    now = step_values(step, config)
    assert now.lr == pytest.approx(
        reference.learning_rate(step, 500_000, 80_000, 2e-3, 0), rel=1e-12, abs=1e-15
    )
    assert now.weight_decay == pytest.approx(
        reference.half_cosine(step, 500_000, 0.04, 0.2), rel=1e-12
    )
    assert now.ema == pytest.approx(reference.half_cosine(step, 500_000, 0.994, 1), rel=1e-12)
    assert now.teacher_temperature == pytest.approx(
        reference.ramp(step, 4000, 0.04, 0.07), rel=1e-12
    )


def test_a_warmup_starts_at_exactly_zero_and_ends_at_the_peak() -> None:
    assert schedules.warmup_cosine(0, 10, 4, 2.0, 0.0) == 0
    assert schedules.warmup_cosine(4, 10, 4, 2.0, 0.0) == 2
    assert schedules.warmup_cosine(0, 10, 0, 2.0, 0.0) == 2


def test_the_end_is_approached_and_kept_after() -> None:
    assert 0 < schedules.warmup_cosine(9, 10, 4, 2.0, 0.0) < 0.2
    assert schedules.cosine(10, 10, 1.0, 0.5) == schedules.cosine(99, 10, 1.0, 0.5) == 0.5
    assert schedules.linear(7, 7, 0.04, 0.07) == schedules.linear(0, 0, 0.04, 0.07) == 0.07
