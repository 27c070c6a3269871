"""Judge a backbone by training all of it on labelled pictures (Table 14).

A linear classifier on the cls token, layer-wise learning rates, RandAugment, erasing, mixup and
cutmix, label smoothing, stochastic depth, a weight EMA. After each epoch the trained weights and
their average meet the validation split; the best moment is selected there, and only then does the
test split come out. The last moment and the selected one are both reported.

    backbone + data --run--> out/{report.json, model.safetensors, metrics.jsonl}

Shapes: B pictures of this rank, S pixels, K classes, n pictures of a split.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.loss import SoftTargetCrossEntropy
from timm.models import VisionTransformer
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from synclr_cli import console, rng
from synclr_cli.config import FinetuneConfig
from synclr_cli.data import labelled
from synclr_cli.data.labelled import Labelled
from synclr_cli.errors import UsageError
from synclr_cli.finetune import recipe
from synclr_cli.finetune.mixing import Mixing
from synclr_cli.learning import (
    backbone as backbones,
    checkpoint,
    confusions,
    metrics,
    optim,
    reports,
    runtime,
    supervised,
)
from synclr_cli.learning.backbone import Backbone
from synclr_cli.learning.run_folder import RunFolder
from synclr_cli.learning.supervised import Best

PLAIN, AVERAGED = "plain", "ema"  # the trained weights, and their moving average


def run(
    config: FinetuneConfig, backbone: str, data: str, out: Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Fine-tune a backbone and return its report.

    Raises:
        UsageError: a setting does not fit the data or the backbone, or `out` is another run's.
        DataError: backbone or data cannot be read, or the data has one class.
        DivergedError: the loss is not finite.
        KeyboardInterrupt: interrupted; the work is saved and the same call continues it.
    """
    with runtime.started(config.precision) as rt:
        # Open: what is judged, on what, and what was done of it.
        pictures = labelled.open_data(
            data, masks=False, validation_share=config.validation_share, seed=config.seed
        )
        opened = backbones.open_backbone(
            backbone, image_size=config.image_size, drop_path=config.drop_path, seed=config.seed
        )
        steps_per_epoch = _steps_per_epoch(config, opened, pictures, rt.world)
        steps = config.epochs * steps_per_epoch
        view = recipe.train_view(config, opened)
        folder = RunFolder(out, "finetune", reports.header(config, opened, pictures), rt)
        if (report := folder.finished(overwrite=overwrite)) is not None:
            return report

        # Build: classifier, its average, optimiser; then back to where they were.
        now = _Moment(
            recipe.classifier(opened.model, len(pictures.classes), config.seed).to(rt.device),
            config,
        )
        start = now.restore(folder.resume())
        trained = rt.wrap(now.model)
        mixing, loss_of = Mixing(config, len(pictures.classes)), SoftTargetCrossEntropy()
        grade = functools.partial(_grade, config, pictures, opened, rt)

        # Loop: a batch an update, the validation split an epoch.
        with (
            runtime.StopFlag(config.stop_after_minutes) as stop,
            console.progress("finetune", steps, done=start, unit="step") as meter,
        ):
            make = functools.partial(recipe.train_item, pictures.splits["train"], view, config.seed)
            batches = supervised.batches(config, pictures, make, rt, start=start, steps=steps)
            for step, (images, labels) in enumerate(batches, start):
                lr = recipe.learning_rate(config, step, steps_per_epoch)
                optim.set_learning_rate(now.optimizer.param_groups, lr)
                images, targets = mixing(images.to(rt.device), labels.to(rt.device), step, rt.rank)
                drawn = rng.seed("finetune.drop path", config.seed, step, rt.rank)
                runtime.seed_everything(drawn)
                now.model.train()
                now.optimizer.zero_grad(set_to_none=True)
                value, piece = 0.0, config.micro_batch or len(images)
                for some, wanted in zip(images.split(piece), targets.split(piece), strict=True):
                    with rt.autocast():
                        loss = loss_of(trained(some), wanted) * (len(some) / len(images))
                    loss.backward()
                    value += loss.item()
                supervised.require_finite(value, step, "lower finetune.base_lr")
                now.optimizer.step()
                now.average.update(now.model, step + 1 if config.weight_ema_warmup else None)
                now.losses.append(value)
                meter.say(loss=value, lr=lr)
                meter.advance()

                epoch, inside = divmod(step + 1, steps_per_epoch)
                if not inside:
                    now.look(epoch, grade("val", now.weights()))
                    folder.log({"step": step + 1, "epoch": epoch, "lr": lr, **now.summary()})
                    now.losses.clear()
                paused = supervised.pause(
                    folder, stop, now, done=step + 1, steps=steps, due=not inside
                )
                if paused is not None:
                    return paused

        # Write: the test split, for the last weights and the selected ones.
        return _conclude(config, now, grade, folder, pictures, opened)


class _Moment:
    """All that changes while training, and how it is saved."""

    def __init__(self, model: VisionTransformer, config: FinetuneConfig):
        self.model = model
        self.average = ModelEmaV3(
            model, decay=config.weight_ema, use_warmup=config.weight_ema_warmup
        )
        groups = optim.layer_decay_groups(
            model, decay=config.layer_decay, weight_decay=config.weight_decay
        )
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2))
        self.best = {PLAIN: Best(), AVERAGED: Best()}
        self.last = {PLAIN: 0.0, AVERAGED: 0.0}  # top-1 on the validation split
        self.losses: list[float] = []  # of this epoch

    def weights(self) -> dict[str, nn.Module]:
        """Return both kinds of weights as models."""
        return {PLAIN: self.model, AVERAGED: self.average.module}

    def look(self, epoch: int, counts: Mapping[str, Any]) -> None:
        """Take in the validation split's confusion matrices."""
        for kind, model in self.weights().items():
            self.last[kind] = metrics.top1(counts[kind])
            self.best[kind].take(epoch, self.last[kind], model)

    def summary(self) -> dict[str, float]:
        """Return the epoch's numbers for the log."""
        return {
            "train_loss": sum(self.losses) / len(self.losses),
            "val_top1": self.last[PLAIN],
            "val_top1_ema": self.last[AVERAGED],
        }

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Return what a checkpoint keeps as tensors."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.module.state_dict(),
            "optimizer": checkpoint.optimizer_tensors(self.optimizer),
            **{f"best-{kind}": best.weights for kind, best in self.best.items()},
        }

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps as JSON."""
        return {
            "best": {kind: best.state() for kind, best in self.best.items()},
            "last": self.last,
            "losses": self.losses,
        }

    def restore(self, saved: checkpoint.Checkpoint | None) -> int:
        """Go back to a checkpoint; return the updates done by then."""
        if saved is None:
            return 0
        self.model.load_state_dict(saved.groups["model"])
        self.average.module.load_state_dict(saved.groups["average"])
        checkpoint.restore_optimizer(self.optimizer, saved.groups["optimizer"])
        for kind, best in saved.state["best"].items():
            self.best[kind] = Best(**best, weights=dict(saved.groups[f"best-{kind}"]))
        self.last, self.losses = dict(saved.state["last"]), list(saved.state["losses"])
        return saved.step


def _steps_per_epoch(
    config: FinetuneConfig, opened: Backbone, pictures: Labelled, world: int
) -> int:
    supervised.require_fit("finetune", config.batch_size, opened, pictures)
    batch = config.batch_size
    mixes = config.mixup > 0 or config.cutmix > 0
    unit = world * (2 if mixes else 1)
    if batch % unit:
        why = "mixup pairs the pictures of a rank" if mixes else f"there are {world} ranks"
        raise UsageError(
            "finetune.batch_size", got=batch, expected=f"a multiple of {unit}, since {why}"
        )
    return len(pictures.splits["train"]) // batch


def _grade(
    config: FinetuneConfig,
    pictures: Labelled,
    opened: Backbone,
    rt: runtime.Runtime,
    split: str,
    models: Mapping[str, nn.Module],
) -> dict[str, Any]:
    """Return each model's confusion matrix on a split, [K, K]."""
    chosen = pictures.splits[split]
    predicted = recipe.predict(
        models, chosen, recipe.test_view(config, opened), rt,
        batch_size=max(1, config.batch_size // rt.world), workers=config.workers,
    )  # fmt: skip
    classes = len(pictures.classes)
    return {
        name: metrics.confusion(chosen.labels, each, classes) for name, each in predicted.items()
    }


def _conclude(
    config: FinetuneConfig,
    now: _Moment,
    grade: Any,
    folder: RunFolder,
    pictures: Labelled,
    opened: Backbone,
) -> dict[str, Any]:
    models = {f"last_{kind}": model for kind, model in now.weights().items()}
    for kind, best in now.best.items():
        if best.at < config.epochs:  # otherwise the last moment is the selected one
            models[f"selected_{kind}"] = copy.deepcopy(now.model)
            models[f"selected_{kind}"].load_state_dict(best.weights)
    counts = grade("test", models)
    counts = {f"selected_{kind}": counts[f"last_{kind}"] for kind in now.best} | counts
    # Which of the two kinds is the result is also for the validation split to say.
    kind = max(now.best, key=lambda k: (now.best[k].score, k == AVERAGED))
    chosen = counts[f"selected_{kind}"]
    correct = torch.zeros(int(chosen.sum()), dtype=torch.bool).numpy()
    correct[: int(chosen.trace())] = True  # the interval does not depend on their order
    report = reports.build(
        "finetune", folder.header, opened, pictures,
        metric="top1",
        scores={
            "top1": metrics.top1(chosen),
            "mean_per_class": metrics.mean_per_class(chosen),
            **{f"top1_{name}": metrics.top1(each) for name, each in counts.items()},
        },
        interval=metrics.accuracy_interval(correct, folder.header.seed),
        details={
            "seconds": folder.seconds,
            "selected": {"weights": kind, "epoch": now.best[kind].at, "by": "top1 on val"},
            "validation": {
                **{f"last_{k}": round(100 * v, 4) for k, v in now.last.items()},
                **{f"selected_{k}": round(100 * b.score, 4) for k, b in now.best.items()},
            },
            **confusions.facts(chosen, pictures.classes),
        },
    )  # fmt: skip
    if folder.runtime.is_main:
        confusions.draw(chosen, pictures.classes, folder.path / confusions.FILE)
    facts = {
        "arch": opened.arch,
        "arch_arguments": dict(opened.arguments),
        "backbone": opened.name,
        "image_size": opened.image_size,
        "mean": list(opened.mean),
        "std": list(opened.std),
        "classes": list(map(str, pictures.classes)),
    }
    return folder.finish(report, now.best[kind].weights, facts)
