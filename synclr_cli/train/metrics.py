"""What a run says about itself: losses and speed since the last line, and its last embeddings.

    updates --Monitor--> a line of flat keys --report.collapse--> a warning, if it has collapsed

Some numbers tell a run that learns from one that has collapsed, where the loss alone may not:
`effective_rank` of the teacher's embeddings (1: all on one line), `similarity_gap` between images
of one class and of two, `prototype_perplexity` of the patches' first prototypes.

Shapes: B images of the whole batch, E embedding, P prototypes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict

import torch
from torch import Tensor
from torch.nn import functional as F

from synclr_cli import console
from synclr_cli.config import TrainConfig
from synclr_cli.learning import flops, sharded
from synclr_cli.learning.runtime import Runtime, exact
from synclr_cli.train import report
from synclr_cli.train.batches import Batch
from synclr_cli.train.learner import Learner, StepValues, Update

_SUMS = ("loss", "loss_global", "loss_local", "loss_patch", "grad_norm")


class Monitor:
    """Adds up what the updates tell, and gives a line of flat keys every `log_steps`."""

    def __init__(self, config: TrainConfig, rt: Runtime, learner: Learner):
        self._runtime, self._learner, self._steps = rt, learner, config.steps
        self._images = config.captions_per_batch * config.views * config.global_crops  # a step
        student = learner.student
        classes = student.classifier.out_features if student.classifier is not None else 0
        self._flops = flops.step_flops(config, student.vit, classes) / rt.world
        self._peak = flops.peak_tflops(rt.device)
        self._last: Update | None = None
        self._warned_of_damage = self._collapsed = False
        self._start_line()

    def _start_line(self) -> None:
        self._sums = torch.zeros(len(_SUMS) + 1, device=self._runtime.device)  # and of updates
        self._damaged = self._since = self._skipped = 0
        self._waited_s, self._aside_s, self._start_s = 0.0, 0.0, time.monotonic()

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches; what each takes to come counts as waiting for data."""
        while True:
            start = time.monotonic()
            batch = next(batches, None)
            self._waited_s += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def aside(self, work: Callable[[], float]) -> float:
        """Return what `work` does, and leave its time out of the speeds: it is no training."""
        start = time.monotonic()
        result = work()
        self._aside_s += time.monotonic() - start
        return result

    def add(self, batch: Batch, update: Update) -> None:
        """Add one step; an update that was not finite adds nothing to the means."""
        losses, norm = update.losses, update.grad_norm
        terms = (losses.total.detach(), losses.of_globals, losses.of_locals, losses.of_patches)
        values = torch.stack([*terms, norm, torch.ones_like(norm)])  # [6]
        self._sums += values.where(values.isfinite().all(), 0)
        self._damaged += len(batch.damaged)
        self._since += 1
        self._last = update

    def skip(self) -> None:
        """Count a step whose update was skipped."""
        self._skipped += 1

    def line(self, step: int, values: StepValues) -> dict[str, float]:
        """Return the means since the last line; `step` updates are done by now.

        Every rank must call it: the losses are averaged over ranks. Warns once of damaged images,
        and whenever the run collapses.
        """
        steps = self._since
        seconds = max(time.monotonic() - self._start_s - self._aside_s, 1e-9)
        teraflops = steps * self._flops / seconds / 1e12  # of this rank
        line: dict[str, float] = {"step": step}
        damaged_here = self._sums.new_tensor([self._damaged])
        totals = self._runtime.sum(torch.cat([self._sums, damaged_here])).tolist()
        *sums, updates, damaged = totals
        if updates:
            line |= {name: total / updates for name, total in zip(_SUMS, sums, strict=True)}
        line |= asdict(values)
        line |= {
            "images_per_s": steps * self._images / seconds,
            "left_s": (self._steps - step) * seconds / max(steps, 1),
            "model_tflop_per_s": teraflops,
            "data_wait_share": self._waited_s / seconds,
        }
        if self._peak is not None:
            line["mfu"] = teraflops / self._peak
        if self._skipped:
            line["skipped"] = self._skipped
        if damaged:
            line["damaged"] = damaged
        line |= self._health()
        self._warn(line)
        self._start_line()
        return line

    def _warn(self, line: Mapping[str, float]) -> None:
        if (trouble := report.collapse(line)) and not self._collapsed:
            console.warn(trouble)
        self._collapsed = bool(trouble)
        if "damaged" in line and not self._warned_of_damage:
            count = f"{line['damaged']:.0f} images"
            console.warn(f"{count} did not decode and were replaced; damaged.jsonl lists them")
            self._warned_of_damage = True

    def _health(self) -> dict[str, float]:
        health = {"teacher_distance": self._distance()}
        if self._last is None or not self._last.losses.candidates.isfinite().all():
            return health
        losses = self._last.losses
        health |= {
            "effective_rank": effective_rank(losses.candidates),
            "similarity_gap": similarity_gap(losses.candidates, losses.labels),
        }
        if losses.targets is not None:
            used = self._runtime.sum(losses.targets.used())  # [P]
            health["prototype_perplexity"] = perplexity(used)
        return health

    @torch.no_grad()
    def _distance(self) -> float:
        """Return how far the teacher's ViT is from the student's, as a share of its length."""
        student = dict(self._learner.student.vit.named_parameters())
        pairs = [(p, student[n]) for n, p in self._learner.teacher.vit.named_parameters()]
        apart = sharded.norm([(t - s).float() for t, s in pairs], self._runtime)
        return float(apart / sharded.norm([s.float() for _, s in pairs], self._runtime))


def shown(line: Mapping[str, float]) -> dict[str, float]:
    """Return what of a line stands beside the progress bar."""
    names = {
        "loss": "loss",
        "images/s": "images_per_s",
        "wait": "data_wait_share",
        "mfu": "mfu",
        "knn": "knn_top1",
    }
    return {name: line[key] for name, key in names.items() if key in line}


def effective_rank(embeddings: Tensor) -> float:
    """Return exp(entropy) of the singular values' shares, 1 to min(B, E), of embeddings [B, E]."""
    directions = F.normalize(exact(embeddings), dim=1)
    return perplexity(torch.linalg.svdvals(directions))


def similarity_gap(embeddings: Tensor, labels: Tensor) -> float:
    """Return the mean cosine between rows of one label less that between rows of two."""
    directions = F.normalize(exact(embeddings), dim=1)  # [B, E]
    of_label = directions.new_zeros(len(labels), directions.shape[1])  # [B, E]
    classes = labels.to(directions.device).unique(return_inverse=True)[1]  # [B]
    of_label.index_add_(0, classes, directions)  # the sum of each class's rows
    sizes = torch.bincount(classes).double()
    same_pairs, all_pairs = (sizes * (sizes - 1)).sum(), len(labels) * (len(labels) - 1)
    same = of_label.square().sum() - len(labels)  # each row with itself left out
    every = directions.sum(0).square().sum() - len(labels)
    other_pairs = (all_pairs - same_pairs).clamp(min=1)  # none in a batch of one class
    return float(same / same_pairs.clamp(min=1) - (every - same) / other_pairs)


def perplexity(weights: Tensor) -> float:
    """Return exp(entropy) of non-negative weights: how many of them are in use; 0 if none is."""
    if not weights.any():
        return 0.0
    p = exact(weights) / exact(weights).sum()
    return float(torch.exp(-torch.xlogy(p, p).sum()))
