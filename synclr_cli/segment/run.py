"""Judge a backbone by semantic segmentation (Table 15).

UperNet on a ViT pyramid is trained on random crops with layer-wise learning rates, and tested on
whole pictures by a sliding window. The validation split selects the moment; the test split comes
out once, for the last moment and the selected one. The report has the floor beside the grade: the
training split's commonest class everywhere.

    backbone + pictures with masks --run--> out/{report.json, model.safetensors, overlays.png, ...}

Shapes: B pictures of this rank, S pixels, K classes, n pictures of a split.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synclr_cli import console, rng
from synclr_cli.config import SegmentConfig
from synclr_cli.data import labelled
from synclr_cli.data.labelled import Labelled
from synclr_cli.errors import UsageError
from synclr_cli.learning import (
    backbone as backbones,
    checkpoint,
    metrics,
    optim,
    reports,
    runtime,
    schedules,
    supervised,
)
from synclr_cli.learning.backbone import Backbone
from synclr_cli.learning.run_folder import RunFolder
from synclr_cli.learning.runtime import Runtime
from synclr_cli.learning.supervised import Best
from synclr_cli.segment import dense, grading, overlays
from synclr_cli.segment.linear import LinearSegmenter
from synclr_cli.segment.upernet import UperNetSegmenter


def run(
    config: SegmentConfig, backbone: str, data: str, out: Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Train and test a segmenter on a backbone and return its report.

    Raises:
        UsageError: a setting does not fit the data or the backbone, or `out` is another run's.
        DataError: backbone or data cannot be read, or masks do not fit their pictures or classes.
        DivergedError: the loss is not finite.
        KeyboardInterrupt: interrupted; the work is saved and the same call continues it.
    """
    with runtime.started(config.precision) as rt:
        # Open: what is judged, on what, and what was done of it.
        pictures = labelled.open_data(
            data, masks=True, ignore_index=config.ignore_index,
            validation_share=config.validation_share, seed=config.seed,
            reduce_zero_label=config.reduce_zero_label,
        )  # fmt: skip
        opened = backbones.open_backbone(
            backbone, image_size=config.image_size, drop_path=config.drop_path, seed=config.seed
        )
        _check(config, opened, pictures, rt.world)
        folder = RunFolder(out, "segment", reports.header(config, opened, pictures), rt)
        if (report := folder.finished(overwrite=overwrite)) is not None:
            return report

        # Build: segmenter, optimiser; then back to where they were.
        now = _Moment(segmenter(config, opened, len(pictures.classes)).to(rt.device), config)
        start = now.restore(folder.resume())
        trained = rt.wrap(rt.share_batch_norms(now.model))
        grade = functools.partial(grading.grade, config, pictures, opened, rt)

        # Loop: a batch an update, now and then the validation split.
        with (
            runtime.StopFlag(config.stop_after_minutes) as stop,
            console.progress("segment", config.steps, done=start, unit="step") as meter,
        ):
            make = functools.partial(grading.train_item, config, pictures, opened.mean, opened.std)
            batches = supervised.batches(
                config, pictures, make, rt, start=start, steps=config.steps
            )
            for step, (crops, ids) in enumerate(batches, start):
                lr = schedules.warmup_poly(
                    step, config.steps, config.warmup_steps, config.lr, config.poly_power
                )
                optim.set_learning_rate(now.optimizer.param_groups, lr)
                runtime.seed_everything(
                    rng.seed("segment.dropout", config.seed, step, rt.rank)
                )  # dropout
                trained.train()
                with rt.autocast():
                    logits = trained(crops.to(rt.device))
                loss = loss_of(logits, ids.to(rt.device), config.auxiliary_weight, rt)
                value = loss.item()
                supervised.require_finite(value, step, "lower segment.lr")
                now.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                now.optimizer.step()
                now.losses.append(value)
                meter.say(loss=value, lr=lr)
                meter.advance()

                done = step + 1
                if done % config.validation_steps == 0 or done == config.steps:
                    rt.same_buffers(now.model)
                    (counts,) = grade("val", {"last": now.model}).values()
                    now.look(done, counts.mean_iou())
                    folder.log({"step": done, "lr": lr, **now.summary()})
                    now.losses.clear()
                due = done % config.checkpoint_steps == 0 or done == config.steps
                paused = supervised.pause(folder, stop, now, done=done, steps=config.steps, due=due)
                if paused is not None:
                    return paused

        # Write: the test split, for the last weights and the selected ones.
        return _conclude(config, now, grade, folder, pictures, opened, rt)


def segmenter(config: SegmentConfig, opened: Backbone, classes: int) -> nn.Module:
    """Build the model; what the backbone does not bring is drawn from the seed alone."""
    with runtime.seeded("segment.head", config.seed):
        if config.head == "linear":
            return LinearSegmenter(opened.model, classes)
        return UperNetSegmenter(
            opened.model,
            classes,
            channels=config.channels or opened.model.embed_dim,
            auxiliary_channels=config.auxiliary_channels,
        )


def loss_of(logits: list[Tensor], ids: Tensor, auxiliary_weight: float, rt: Runtime) -> Tensor:
    """Return the mean cross entropy over the labelled pixels, the auxiliary head's weighed in.

    Averaged over ranks it is the mean over the labelled pixels of all of them.

    Args:
        logits: of the head and, if there is one, the auxiliary head, [B, K, h, w].
        ids: [B, S, S]; `dense.IGNORED` where there is no label.
    """
    pixels = rt.sum((ids != dense.IGNORED).sum()).clamp(min=1) / rt.world  # none: a loss of 0
    total = torch.zeros((), device=ids.device)
    for weight, each in zip((1.0, auxiliary_weight), logits, strict=False):
        full = F.interpolate(
            each.float(), size=ids.shape[1:], mode="bilinear", align_corners=False
        )  # [B, K, S, S]
        entropy = F.cross_entropy(full, ids, ignore_index=dense.IGNORED, reduction="sum")
        total = total + weight * entropy / pixels
    return total


class _Moment:
    """All that changes while training, and how it is saved."""

    def __init__(self, model: nn.Module, config: SegmentConfig):
        self.model = model
        groups = optim.layer_decay_groups(
            model.backbone, model.new_parts(),
            decay=config.layer_decay, weight_decay=config.weight_decay,
        )  # fmt: skip
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2))
        self.best = Best()
        self.last = 0.0  # mean IoU on the validation split
        self.losses: list[float] = []  # since the last look

    def look(self, step: int, mean_iou: float) -> None:
        """Take in the validation split's grade."""
        self.last = mean_iou
        self.best.take(step, mean_iou, self.model)

    def summary(self) -> dict[str, float]:
        """Return the numbers for the log."""
        return {"train_loss": sum(self.losses) / len(self.losses), "val_mean_iou": self.last}

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """Return what a checkpoint keeps as tensors."""
        return {
            "model": self.model.state_dict(),
            "optimizer": checkpoint.optimizer_tensors(self.optimizer),
            "best": self.best.weights,
        }

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps as JSON."""
        return {"best": self.best.state(), "last": self.last, "losses": self.losses}

    def restore(self, saved: checkpoint.Checkpoint | None) -> int:
        """Go back to a checkpoint; return the updates done by then."""
        if saved is None:
            return 0
        self.model.load_state_dict(saved.groups["model"])
        checkpoint.restore_optimizer(self.optimizer, saved.groups["optimizer"])
        self.best = Best(**saved.state["best"], weights=dict(saved.groups["best"]))
        self.last = saved.state["last"]
        self.losses = list(saved.state["losses"])
        return saved.step


def _check(config: SegmentConfig, opened: Backbone, pictures: Labelled, world: int) -> None:
    supervised.require_fit("segment", config.batch_size, opened, pictures)
    batch = config.batch_size
    if batch % world or batch // world < 2:
        raise UsageError(
            "segment.batch_size", got=batch,
            expected=f"a multiple of {world} ranks, two pictures each at least (batch norm)",
        )  # fmt: skip


def _conclude(
    config: SegmentConfig,
    now: _Moment,
    grade: Any,
    folder: RunFolder,
    pictures: Labelled,
    opened: Backbone,
    rt: Runtime,
) -> dict[str, Any]:
    models = {"last": now.model}
    if now.best.at < config.steps:  # otherwise the last moment is the selected one
        models["selected"] = copy.deepcopy(now.model)
        models["selected"].load_state_dict(now.best.weights)
    found = grade("test", models)
    last, chosen = found["last"], found.get("selected", found["last"])
    floor = grading.floor(config, pictures, chosen)
    report = reports.build(
        "segment", folder.header, opened, pictures,
        metric="mean_iou",
        scores={
            "mean_iou": chosen.mean_iou(),
            "pixel_accuracy": metrics.top1(chosen.confusion),
            "mean_per_class": metrics.mean_per_class(chosen.confusion),
            "mean_iou_last": last.mean_iou(),
            "pixel_accuracy_last": metrics.top1(last.confusion),
            "mean_iou_floor": metrics.mean_iou(floor),
            "pixel_accuracy_floor": metrics.top1(floor),
        },
        interval=chosen.interval(folder.header.seed),
        details={
            "seconds": folder.seconds,
            "per_class_iou": {
                str(name): None if math.isnan(each) else round(100 * float(each), 4)
                for name, each in zip(pictures.classes, metrics.iou(chosen.confusion), strict=True)
            },
            "selected": {"step": now.best.at, "by": "mean_iou on val"},
            "validation": {
                "last": round(100 * now.last, 4),
                "selected": round(100 * now.best.score, 4),
            },
        },
    )  # fmt: skip
    if rt.is_main:
        model = models.get("selected", now.model)
        overlays.draw(config, pictures, opened, rt, model, folder.path / overlays.FILE)
    facts = {
        "head": config.head,
        "backbone": opened.name,
        "image_size": opened.image_size,
        "mean": list(opened.mean),
        "std": list(opened.std),
        "classes": list(map(str, pictures.classes)),
    }
    return folder.finish(report, now.best.weights, facts)
