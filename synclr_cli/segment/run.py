"""Evaluate a backbone by semantic segmentation (Table 15).

UperNet on a ViT pyramid is trained on random crops with layer-wise learning rates, and tested on
whole images by a sliding window. The validation split selects the moment; the test split comes
out once, for the last moment and the selected one. The report has the floor beside the score: the
training split's commonest class everywhere.

    backbone + images with masks --run--> out/{report.json, model.safetensors, overlays.png, ...}

Shapes: B images of this rank, S pixels, K classes, n images of a split.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synclr_cli import rng
from synclr_cli.config import SegmentConfig
from synclr_cli.data import labelled
from synclr_cli.data.labelled import LabelledDataset
from synclr_cli.errors import UsageError
from synclr_cli.learning import (
    backbone as backbones,
    metrics,
    optim,
    reports,
    runtime,
    schedules,
    supervised,
)
from synclr_cli.learning.backbone import Backbone
from synclr_cli.learning.run_folder import REPORT_FILE, RunFolder
from synclr_cli.learning.runtime import Runtime
from synclr_cli.learning.supervised import Plan, State
from synclr_cli.segment import dense, grading, overlays
from synclr_cli.segment.grading import Counts
from synclr_cli.segment.linear import LinearSegmenter
from synclr_cli.segment.upernet import UperNetSegmenter

SCORE = "val_mean_iou"  # of the validation split, as the log has it


def run(
    config: SegmentConfig, backbone: str, data: str, out: Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Train and test a segmenter on a backbone and return its report.

    Raises:
        UsageError: a setting does not fit the data or the backbone, or `out` is another run's.
        DataError: backbone or data cannot be read, or masks do not fit their images or classes.
        DivergedError: the loss is not finite.
        KeyboardInterrupt: interrupted; the work is saved and the same call resumes it.
    """
    # Open: what is evaluated, on what, and whether it was before.
    images = labelled.open_data(
        data, masks=True, ignore_index=config.ignore_index,
        validation_share=config.validation_share, seed=config.seed,
        reduce_zero_label=config.reduce_zero_label,
    )  # fmt: skip
    opened = backbones.open_backbone(
        backbone, image_size=config.image_size, drop_path=config.drop_path, seed=config.seed
    )
    header = reports.header(config, opened, images)
    with (
        runtime.started(config.precision) as rt,
        RunFolder(out, "segment", header, rt, overwrite=overwrite) as folder,
    ):
        _check(config, opened, images, rt.world)
        if folder.finished():
            return reports.read(out / REPORT_FILE)
        folder.claim()

        # Build: segmenter and optimiser.
        model = segmenter(config, opened, len(images.classes)).to(rt.device)
        state = State({"model": model}, _optimizer(config, model), candidates={SCORE: "model"})
        grade = functools.partial(grading.grade, config, images, opened, rt)

        def validate() -> Iterator[tuple[str, float]]:
            rt.same_buffers(model)
            yield SCORE, grade("val", {"last": model})["last"].mean_iou()

        # Fit: a batch an update, now and then the validation split.
        stopped = supervised.fit(
            state, _plan(config, len(images.splits["train"])),
            functools.partial(grading.train_item, config, images, opened.mean, opened.std),
            _step(config, state, rt),
            lambda number: schedules.warmup_poly(
                number, config.steps, config.warmup_steps, config.lr, config.poly_power
            ),
            validate, folder,
        )  # fmt: skip

        # Report: the test split, for the last weights and the selected ones.
        return stopped or _report(config, state, grade, folder, images, opened)


def _plan(config: SegmentConfig, images: int) -> Plan:
    return Plan(
        images=images,
        batch_size=config.batch_size,
        seed=config.seed,
        workers=config.workers,
        steps=config.steps,
        evaluate_steps=config.validation_steps,
        save_steps=config.checkpoint_steps,
        stop_after_minutes=config.stop_after_minutes,
        remedy="lower segment.lr",
    )


def _optimizer(config: SegmentConfig, model: Any) -> torch.optim.Optimizer:
    groups = optim.layer_decay_groups(
        model.backbone, model.new_parts(),
        decay=config.layer_decay, weight_decay=config.weight_decay,
    )  # fmt: skip
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.beta1, config.beta2))


def _step(
    config: SegmentConfig, state: State, rt: Runtime
) -> Callable[[tuple[Tensor, Tensor], int], float]:
    """Return the update of a batch of crops: the loss's gradient and AdamW."""
    optimizer = state.optimizer
    trained = rt.wrap(rt.share_batch_norms(state.modules["model"]))
    assert optimizer is not None

    def step(batch: tuple[Tensor, Tensor], number: int) -> float:
        crops, ids = (tensor.to(rt.device) for tensor in batch)  # [B, 3, S, S], [B, S, S]
        runtime.seed_everything(rng.seed("segment.dropout", config.seed, number, rt.rank))
        trained.train()
        with rt.autocast():
            logits = trained(crops)
        loss = loss_of(logits, ids, config.auxiliary_weight, rt)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


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
    for weight, coarse in zip((1.0, auxiliary_weight), logits, strict=False):
        full = F.interpolate(
            coarse.float(), size=ids.shape[1:], mode="bilinear", align_corners=False
        )  # [B, K, S, S]
        entropy = F.cross_entropy(full, ids, ignore_index=dense.IGNORED, reduction="sum")
        total = total + weight * entropy / pixels
    return total


def _check(config: SegmentConfig, opened: Backbone, images: LabelledDataset, world: int) -> None:
    supervised.require_fit("segment", config.batch_size, opened, images)
    batch = config.batch_size
    if batch % world or batch // world < 2:
        raise UsageError(
            "segment.batch_size", got=batch,
            expected=f"a multiple of {world} ranks, two images each at least (batch norm)",
        )  # fmt: skip


def _report(
    config: SegmentConfig,
    state: State,
    grade: Callable[[str, Mapping[str, nn.Module]], dict[str, Counts]],
    folder: RunFolder,
    images: LabelledDataset,
    opened: Backbone,
) -> dict[str, Any]:
    models = {"last": state.modules["model"], "selected": state.selected(SCORE)}
    selected = models["selected"]
    if selected is models["last"]:
        del models["selected"]
    counts = grade("test", models)
    last, chosen = counts["last"], counts.get("selected", counts["last"])
    floor = grading.floor(config, images, chosen)
    report = reports.build(
        "segment", folder.header, opened, images,
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
                str(name): None if math.isnan(iou) else round(100 * float(iou), 4)
                for name, iou in zip(images.classes, metrics.iou(chosen.confusion), strict=True)
            },
            "selected": {"step": state.best[SCORE].at, "by": "mean_iou on val"},
            "validation": {
                "last": round(100 * state.scores[SCORE], 4),
                "selected": round(100 * state.best[SCORE].score, 4),
            },
        },
    )  # fmt: skip
    rt = folder.runtime
    if rt.is_main:
        overlays.draw(config, images, opened, rt, selected, folder.work / overlays.FILE)
    facts = {"head": config.head, **reports.model_facts(opened, images)}
    return reports.finish(folder, report, state.best[SCORE].weights, facts)
