"""What a run says about itself: losses and speed, averaged over the steps since the last line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import torch

from synclr_cli.config import TrainConfig
from synclr_cli.learning.runtime import Runtime
from synclr_cli.train.learner import Update
from synclr_cli.train.timetable import Now


class Monitor:
    """Adds up what the updates tell, and gives a line of flat keys every `log_steps`."""

    def __init__(self, config: TrainConfig, rt: Runtime):
        self._config, self._runtime = config, rt
        self._start_line()

    def _start_line(self) -> None:
        self._sums = torch.zeros(5, device=self._runtime.device)
        self._steps, self._waited_s, self._start_s = 0, 0.0, time.monotonic()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside the block as waiting for data."""
        start = time.monotonic()
        yield
        self._waited_s += time.monotonic() - start

    def add(self, update: Update) -> None:
        """Add one update."""
        losses = update.losses
        terms = (losses.total.detach(), losses.of_globals, losses.of_locals, losses.of_patches)
        self._sums += torch.stack([*terms, update.grad_norm])
        self._steps += 1

    def line(self, step: int, now: Now) -> dict[str, float]:
        """Return the means since the last line; `step` updates are done by now.

        Every rank must call it: the losses are averaged over ranks.
        """
        means = (self._runtime.sum(self._sums) / self._runtime.world / self._steps).tolist()
        seconds = time.monotonic() - self._start_s
        images = self._steps * self._config.captions_per_batch * self._config.views
        names = ("loss", "loss_global", "loss_local", "loss_patch", "grad_norm")
        line = {
            "step": step,
            **dict(zip(names, means, strict=True)),
            **asdict(now),
            "images_per_s": images / seconds,
            "data_wait_share": self._waited_s / seconds,
        }
        self._start_line()
        return line
