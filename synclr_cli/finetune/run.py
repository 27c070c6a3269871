"""Evaluate a backbone by training all of it on labelled images (Table 14).

A linear classifier on the cls token, layer-wise learning rates, RandAugment, erasing, mixup and
cutmix, label smoothing, stochastic depth, a weight EMA. After each epoch the trained weights and
their average meet the validation split; the best moment is selected there, and only then does the
test split come out. The last moment and the selected one are both reported.

    backbone + data --run--> out/{report.json, model.safetensors, confusion.png, metrics.jsonl}

Shapes: B images of this rank, S pixels, K classes, n images of a split.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.loss import SoftTargetCrossEntropy
from timm.models import VisionTransformer
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from synclr_cli import rng
from synclr_cli.config import FinetuneConfig
from synclr_cli.data import labelled
from synclr_cli.data.labelled import LabelledDataset
from synclr_cli.errors import UsageError
from synclr_cli.finetune import recipe
from synclr_cli.finetune.mixing import Mixing
from synclr_cli.learning import (
    backbone as backbones,
    metrics,
    optim,
    reports,
    runtime,
    supervised,
)
from synclr_cli.learning.backbone import Backbone
from synclr_cli.learning.run_folder import REPORT_FILE, RunFolder
from synclr_cli.learning.runtime import Runtime
from synclr_cli.learning.supervised import Plan, State

# The validation scores of the trained weights and of their moving average, as the report has them.
PLAIN, AVERAGED = "val_top1", "val_top1_ema"
KINDS = {PLAIN: "plain", AVERAGED: "ema"}


def run(
    config: FinetuneConfig, backbone: str, data: str, out: Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Fine-tune a backbone and return its report.

    Raises:
        UsageError: a setting does not fit the data or the backbone, or `out` is another run's.
        DataError: backbone or data cannot be read, or the data has one class.
        DivergedError: the loss is not finite.
        KeyboardInterrupt: interrupted; the work is saved and the same call resumes it.
    """
    # Open: what is evaluated, on what, and whether it was before.
    images = labelled.open_data(
        data, masks=False, validation_share=config.validation_share, seed=config.seed
    )
    opened = backbones.open_backbone(
        backbone, image_size=config.image_size, drop_path=config.drop_path, seed=config.seed
    )
    header = reports.header(config, opened, images)
    with (
        runtime.started(config.precision) as rt,
        RunFolder(out, "finetune", header, rt, overwrite=overwrite) as folder,
    ):
        epoch_steps = _steps_per_epoch(config, opened, images, rt.world)
        view = recipe.train_view(config, opened)
        if folder.finished():
            return reports.read(out / REPORT_FILE)
        folder.claim()

        # Build: classifier, its average, optimiser.
        classes = len(images.classes)
        model = recipe.classifier(opened.model, classes, config.seed).to(rt.device)
        average = ModelEmaV3(model, decay=config.weight_ema, use_warmup=config.weight_ema_warmup)
        state = State(
            {"model": model, "average": average.module},
            _optimizer(config, model),
            candidates={PLAIN: "model", AVERAGED: "average"},
        )
        grade = functools.partial(_grade, config, images, opened, rt)

        def validate() -> Iterator[tuple[str, float]]:
            for name, counts in grade("val", {PLAIN: model, AVERAGED: average.module}).items():
                yield name, metrics.top1(counts)

        # Fit: a batch an update, the validation split an epoch.
        train = images.splits["train"]
        stopped = supervised.fit(
            state, _plan(config, len(train), epoch_steps),
            functools.partial(recipe.train_item, train, view, config.seed),
            _step(config, state, average, classes, rt),
            lambda number: recipe.learning_rate(config, number, epoch_steps),
            validate, folder,
        )  # fmt: skip

        # Report: the test split, for the last weights and the selected ones.
        return stopped or _report(state, epoch_steps, grade, folder, images, opened)


def _plan(config: FinetuneConfig, images: int, epoch_steps: int) -> Plan:
    return Plan(
        images=images,
        batch_size=config.batch_size,
        seed=config.seed,
        workers=config.workers,
        steps=config.epochs * epoch_steps,
        evaluate_steps=epoch_steps,
        save_steps=epoch_steps,
        epoch_steps=epoch_steps,
        stop_after_minutes=config.stop_after_minutes,
        remedy="lower finetune.base_lr",
    )


def _optimizer(config: FinetuneConfig, model: VisionTransformer) -> torch.optim.Optimizer:
    groups = optim.layer_decay_groups(
        model, decay=config.layer_decay, weight_decay=config.weight_decay
    )
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2))


def _step(
    config: FinetuneConfig, state: State, average: ModelEmaV3, classes: int, rt: Runtime
) -> Callable[[tuple[Tensor, Tensor], int], float]:
    """Return the update of a batch: its loss's gradient in micro batches, AdamW, the average."""
    model, optimizer = state.modules["model"], state.optimizer
    trained = rt.wrap(model)
    mixing, loss_of = Mixing(config, classes), SoftTargetCrossEntropy()
    assert optimizer is not None

    def step(batch: tuple[Tensor, Tensor], number: int) -> float:
        images, labels = (tensor.to(rt.device) for tensor in batch)  # [B, 3, S, S], [B]
        images, targets = mixing(images, labels, number, rt.rank)  # [B, K]
        runtime.seed_everything(rng.seed("finetune.drop path", config.seed, number, rt.rank))
        model.train()
        optimizer.zero_grad(set_to_none=True)
        value, piece = 0.0, config.micro_batch or len(images)
        for part, target in zip(images.split(piece), targets.split(piece), strict=True):
            with rt.autocast():
                loss = loss_of(trained(part), target) * (len(part) / len(images))
            loss.backward()
            value += loss.item()
        optimizer.step()
        average.update(model, number + 1 if config.weight_ema_warmup else None)
        return value

    return step


def _steps_per_epoch(
    config: FinetuneConfig, opened: Backbone, images: LabelledDataset, world: int
) -> int:
    supervised.require_fit("finetune", config.batch_size, opened, images)
    batch = config.batch_size
    mixes = config.mixup > 0 or config.cutmix > 0
    unit = world * (2 if mixes else 1)
    if batch % unit:
        why = "mixup pairs the images of a rank" if mixes else f"there are {world} ranks"
        raise UsageError(
            "finetune.batch_size", got=batch, expected=f"a multiple of {unit}, since {why}"
        )
    return len(images.splits["train"]) // batch


def _grade(
    config: FinetuneConfig,
    images: LabelledDataset,
    opened: Backbone,
    rt: Runtime,
    split: str,
    models: Mapping[str, nn.Module],
) -> dict[str, np.ndarray]:
    """Return each model's confusion matrix on a split, [K, K]."""
    chosen = images.splits[split]
    predicted = recipe.predict(
        models, chosen, recipe.test_view(config, opened), rt,
        batch_size=max(1, config.batch_size // rt.world), workers=config.workers,
    )  # fmt: skip
    classes = len(images.classes)
    return {
        name: metrics.confusion(chosen.labels, labels, classes)
        for name, labels in predicted.items()
    }


def _report(
    state: State,
    epoch_steps: int,
    grade: Callable[[str, Mapping[str, nn.Module]], dict[str, np.ndarray]],
    folder: RunFolder,
    images: LabelledDataset,
    opened: Backbone,
) -> dict[str, Any]:
    models = {}
    for name, kind in KINDS.items():
        models[f"last_{kind}"] = state.modules[state.candidates[name]]
        if (selected := state.selected(name)) is not models[f"last_{kind}"]:
            models[f"selected_{kind}"] = selected
    counts = grade("test", models)
    counts = {f"selected_{kind}": counts[f"last_{kind}"] for kind in KINDS.values()} | counts
    # Which of the two kinds is the result is also for the validation split to say.
    name = max(KINDS, key=lambda n: (state.best[n].score, n == AVERAGED))
    best, chosen = state.best[name], counts[f"selected_{KINDS[name]}"]
    correct = np.zeros(int(chosen.sum()), dtype=bool)
    correct[: int(chosen.trace())] = True  # the interval does not depend on their order
    report = reports.build(
        "finetune", folder.header, opened, images,
        metric="top1",
        scores={
            "top1": metrics.top1(chosen),
            "mean_per_class": metrics.mean_per_class(chosen),
            **{f"top1_{which}": metrics.top1(matrix) for which, matrix in counts.items()},
        },
        interval=metrics.accuracy_interval(correct, folder.header.seed),
        details={
            "seconds": folder.seconds,
            "selected": {
                "weights": KINDS[name], "epoch": best.at // epoch_steps, "by": "top1 on val"
            },
            "validation": {
                **{f"last_{k}": round(100 * state.scores[n], 4) for n, k in KINDS.items()},
                **{f"selected_{k}": round(100 * state.best[n].score, 4) for n, k in KINDS.items()},
            },
            **reports.confusion(chosen, images.classes),
        },
    )  # fmt: skip
    if folder.runtime.is_main:
        reports.draw_confusion(chosen, images.classes, folder.work / reports.CONFUSION_FILE)
    facts = {
        "arch": opened.arch,
        "arch_arguments": dict(opened.arguments),
        **reports.model_facts(opened, images),
    }
    return reports.finish(folder, report, best.weights, facts)
