"""The ImageNet protocol (Table 13): a linear layer trained by SGD on augmented views.

Every learning rate of the sweep has a classifier of its own, all trained in the same pass over the
pictures: the backbone sees each view once. Which classifier, and after which epoch, is chosen on
the validation split; the last epoch is reported too.

    views [B, 3, S, S] --frozen ViT--> cls [B, D] --R linear layers--> logits [R, B, K]

Shapes: B pictures of a batch, S pixels, D features, K classes, R learning rates.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, v2

from synclr_cli import console, draws
from synclr_cli.errors import DataError, DivergedError
from synclr_cli.learning import backbone as backbones, images, loading, runtime, schedules
from synclr_cli.learning.backbone import Backbone
from synclr_cli.learning.checkpoint import Checkpoint
from synclr_cli.learning.images import EvalTransform
from synclr_cli.learning.labelled import Split
from synclr_cli.learning.run_folder import RunFolder
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
        generator = torch.Generator().manual_seed(draws.seed("linear-probe.sgd order", seed))
        weight = torch.randn(width, classes, generator=generator) * INITIAL_STD
        self.weight = nn.Parameter(weight.repeat(rates, 1, 1))  # [R, D, K], all start alike
        self.bias = nn.Parameter(torch.zeros(rates, 1, classes))
        self.norm = nn.BatchNorm1d(width, eps=1e-6, affine=False) if batch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [R, B, K] of features [B, D]."""
        return torch.baddbmm(self.bias, self.norm(x).expand(len(self.weight), -1, -1), self.weight)


@dataclass
class _Best:
    """The classifier and the epoch that validation likes most so far."""

    score: float = -1.0
    epoch: int = 0
    rate: int = 0  # index
    tensors: dict[str, Tensor] = field(default_factory=dict)


def sgd(case: Case) -> Outcome:
    """Train every learning rate at once and grade the classifier that validation chooses.

    Raises:
        DataError: train has fewer pictures than one batch.
        DivergedError: the loss of every learning rate is not finite.
        KeyboardInterrupt: interrupted; the work is saved and the same call continues it.
    """
    # Open: where the work was.
    config, rt, train = case.config, case.rt, case.data.splits["train"]
    folder = RunFolder(case.out, "linear-probe", case.made, rt)
    steps_per_epoch = len(train) // config.sgd_batch_size
    if not steps_per_epoch:
        raise DataError(
            f"{case.data.spec}: {len(train)} train pictures",
            expected=f"a batch of linear-probe.sgd_batch_size = {config.sgd_batch_size} or more",
        )
    steps = config.epochs * steps_per_epoch

    # Build.
    model = case.backbone.model.to(rt.device).eval()
    with torch.inference_mode():
        side = case.backbone.image_size
        width = backbones.cls_features(model, torch.zeros(1, 3, side, side, device=rt.device))
    heads = Heads(
        len(config.base_lrs),
        width.shape[1],
        case.classes,
        batch_norm=config.batch_norm,
        seed=config.seed,
    ).to(rt.device)
    momenta = [torch.zeros_like(p) for p in heads.parameters()]
    best = _Best()
    start = _restore(folder.resume(), heads, momenta, best)
    peaks = torch.tensor(config.base_lrs, device=rt.device)[:, None, None]  # [R, 1, 1]
    peaks = peaks * config.sgd_batch_size / 256

    # Loop.
    keys = loading.EpochOrder(
        len(train), config.sgd_batch_size, seed=config.seed, start=start, steps=steps,
        rank=0, world=1,
    )  # fmt: skip
    make = functools.partial(training_item, train, case.backbone, config.seed)
    with (
        runtime.StopFlag() as stop,
        console.progress("linear probe", steps, done=start, unit="step") as meter,
    ):
        batches = loading.load(make, keys, workers=config.workers)
        for step, (views, labels) in enumerate(batches, start):
            x = _features(case, model, views)
            heads.train()
            logits = heads(x)  # [R, B, K]
            targets = labels.to(rt.device).expand(len(logits), -1)
            losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(1)
            if not torch.isfinite(losses).any():
                raise DivergedError(
                    f"no learning rate has a finite loss at step {step}",
                    do="lower linear-probe.base_lrs",
                )
            gradients = torch.autograd.grad(losses.sum(), list(heads.parameters()))
            rate = schedules.cosine(step, steps, 1.0, 0.0)
            with torch.no_grad():
                for p, v, g in zip(heads.parameters(), momenta, gradients, strict=True):
                    v.mul_(MOMENTUM).add_(g)
                    p.sub_(peaks * rate * v)
            meter.say(loss=float(losses.detach().nan_to_num(math.inf).min()))
            meter.advance()

            epoch, inside = divmod(step + 1, steps_per_epoch)
            if not inside and (epoch % LOOK_EPOCHS == 0 or epoch == config.epochs):
                _look(case, model, heads, epoch, best)
                folder.log({"step": step + 1, "epoch": epoch, "validation_best": best.score})
            if stop.requested or not inside:
                _save(folder, step + 1, heads, momenta, best)
            if stop.signalled:
                raise KeyboardInterrupt

    # Write: the test split, for the last epoch and the chosen one.
    return _conclude(case, model, heads, best)


def training_item(
    split: Split, backbone: Backbone, seed: int, key: tuple[int, int]
) -> tuple[Tensor, int]:
    """Return the view [3, S, S] that picture i gives in an epoch, and its label.

    The view is a function of (seed, epoch, i): a crop of 8 to 100 % of the area, bilinear, flipped
    half the time.
    """
    epoch, i = key
    with runtime.seeded("linear-probe.augmentation", seed, epoch, i):
        view = _augment(split.image(i), backbone.image_size)
    return images.normalise(view, backbone.mean, backbone.std), int(split.labels[i])


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
    """Return every head's classes for a split, [R, n]."""
    split, view = case.data.splits[name], test_view(case.backbone)
    heads.eval()
    found = []
    batches = loading.in_batches(range(len(split)), case.config.batch_size)
    for views in loading.load(
        functools.partial(_view, split, view), batches, workers=case.config.workers
    ):
        with torch.no_grad():
            found.append(heads(_features(case, model, views)).argmax(-1).cpu())  # [R, B]
    return torch.cat(found, 1).numpy()


def _view(split: Split, view: EvalTransform, i: int) -> Tensor:
    return view(split.image(i))


def _look(case: Case, model: nn.Module, heads: Heads, epoch: int, best: _Best) -> None:
    """Grade every head on validation and keep the state if one is better than all before."""
    truth = case.data.splits["val"].labels
    scores = [case.score(truth, found) for found in _predict(case, model, heads, "val")]
    if max(scores) > best.score:
        best.score, best.rate, best.epoch = max(scores), int(np.argmax(scores)), epoch
        best.tensors = {name: t.detach().clone() for name, t in heads.state_dict().items()}


def _save(folder: RunFolder, step: int, heads: Heads, momenta: list[Tensor], best: _Best) -> None:
    folder.save(
        step,
        {
            "heads": heads.state_dict(),
            "momenta": {str(i): v for i, v in enumerate(momenta)},
            "best": best.tensors,
        },
        {"score": best.score, "epoch": best.epoch, "rate": best.rate},
    )


def _restore(found: Checkpoint | None, heads: Heads, momenta: list[Tensor], best: _Best) -> int:
    """Put everything back where a checkpoint was; return its step, 0 without one."""
    if found is None:
        return 0
    heads.load_state_dict(dict(found.groups["heads"]))
    for i, v in enumerate(momenta):
        v.copy_(found.groups["momenta"][str(i)])
    best.tensors = dict(found.groups.get("best", {}))
    best.score, best.epoch, best.rate = (found.state[k] for k in ("score", "epoch", "rate"))
    return found.step


def _conclude(case: Case, model: nn.Module, heads: Heads, best: _Best) -> Outcome:
    truth = case.data.splits["test"].labels
    last = _predict(case, model, heads, "test")  # [R, n]
    heads.load_state_dict({name: t.to(case.rt.device) for name, t in best.tensors.items()})
    chosen = _predict(case, model, heads, "test")[best.rate]  # [n]
    return graded(
        case,
        truth,
        chosen,
        {
            "validation": best.score,
            f"{case.config.metric}_last": case.score(truth, last[best.rate]),
        },
        {
            "base_lr": case.config.base_lrs[best.rate],
            "selected_epoch": best.epoch,
            "epochs": case.config.epochs,
        },
    )
