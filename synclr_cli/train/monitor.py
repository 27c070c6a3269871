"""What a run says about itself: losses and speed since the last line, and its last embeddings.

Three numbers tell a run that learns from one that has collapsed, where the loss alone may not:
`effective_rank` of the teacher's embeddings (1: all on one line), `similarity_gap` between pictures
of one caption and of two, `prototype_perplexity` of the patches' first prototypes.

Shapes: B pictures of the whole batch, E embedding, P prototypes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict

import torch
from torch import Tensor
from torch.nn import functional as F

from synclr_cli.config import TrainConfig
from synclr_cli.learning.runtime import Runtime
from synclr_cli.train.learner import Update
from synclr_cli.train.timetable import Now

COLLAPSED_RANK = 1.5  # directions in use; a batch of unrelated embeddings has tens


class Monitor:
    """Adds up what the updates tell, and gives a line of flat keys every `log_steps`."""

    def __init__(self, config: TrainConfig, rt: Runtime):
        self._runtime = rt
        self._images = config.captions_per_batch * config.views * config.global_crops  # a step
        self._last: Update
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
        self._last = update

    def line(self, step: int, now: Now) -> dict[str, float]:
        """Return the means since the last line; `step` updates are done by now.

        Every rank must call it: the losses are averaged over ranks.
        """
        means = (self._runtime.sum(self._sums) / self._runtime.world / self._steps).tolist()
        seconds = time.monotonic() - self._start_s
        images = self._steps * self._images
        names = ("loss", "loss_global", "loss_local", "loss_patch", "grad_norm")
        line = {
            "step": step,
            **dict(zip(names, means, strict=True)),
            **asdict(now),
            "images_per_s": images / seconds,
            "data_wait_share": self._waited_s / seconds,
            **self._health(),
        }
        self._start_line()
        return line

    def _health(self) -> dict[str, float]:
        losses = self._last.losses
        health = {
            "effective_rank": effective_rank(losses.candidates),
            "similarity_gap": similarity_gap(losses.candidates, losses.labels),
        }
        if losses.targets is not None:
            used = self._runtime.sum(losses.targets.used())  # [P]
            health["prototype_perplexity"] = perplexity(used)
        return health


def effective_rank(embeddings: Tensor) -> float:
    """Return exp(entropy) of the singular values' shares, 1 to min(B, E), of embeddings [B, E]."""
    directions = F.normalize(embeddings.double(), dim=1)
    return perplexity(torch.linalg.svdvals(directions))


def similarity_gap(embeddings: Tensor, labels: Tensor) -> float:
    """Return the mean cosine between rows of one label less that between rows of two."""
    directions = F.normalize(embeddings.double(), dim=1)  # [B, E]
    of_label = directions.new_zeros(len(labels), directions.shape[1])  # [B, E]
    classes = labels.unique(return_inverse=True)[1]  # [B]
    of_label.index_add_(0, classes, directions)  # the sum of each class's rows
    sizes = torch.bincount(classes).double()
    same_pairs, all_pairs = (sizes * (sizes - 1)).sum(), len(labels) * (len(labels) - 1)
    same = of_label.square().sum() - len(labels)  # each row with itself left out
    every = directions.sum(0).square().sum() - len(labels)
    other_pairs = (all_pairs - same_pairs).clamp(min=1)  # none in a batch of one class
    return float(same / same_pairs.clamp(min=1) - (every - same) / other_pairs)


def perplexity(weights: Tensor) -> float:
    """Return exp(entropy) of non-negative weights: how many of them are in use."""
    p = weights.double() / weights.double().sum()
    return float(torch.exp(-torch.xlogy(p, p).sum()))


def collapse(line: Mapping[str, float]) -> str:
    """Return what is wrong with a run whose embeddings have collapsed, and "" otherwise."""
    if line["effective_rank"] < COLLAPSED_RANK:
        return (
            f"step {line['step']}: the embeddings of different pictures lie on"
            f" {line['effective_rank']:.1f} directions; the run has collapsed. Lower train.peak_lr,"
            " lengthen train.warmup_steps, or raise train.ema"
        )
    return ""
