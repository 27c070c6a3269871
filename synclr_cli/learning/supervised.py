"""The one loop of the evaluations that train: updates, validation, selection, resuming.

    item --batch--> step --> loss   every `evaluate_steps`: validate() --> (name, score) --> best
                                    every `save_steps`, and when stopped: a checkpoint

A command gives the step and the validation; when to save, to stop and to give up is written here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from synclr_cli import console
from synclr_cli.data.labelled import LabelledDataset
from synclr_cli.errors import DivergedError, SynclrError, UsageError
from synclr_cli.learning import checkpoint, loader, optim
from synclr_cli.learning.backbone import Backbone
from synclr_cli.learning.checkpoint import Checkpoint
from synclr_cli.learning.run_folder import RunFolder
from synclr_cli.learning.runtime import Runtime
from synclr_cli.learning.stopping import StopFlag


@dataclass(frozen=True)
class Plan:
    """What to train on, how long, and what happens how often in updates."""

    images: int
    batch_size: int  # of all ranks together
    seed: int  # of the images' order
    workers: int
    steps: int
    evaluate_steps: int  # the validation split is also looked at after the last update
    save_steps: int
    epoch_steps: int = 0  # of an epoch, for the log; 0: it names none
    stop_after_minutes: float = 0.0  # 0: never
    remedy: str = ""  # what to do about a loss that is not finite


@dataclass
class Best:
    """The moment some weights were best on the validation split."""

    at: int = 0  # updates done
    score: float = -1.0
    weights: dict[str, Tensor] = field(default_factory=dict)


class State:
    """All that changes while training, and what the validation split said of it."""

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer | None = None,
        *,
        candidates: Mapping[str, str],
        latest: bool = True,
    ):
        """Take what the step changes.

        Args:
            modules: by the name a checkpoint keeps them under.
            candidates: name of a validation score -> the module whose weights it is about; they
                are kept as they were when the score was highest.
            latest: of equal scores the later moment is best, otherwise the earlier.
        """
        self.modules, self.optimizer = modules, optimizer
        self.candidates, self.latest = candidates, latest
        self.best = {name: Best() for name in candidates}
        self.at, self.scores = 0, dict.fromkeys(candidates, 0.0)  # the last look at validation
        self.losses: list[float] = []  # since then

    def select(self, at: int, scores: Mapping[str, float]) -> None:
        """Take in the scores of the validation split after `at` updates."""
        self.at, self.scores = at, dict(scores)
        for name, score in scores.items():
            best = self.best[name]
            if score > best.score or (self.latest and score == best.score):
                weights = self.modules[self.candidates[name]].state_dict()
                kept = {key: value.detach().clone() for key, value in weights.items()}
                self.best[name] = Best(at, score, kept)

    def selected(self, name: str) -> nn.Module:
        """Return a score's module as it was at its best: itself if that is now, else a copy."""
        module, best = self.modules[self.candidates[name]], self.best[name]
        if best.at == self.at:
            return module
        module = copy.deepcopy(module)
        module.load_state_dict(best.weights)
        return module

    def save(self, done: int, folder: RunFolder) -> None:
        """Save everything after `done` updates."""
        groups = {name: module.state_dict() for name, module in self.modules.items()}
        if self.optimizer is not None:
            groups["optimizer"] = checkpoint.optimizer_tensors(self.optimizer)
        groups |= {f"best-{name}": best.weights for name, best in self.best.items()}
        best = {name: {"at": b.at, "score": b.score} for name, b in self.best.items()}
        state = {"best": best, "at": self.at, "scores": self.scores, "losses": self.losses}
        folder.save(done, groups, state)

    def restore(self, saved: Checkpoint | None) -> int:
        """Go back to a checkpoint; return the updates done by then."""
        if saved is None:
            return 0
        for name, module in self.modules.items():
            module.load_state_dict(saved.groups[name])
        if self.optimizer is not None:
            checkpoint.restore_optimizer(self.optimizer, saved.groups["optimizer"])
        for name, record in saved.state["best"].items():
            self.best[name] = Best(**record, weights=dict(saved.groups[f"best-{name}"]))
        self.at, self.scores = saved.state["at"], dict(saved.state["scores"])
        self.losses = list(saved.state["losses"])
        return saved.step


def fit(
    state: State,
    plan: Plan,
    item: Callable[[tuple[int, int]], Any],
    step: Callable[[Any, int], float],
    learning_rate: Callable[[int], float],
    validate: Callable[[], Iterable[tuple[str, float]]],
    folder: RunFolder,
) -> dict[str, Any] | None:
    """Train from the newest checkpoint to the last update; every rank calls it.

    Args:
        item: gives what a batch has of a key (epoch, image); runs in loader processes.
        step: does one update, given a batch and the number of updates done; returns its loss.
        learning_rate: of an update, for `state.optimizer` and the log.
        validate: scores the candidates of `state` on the validation split, alike on every rank.

    Returns:
        None at the end; what to report if the minutes are up before.

    Raises:
        DivergedError: the loss is not finite.
        SynclrError: a batch cannot be had; the work is saved.
        KeyboardInterrupt: on SIGINT or SIGTERM; the work is saved.
    """
    rt, steps = folder.runtime, plan.steps
    start = state.restore(folder.resume())
    with (
        StopFlag(plan.stop_after_minutes) as stop,
        console.progress(folder.kind, steps, done=start, unit="step") as meter,
    ):
        ahead = _batches(plan, item, start, rt)
        for number in range(start, steps):
            batch = _next(ahead, number, state, folder)
            lr = learning_rate(number)
            if state.optimizer is not None:
                optim.set_learning_rate(state.optimizer.param_groups, lr)
            loss = step(batch, number)
            if not math.isfinite(loss):
                raise DivergedError(f"the loss of step {number} is {loss}", do=plan.remedy)
            state.losses.append(loss)
            meter.say(loss=loss, lr=lr)
            meter.advance()

            done = number + 1
            if done % plan.evaluate_steps == 0 or done == steps:
                state.select(done, dict(validate()))
                folder.log(_line(state, plan, lr))
                state.losses.clear()
            stopping = rt.any(stop.requested)
            if stopping or done % plan.save_steps == 0 or done == steps:
                state.save(done, folder)
            if stopping and rt.any(stop.signalled):
                raise KeyboardInterrupt
            if stopping and done < steps:
                console.note(f"stopped after {done} of {steps} steps; the same command continues")
                return folder.unfinished(done, steps)
    return None


def require_fit(stage: str, batch_size: int, opened: Backbone, images: LabelledDataset) -> None:
    """Check what every evaluation that trains needs.

    Raises:
        UsageError: a batch is more than the training images, or patches do not fill the image.
    """
    n = len(images.splits["train"])
    if batch_size > n:
        raise UsageError(
            f"{stage}.batch_size", got=batch_size, expected=f"at most the {n} training images"
        )
    if opened.image_size % opened.patch_size:
        raise UsageError(
            f"{stage}.image_size",
            got=opened.image_size,
            expected=f"a multiple of the patch, {opened.patch_size}",
        )


def _batches(
    plan: Plan, item: Callable[[tuple[int, int]], Any], start: int, rt: Runtime
) -> Iterator[Any]:
    order = loader.EpochOrder(
        plan.images, plan.batch_size,
        seed=plan.seed, start=start, steps=plan.steps, rank=rt.rank, world=rt.world,
    )  # fmt: skip
    return loader.load(item, order, workers=plan.workers, pin=rt.is_cuda)


def _next(ahead: Iterator[Any], number: int, state: State, folder: RunFolder) -> Any:
    """Return the next batch; if a rank has none, save and raise its error on every rank."""
    batch, error = None, None
    try:
        batch = next(ahead)
    except SynclrError as e:  # an image does not decode, a loader process was killed
        error = e
    if folder.runtime.any(error is not None):
        state.save(number, folder)
        folder.runtime.raise_any(error)
    return batch


def _line(state: State, plan: Plan, lr: float) -> dict[str, Any]:
    line: dict[str, Any] = {"step": state.at}
    if plan.epoch_steps:
        line["epoch"] = state.at // plan.epoch_steps
    mean = sum(state.losses) / len(state.losses)
    return {**line, "lr": lr, "train_loss": mean, **state.scores}
