"""The ImageNet protocol (Table 13): a linear layer trained by SGD on augmented views.

Every learning rate of the sweep has a classifier of its own, all trained in the same pass over the
pictures: the backbone sees each view once. In that pass there are two of each: one that never
learns from the validation split and is graded on it, by which rate and epoch are chosen, and one
that learns from train and validation, which is the result. So nothing is chosen by what it was
trained on, and nothing is wasted. The last epoch is reported too.

    views [B, 3, S, S] --frozen ViT--> cls [B, D] --R linear layers--> logits [R, B, K]

Shapes: B pictures of a batch, S pixels, D features, K classes, R learning rates.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, v2

from synclr_cli import console, rng
from synclr_cli.data.labelled import Labelled
from synclr_cli.errors import DataError, DivergedError, UsageError
from synclr_cli.learning import (
    backbone as backbones,
    loader,
    runtime,
    schedules,
    supervised,
    transforms,
)
from synclr_cli.learning.backbone import Backbone
from synclr_cli.learning.checkpoint import Checkpoint
from synclr_cli.learning.run_folder import RunFolder
from synclr_cli.learning.transforms import EvalTransform
from synclr_cli.linear_probe.protocols import Case, Outcome, graded

MOMENTUM = 0.9
INITIAL_STD = 0.01  # of the weights, as released
LOOK_EPOCHS = 10  # between looks at the validation split, as released
CROP_AREA = (0.08, 1.0)  # of the training crop, share of the picture
TEST_CROP = 224 / 256  # side of the test crop / resized shorter side


class Heads(nn.Module):
    """R linear layers on the same features."""

    def __init__(self, rates: int, width: int, classes: int, *, batch_norm: bool, seed: int):
        super().__init__()
        generator = rng.torch_generator("linear-probe.sgd order", seed)
        weight = torch.randn(width, classes, generator=generator) * INITIAL_STD
        self.weight = nn.Parameter(weight.repeat(rates, 1, 1))  # [R, D, K], all start alike
        self.bias = nn.Parameter(torch.zeros(rates, 1, classes))
        self.norm = nn.BatchNorm1d(width, eps=1e-6, affine=False) if batch_norm else nn.Identity()
        self.momenta = [torch.zeros_like(p) for p in (self.weight, self.bias)]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [R, B, K] of features [B, D]."""
        return torch.baddbmm(self.bias, self.norm(x).expand(len(self.weight), -1, -1), self.weight)

    def learn(self, x: Tensor, labels: Tensor, rates: Tensor) -> Tensor:
        """Take one SGD step on features [B, D]; return each head's loss before it, [R].

        Args:
            rates: [R] learning rates.
        """
        self.train()
        logits = self(x)  # [R, B, K]
        targets = labels.expand(len(logits), -1)
        losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(1)  # [R]
        parameters = [self.weight, self.bias]
        gradients = torch.autograd.grad(losses.sum(), parameters)
        with torch.no_grad():
            for p, v, g in zip(parameters, self.momenta, gradients, strict=True):
                v.mul_(MOMENTUM).add_(g)
                p.sub_(rates[:, None, None] * v)
        return losses.detach()

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, statistics and momenta, to be saved."""
        return {**self.state_dict(), **{f"momentum{i}": v for i, v in enumerate(self.momenta)}}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take `tensors` back."""
        momenta = [tensors.pop(f"momentum{i}") for i in range(len(self.momenta))]
        self.load_state_dict(tensors)
        for v, saved in zip(self.momenta, momenta, strict=True):
            v.copy_(saved)


class _Moment:
    """All that changes while training, and how it is saved."""

    def __init__(self, case: Case, width: int):
        self.choosing, self.result = (
            Heads(
                len(case.config.base_lrs), width, case.classes,
                batch_norm=case.config.batch_norm, seed=case.config.seed,
            )
            for _ in range(2)
        )  # fmt: skip
        for heads in (self.choosing, self.result):
            heads.to(case.rt.device)
            heads.momenta = [v.to(case.rt.device) for v in heads.momenta]
        self.best = supervised.Best()  # the result's weights when the choosing did best
        self.rate = 0  # index of the rate that did

    def look(self, epoch: int, scores: list[float]) -> None:
        """Take in each rate's grade on validation; an earlier epoch stays if it was as good."""
        if max(scores) > self.best.score:
            self.best.take(epoch, max(scores), self.result)
            self.rate = int(np.argmax(scores))

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return what a checkpoint keeps as tensors."""
        return {
            "choosing": self.choosing.tensors(),
            "result": self.result.tensors(),
            "best": self.best.weights,
        }

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps as JSON."""
        return {"best": self.best.state(), "rate": self.rate}

    def restore(self, found: Checkpoint | None) -> int:
        """Go back to a checkpoint; return the steps done by then."""
        if found is None:
            return 0
        self.choosing.restore(dict(found.groups["choosing"]))
        self.result.restore(dict(found.groups["result"]))
        self.best = supervised.Best(
            **found.state["best"], weights=dict(found.groups.get("best", {}))
        )
        self.rate = found.state["rate"]
        return found.step


def sgd(case: Case) -> Outcome:
    """Train every learning rate at once and grade the classifier that validation chooses.

    Raises:
        UsageError: a batch does not part evenly among the ranks.
        DataError: train and validation have fewer pictures than one batch.
        DivergedError: the loss of every learning rate is not finite.
        KeyboardInterrupt: interrupted; the work is saved and the same call continues it.
    """
    # Open: where the work was.
    config, rt = case.config, case.rt
    folder = RunFolder(case.out, "linear-probe", case.made, rt)
    n = sum(len(case.data.splits[name]) for name in ("train", "val"))
    steps_per_epoch = _steps_per_epoch(case, n)
    steps = config.epochs * steps_per_epoch

    # Build.
    model = case.backbone.model.to(rt.device).eval()
    with torch.inference_mode():
        side = case.backbone.image_size
        width = backbones.cls_features(model, torch.zeros(1, 3, side, side, device=rt.device))
    now = _Moment(case, width.shape[1])
    start = now.restore(folder.resume())
    peaks = torch.tensor(config.base_lrs, device=rt.device) * config.sgd_batch_size / 256  # [R]

    # Loop.
    keys = loader.EpochOrder(
        n, config.sgd_batch_size, seed=config.seed, start=start, steps=steps,
        rank=rt.rank, world=rt.world,
    )  # fmt: skip
    make = functools.partial(training_item, case.data, case.backbone, config.seed)
    with (
        runtime.StopFlag() as stop,
        console.progress("linear probe", steps, done=start, unit="step") as meter,
    ):
        batches = loader.load(make, keys, workers=config.workers)
        for step, (views, labels, held_out) in enumerate(batches, start):
            x = rt.gather(_features(case, model, views))  # [B, D]
            y, held = rt.gather(labels.to(rt.device)), rt.gather(held_out.to(rt.device)) > 0  # [B]
            rates = peaks * schedules.cosine(step, steps, 1.0, 0.0)  # [R]
            losses = now.result.learn(x, y, rates)  # [R]
            if not torch.isfinite(losses).any():
                raise DivergedError(
                    f"no learning rate has a finite loss at step {step}",
                    do="lower linear-probe.base_lrs",
                )
            if (~held).sum() > 1:  # a batch norm needs two
                now.choosing.learn(x[~held], y[~held], rates)
            meter.say(loss=float(losses.nan_to_num(math.inf).min()))
            meter.advance()

            epoch, inside = divmod(step + 1, steps_per_epoch)
            if not inside and (epoch % LOOK_EPOCHS == 0 or epoch == config.epochs):
                truth = case.data.splits["val"].labels
                found = _predict(case, model, now.choosing, "val")
                now.look(epoch, [case.score(truth, each) for each in found])
                folder.log({"step": step + 1, "epoch": epoch, "validation": now.best.score})
            supervised.pause(folder, stop, now, done=step + 1, steps=steps, due=not inside)

    # Write: the test split, for the last epoch and the chosen one.
    return _conclude(case, model, now)


def _steps_per_epoch(case: Case, n: int) -> int:
    batch, world = case.config.sgd_batch_size, case.rt.world
    if batch % world:
        raise UsageError(
            "linear-probe.sgd_batch_size", got=batch, expected=f"a multiple of the {world} ranks"
        )
    if batch > n:
        raise DataError(
            f"{case.data.spec}: {n} pictures to train on",
            expected=f"a batch of linear-probe.sgd_batch_size = {batch} or more",
        )
    return n // batch


def training_item(
    data: Labelled, backbone: Backbone, seed: int, key: tuple[int, int]
) -> tuple[Tensor, int, int]:
    """Return the view [3, S, S] of picture i in an epoch, its label, and 1 if it is held out.

    Pictures are those of train, then those of validation, which are held out. The view is a
    function of (seed, epoch, i): a crop of 8 to 100 % of the area, bilinear, flipped half the time.
    """
    epoch, i = key
    held_out = i >= len(data.splits["train"])
    split = data.splits["val" if held_out else "train"]
    at = i - len(data.splits["train"]) if held_out else i
    with runtime.seeded("linear-probe.augmentation", seed, epoch, i):
        view = _augment(split.image(at), backbone.image_size)
    x = transforms.normalise(view, backbone.mean, backbone.std)
    return x, int(split.labels[at]), int(held_out)


def test_view(backbone: Backbone) -> EvalTransform:
    """Return the protocol's test view: shorter side to 256 for a crop of 224, bilinear."""
    return EvalTransform(
        size=backbone.image_size,
        resize=round(backbone.image_size / TEST_CROP),
        mean=backbone.mean,
        std=backbone.std,
        interpolation="bilinear",
    )


def _augment(picture: Image.Image, size: int) -> Image.Image:
    cropped = v2.RandomResizedCrop(size, scale=CROP_AREA, interpolation=InterpolationMode.BILINEAR)(
        picture
    )
    return v2.RandomHorizontalFlip()(cropped)


def _features(case: Case, model: nn.Module, views: Tensor) -> Tensor:
    """Return cls features [B, D] float32, a few pictures at a time."""
    with torch.inference_mode(), case.rt.autocast():
        parts = [
            backbones.cls_features(model, part.to(case.rt.device)).float()
            for part in views.split(case.config.batch_size)
        ]
    return torch.cat(parts).clone()  # [B, D]


def _predict(case: Case, model: nn.Module, heads: Heads, name: str) -> np.ndarray:
    """Return every head's classes for a split, [R, n]; ranks share the pictures."""
    split, view, rt = case.data.splits[name], test_view(case.backbone), case.rt
    heads.eval()
    found = torch.zeros(len(heads.weight), len(split), dtype=torch.long, device=rt.device)
    batches = loader.in_batches(range(rt.rank, len(split), rt.world), case.config.batch_size)
    loaded = loader.load(functools.partial(view.of, split), batches, workers=case.config.workers)
    for rows, views in zip(batches, loaded, strict=True):
        with torch.no_grad():
            found[:, rows] = heads(_features(case, model, views)).argmax(-1)  # [R, B]
    return rt.sum(found).cpu().numpy()


def _conclude(case: Case, model: nn.Module, now: _Moment) -> Outcome:
    truth = case.data.splits["test"].labels
    last = _predict(case, model, now.result, "test")  # [R, n]
    weights = {name: t.to(case.rt.device) for name, t in now.best.weights.items()}
    now.result.load_state_dict(weights)
    chosen = _predict(case, model, now.result, "test")[now.rate]  # [n]
    return graded(
        case,
        truth,
        chosen,
        {
            "validation": now.best.score,
            f"{case.config.metric}_last": case.score(truth, last[now.rate]),
        },
        {
            "base_lr": case.config.base_lrs[now.rate],
            "selected_epoch": now.best.at,
            "epochs": case.config.epochs,
        },
    )
