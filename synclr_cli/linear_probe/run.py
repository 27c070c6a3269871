"""Judge a backbone by a linear classifier on its frozen cls features.

The fine-grained protocol of the paper (section 4, PAPER.md "Evaluation"): multinomial logistic
regression, its L2 strength chosen on the validation split among 45 log-spaced values, then one fit
on train and validation together, graded on the test split. Nothing looks at the test split before.

    backbone + data --run--> out/{features-SPLIT-KEY.safetensors, report.json}

Shapes: n pictures of a split, D features, K classes, P penalties.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synclr_cli import console
from synclr_cli.config import LinearProbeConfig
from synclr_cli.errors import UsageError
from synclr_cli.learning import backbone as backbones, labelled, metrics, reports, runtime
from synclr_cli.learning.runtime import Runtime
from synclr_cli.linear_probe import features, logistic, neighbours
from synclr_cli.linear_probe.features import Features


def run(
    config: LinearProbeConfig, backbone: str, data: str, out: Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Judge a backbone and return its report.

    Raises:
        UsageError: `out` holds the report of another config, backbone or data.
        DataError: backbone or data cannot be read, or cannot be judged on.
    """
    with runtime.started(config.precision) as rt:
        if rt.world > 1:
            raise UsageError("linear-probe", got=f"{rt.world} processes", expected="one process")
        # Open: what is judged, on what.
        pictures = labelled.open_data(
            data, validation_share=config.validation_share, seed=config.seed
        )
        opened = backbones.open_backbone(backbone, image_size=config.image_size, seed=config.seed)
        made = reports.header(config, opened, pictures)
        target = out / reports.FILE
        stored = reports.stored(target, "linear-probe", made, overwrite=overwrite)
        if stored is not None:
            return stored

        # Build: the features, once.
        started = time.monotonic()
        splits = features.of_splits(config, opened, pictures, out, made, rt)
        extracted = time.monotonic()

        # Loop: the sweep on train and validation, then the chosen penalty on both.
        chosen = sweep(config, splits["train"], splits["val"], len(pictures.classes), rt)
        x, y, test = _both(config, splits)
        refit = _fit(x, y, [chosen.penalty], len(pictures.classes), config.iterations, rt)
        solved = time.monotonic()

        # Write: the test split comes out.
        predicted = logistic.logits(test, refit.weights[0].cpu(), refit.intercepts[0].cpu())
        counts = metrics.confusion(
            splits["test"].y.numpy(), predicted.argmax(1).numpy(), len(pictures.classes)
        )
        truth = splits["test"].y.numpy()
        correct = predicted.argmax(1).numpy() == truth
        near = neighbours.predict(
            x.to(rt.device), y.to(rt.device), test.to(rt.device), classes=len(pictures.classes)
        )
        report = reports.build(
            "linear-probe",
            made,
            opened,
            pictures,
            metric=config.metric,
            scores={
                "top1": metrics.top1(counts),
                "mean_per_class": metrics.mean_per_class(counts),
                "validation": chosen.score,
                "knn_top1": float((near.cpu().numpy() == truth).mean()),
                "most_frequent_class": float(counts.sum(1).max() / counts.sum()),
            },
            interval=metrics.bootstrap_interval(
                correct, config.seed, labels=truth if config.metric == "mean_per_class" else None
            ),
            details={
                "penalty": chosen.penalty,
                "iterations": int(refit.iterations[0]),
                "converged": bool(refit.converged[0]),
                "seconds_features": round(extracted - started, 2),
                "seconds_solver": round(solved - extracted, 2),
                "sweep": chosen.table,
                "confusion": counts.tolist(),
            },
        )
        reports.write(target, report)
        return report


@dataclass(frozen=True)
class Choice:
    """The penalty the validation split prefers."""

    penalty: float
    score: float  # fraction
    table: list[dict[str, Any]]  # one row for each penalty


def sweep(
    config: LinearProbeConfig, train: Features, val: Features, classes: int, rt: Runtime
) -> Choice:
    """Fit every penalty on train and choose on validation; of equals, the smallest."""
    penalties = logistic.penalty_grid(
        config.penalties, config.lowest_penalty, config.highest_penalty
    )
    x, shown = train.x, val.x
    if config.standardise:
        x, shown = features.standardise(x, shown)
    path = _fit(x, train.y, penalties, classes, config.iterations, rt)
    table = []
    for i, penalty in enumerate(penalties):
        predicted = logistic.logits(shown, path.weights[i].cpu(), path.intercepts[i].cpu())
        counts = metrics.confusion(val.y.numpy(), predicted.argmax(1).numpy(), classes)
        score = getattr(metrics, config.metric)(counts)
        table.append(
            {
                "penalty": penalty,
                "validation": round(100 * score, 4),
                "iterations": int(path.iterations[i]),
                "converged": bool(path.converged[i]),
            }
        )
    best = int(np.argmax([row["validation"] for row in table]))  # the first of equals
    if best in (0, len(penalties) - 1) and len(penalties) > 1:
        console.note(f"the chosen penalty {penalties[best]:g} is at an end of the grid")
    return Choice(penalties[best], table[best]["validation"] / 100, table)


def _both(config: LinearProbeConfig, splits: dict[str, Features]) -> tuple[Tensor, Tensor, Tensor]:
    """Return train and validation together, features and labels, and the test features."""
    x = torch.cat([splits["train"].x, splits["val"].x])
    y = torch.cat([splits["train"].y, splits["val"].y])
    test = splits["test"].x
    if config.standardise:
        x, test = features.standardise(x, test)
    return x, y, test


def _fit(
    x: Tensor, y: Tensor, penalties: list[float], classes: int, iterations: int, rt: Runtime
) -> logistic.Path:
    return logistic.fit_path(
        x.to(rt.device), y.to(rt.device), penalties, classes=classes, iterations=iterations
    )
