"""The ImageNet protocol (Table 13): a linear layer trained by SGD on augmented views.

Every learning rate of the sweep has a classifier of its own, all trained in the same pass over the
images: the backbone sees each view once. In that pass there are two of each: one that never
learns from the validation split and is graded on it, by which rate and epoch are chosen, and one
that learns from train and validation, which is the result. So nothing is chosen by what it was
trained on, and nothing is wasted. The last epoch is reported too.

    views [B, 3, S, S] --frozen ViT--> cls [B, D] --R linear layers--> logits [R, B, K]

Shapes: B images of a batch, S pixels, D features, K classes, R learning rates.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, v2

from synclr_cli import rng
from synclr_cli.data.labelled import LabelledDataset
from synclr_cli.errors import DataError, UsageError
from synclr_cli.learning import (
    backbone as backbones,
    loader,
    runtime,
    schedules,
    supervised,
    transforms,
)
from synclr_cli.learning.backbone import Backbone
from synclr_cli.learning.supervised import Plan, State
from synclr_cli.learning.transforms import EvalTransform
from synclr_cli.linear_probe.protocols import Case, Outcome, graded

MOMENTUM = 0.9
INITIAL_STD = 0.01  # of the weights, as released
NORM_EPS = 1e-6  # of the batch norm without affine parameters, as released
EVALUATE_EPOCHS = 10  # between looks at the validation split, as released
SCORE = "validation"
CROP_AREA = (0.08, 1.0)  # of the training crop, share of the image
TEST_CROP = 224 / 256  # side of the test crop / resized shorter side


class Heads(nn.Module):
    """R linear layers on the same features, and the momenta of their SGD."""

    def __init__(self, rates: int, width: int, classes: int, *, batch_norm: bool, seed: int):
        super().__init__()
        generator = rng.torch_generator("linear-probe.sgd order", seed)
        weight = torch.randn(width, classes, generator=generator) * INITIAL_STD
        self.weight = nn.Parameter(weight.repeat(rates, 1, 1))  # [R, D, K], all start alike
        self.bias = nn.Parameter(torch.zeros(rates, 1, classes))
        self.norm = nn.BatchNorm1d(width, eps=NORM_EPS, affine=False) if batch_norm else None
        self.weight_momentum: Tensor
        self.bias_momentum: Tensor
        self.rate: Tensor
        self.register_buffer("weight_momentum", torch.zeros_like(self.weight))
        self.register_buffer("bias_momentum", torch.zeros_like(self.bias))
        self.register_buffer("rate", torch.zeros((), dtype=torch.long))  # index of the best one

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [R, B, K] of features [B, D]."""
        x = x if self.norm is None else self.norm(x)
        return torch.baddbmm(self.bias, x.expand(len(self.weight), -1, -1), self.weight)

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
        momenta = [self.weight_momentum, self.bias_momentum]
        gradients = torch.autograd.grad(losses.sum(), parameters)
        with torch.no_grad():
            for p, v, g in zip(parameters, momenta, gradients, strict=True):
                v.mul_(MOMENTUM).add_(g)
                p.sub_(rates[:, None, None] * v)
        return losses.detach()


def sgd(case: Case) -> Outcome:
    """Train every learning rate at once and grade the classifier that validation chooses.

    Raises:
        UsageError: a batch does not part evenly among the ranks.
        DataError: train and validation have fewer images than one batch.
        DivergedError: the loss of every learning rate is not finite.
        KeyboardInterrupt: interrupted; the work is saved and the same call resumes it.
    """
    config, rt = case.config, case.rt
    n = sum(len(case.data.splits[name]) for name in ("train", "val"))
    epoch_steps = _steps_per_epoch(case, n)
    model = case.backbone.model.to(rt.device).eval()
    heads = _heads(case, model)
    choosing, result = heads["choosing"], heads["result"]
    # Of equal scores the earlier moment is best, and of equal rates the first.
    state = State(heads, candidates={SCORE: "result"}, latest=False)

    def validate() -> Iterator[tuple[str, float]]:
        truth = case.data.splits["val"].labels
        scores = [case.score(truth, classes) for classes in _predict(case, model, choosing, "val")]
        result.rate.fill_(int(np.argmax(scores)))  # kept with the weights it speaks of
        yield SCORE, max(scores)

    plan = Plan(
        images=n,
        batch_size=config.sgd_batch_size,
        seed=config.seed,
        workers=config.workers,
        steps=config.epochs * epoch_steps,
        evaluate_steps=EVALUATE_EPOCHS * epoch_steps,
        save_steps=epoch_steps,
        epoch_steps=epoch_steps,
        remedy="lower linear-probe.base_lrs",
    )
    highest = max(config.base_lrs) * config.sgd_batch_size / 256
    supervised.fit(
        state, plan, functools.partial(training_item, case.data, case.backbone, config.seed),
        _step(case, model, choosing, result, plan.steps),
        lambda number: highest * schedules.cosine(number, plan.steps, 1.0, 0.0),
        validate, case.folder,
    )  # fmt: skip
    return _conclude(case, model, state)


def _heads(case: Case, model: nn.Module) -> dict[str, Heads]:
    """Return the classifiers that choose and those that are the result, alike at the start."""
    side, device = case.backbone.image_size, case.rt.device
    with torch.inference_mode():
        features = backbones.cls_features(model, torch.zeros(1, 3, side, side, device=device))
    return {
        name: Heads(
            len(case.config.base_lrs), features.shape[1], case.classes,
            batch_norm=case.config.batch_norm, seed=case.config.seed,
        ).to(device)
        for name in ("choosing", "result")
    }  # fmt: skip


def _step(
    case: Case, model: nn.Module, choosing: Heads, result: Heads, steps: int
) -> Callable[[tuple[Tensor, Tensor, Tensor], int], float]:
    """Return the update of a batch of views; its loss is the lowest of all rates."""
    rt, base_lrs = case.rt, torch.tensor(case.config.base_lrs, device=case.rt.device)
    peaks = base_lrs * case.config.sgd_batch_size / 256  # [R]

    def step(batch: tuple[Tensor, Tensor, Tensor], number: int) -> float:
        views, labels, held_out = batch
        x = rt.gather(_features(case, model, views))  # [B, D]
        y, held = rt.gather(labels.to(rt.device)), rt.gather(held_out.to(rt.device)) > 0  # [B]
        rates = peaks * schedules.cosine(number, steps, 1.0, 0.0)  # [R]
        losses = result.learn(x, y, rates)  # [R]
        if (~held).sum() > 1:  # a batch norm needs two
            choosing.learn(x[~held], y[~held], rates)
        return float(losses.nan_to_num(math.inf).min())

    return step


def _steps_per_epoch(case: Case, n: int) -> int:
    batch, world = case.config.sgd_batch_size, case.rt.world
    if batch % world:
        raise UsageError(
            "linear-probe.sgd_batch_size", got=batch, expected=f"a multiple of the {world} ranks"
        )
    if batch > n:
        raise DataError(
            f"{case.data.spec}: {n} images to train on",
            expected=f"a batch of linear-probe.sgd_batch_size = {batch} or more",
        )
    return n // batch


def training_item(
    data: LabelledDataset, backbone: Backbone, seed: int, key: tuple[int, int]
) -> tuple[Tensor, int, int]:
    """Return the view [3, S, S] of image i in an epoch, its label, and 1 if it is held out.

    Images are those of train, then those of validation, which are held out. The view is a
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


def _augment(image: Image.Image, size: int) -> Image.Image:
    cropped = v2.RandomResizedCrop(size, scale=CROP_AREA, interpolation=InterpolationMode.BILINEAR)(
        image
    )
    return v2.RandomHorizontalFlip()(cropped)


def _features(case: Case, model: nn.Module, views: Tensor) -> Tensor:
    """Return cls features [B, D] float32, a few images at a time."""
    with torch.inference_mode(), case.rt.autocast():
        parts = [
            backbones.cls_features(model, part.to(case.rt.device)).float()
            for part in views.split(case.config.batch_size)
        ]
    return torch.cat(parts).clone()  # [B, D]


def _predict(case: Case, model: nn.Module, heads: Heads, name: str) -> np.ndarray:
    """Return every head's classes for a split, [R, n]; ranks share the images."""
    split, view, rt = case.data.splits[name], test_view(case.backbone), case.rt
    heads.eval()
    classes = torch.zeros(len(heads.weight), len(split), dtype=torch.long, device=rt.device)
    batches = loader.in_batches(range(rt.rank, len(split), rt.world), case.config.batch_size)
    loaded = loader.load(functools.partial(view.of, split), batches, workers=case.config.workers)
    for rows, views in zip(batches, loaded, strict=True):
        with torch.no_grad():
            classes[:, rows] = heads(_features(case, model, views)).argmax(-1)  # [R, B]
    return rt.sum(classes).cpu().numpy()


def _conclude(case: Case, model: nn.Module, state: State) -> Outcome:
    truth = case.data.splits["test"].labels
    best, result = state.best[SCORE], state.modules["result"]
    rate = int(best.weights["rate"])
    last = _predict(case, model, cast(Heads, result), "test")[rate]  # [n]
    selected = state.selected(SCORE)
    chosen = last
    if selected is not result:
        chosen = _predict(case, model, cast(Heads, selected), "test")[rate]  # [n]
    n = sum(len(case.data.splits[name]) for name in ("train", "val"))
    return graded(
        case,
        truth,
        chosen,
        {
            "validation": best.score,
            f"{case.config.metric}_last": case.score(truth, last),
        },
        {
            "base_lr": case.config.base_lrs[rate],
            "selected_epoch": best.at // _steps_per_epoch(case, n),
            "epochs": case.config.epochs,
        },
    )
