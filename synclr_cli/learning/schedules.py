"""Values that change with the step: learning rate, weight decay, EMA momentum, temperature.

Time is step / steps with the first step at 0, so a warm-up starts at exactly zero and the end value
is approached but not reached, as in the released code.
"""

from __future__ import annotations

import math


def cosine(step: int, steps: int, start: float, end: float) -> float:
    """Return the half cosine from `start` at step 0 to `end` at `steps`, and `end` after."""
    if step >= steps:
        return end
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * step / steps))


def linear(step: int, steps: int, start: float, end: float) -> float:
    """Return the line from `start` at step 0 to `end` at `steps`, and `end` after."""
    return end if step >= steps else start + (end - start) * step / steps


def warmup_cosine(step: int, steps: int, warmup_steps: int, peak: float, end: float) -> float:
    """Return a linear rise from 0 to `peak` over the warm-up, then a half cosine to `end`."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    return cosine(step - warmup_steps, steps - warmup_steps, peak, end)


def warmup_poly(step: int, steps: int, warmup_steps: int, peak: float, power: float) -> float:
    """Return a linear rise from 0 to `peak` over the warm-up, then `peak` (1 - t)^power to 0."""
    if step < warmup_steps:
        return peak * step / warmup_steps
    if step >= steps:
        return 0.0
    return peak * (1 - (step - warmup_steps) / (steps - warmup_steps)) ** power
