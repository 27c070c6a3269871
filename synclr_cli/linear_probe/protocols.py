"""The protocols that look at each image once: logistic regression, neighbours, few shots.

    lbfgs      the paper's fine-grained protocol: multinomial logistic regression, its L2 strength
               chosen on validation among 45 log-spaced values, one more fit on train + validation
    knn        the 20 nearest features vote; nothing is trained and nothing chosen
    few-shot   logistic regression on n images of each class, drawn several times; one L2 strength
               for all draws, chosen on validation

Shapes: n images of a split, D features, K classes, P penalties, R draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synclr_cli import console, rng
from synclr_cli.config import LinearProbeConfig
from synclr_cli.data.labelled import LabelledDataset
from synclr_cli.errors import DataError
from synclr_cli.learning import knn as neighbours, metrics, reports
from synclr_cli.learning.backbone import Backbone
from synclr_cli.learning.run_folder import RunFolder
from synclr_cli.learning.runtime import Runtime
from synclr_cli.linear_probe import features, logistic
from synclr_cli.linear_probe.features import Features
from synclr_cli.linear_probe.path import Path


@dataclass(frozen=True)
class Case:
    """A backbone, what it is evaluated on, and where the report goes."""

    config: LinearProbeConfig
    backbone: Backbone
    data: LabelledDataset
    folder: RunFolder

    @property
    def rt(self) -> Runtime:
        """Return device and ranks."""
        return self.folder.runtime

    @property
    def classes(self) -> int:
        """Return the number of classes."""
        return len(self.data.classes)

    def features(self) -> dict[str, Features]:
        """Return the features of every split, which `features.make` wrote."""
        return features.read(self.backbone, self.data, self.folder.path, self.rt)

    def fit(self, x: Tensor, y: Tensor, penalties: list[float]) -> Path:
        """Fit logistic regressions on this run's device; the solutions come back to the CPU."""
        path = logistic.fit_path(
            x.to(self.rt.exact_device),
            y.to(self.rt.exact_device),
            penalties,
            classes=self.classes,
            iterations=self.config.iterations,
        )
        return Path(**{name: value.cpu() for name, value in vars(path).items()})

    def nearest(self, x: Tensor, y: Tensor, queries: Tensor) -> np.ndarray:
        """Return what the nearest of the features x say about the asked, [q]."""
        votes = neighbours.predict(
            x.to(self.rt.device),
            y.to(self.rt.device),
            queries.to(self.rt.device),
            classes=self.classes,
            k=self.config.neighbours,
        )
        return votes.cpu().numpy()

    def score(self, truth: np.ndarray, predicted: np.ndarray) -> float:
        """Return the run's metric, a fraction, of classes [n], or for mean_ap of scores [n, K]."""
        if self.data.several:
            return metrics.mean_average_precision(truth, predicted)
        counts = metrics.confusion(truth, predicted, self.classes)
        return float(getattr(metrics, self.config.metric)(counts))

    def predict(self, x: Tensor, weights: Tensor, intercepts: Tensor) -> np.ndarray:
        """Return classes [n] of one solution, or for mean_ap the classes' scores [n, K]."""
        scores = logistic.logits(x, weights, intercepts)  # [n, K]
        return (scores if self.data.several else scores.argmax(1)).numpy()


@dataclass(frozen=True)
class Outcome:
    """What a protocol found on the test split."""

    scores: Mapping[str, float]  # fractions
    interval: tuple[float, float]  # of the run's metric
    details: Mapping[str, Any]


def graded(
    case: Case,
    truth: np.ndarray,
    predicted: np.ndarray,
    scores: Mapping[str, float],
    details: Mapping[str, Any],
) -> Outcome:
    """Grade predictions of the test split, [n]; `scores` and `details` are added."""
    counts = metrics.confusion(truth, predicted, case.classes)
    if case.rt.is_main:
        png = case.folder.work / reports.CONFUSION_FILE
        reports.draw_confusion(counts, case.data.classes, png)
    by_class = case.config.metric == "mean_per_class"
    return Outcome(
        {
            "top1": metrics.top1(counts),
            "mean_per_class": metrics.mean_per_class(counts),
            **scores,
            "most_frequent_class": float(counts.sum(1).max() / counts.sum()),
        },
        metrics.accuracy_interval(
            predicted == truth, case.config.seed, labels=truth if by_class else None
        ),
        {**details, **reports.confusion(counts, case.data.classes)},
    )


def lbfgs(case: Case) -> Outcome:
    """Choose the L2 strength on validation, fit train and validation together, grade test."""
    splits = case.features()
    penalty, score, table = sweep(case, splits["train"], splits["val"])
    x = torch.cat([splits["train"].x, splits["val"].x])
    y = torch.cat([splits["train"].y, splits["val"].y])
    queries, truth = splits["test"].x, splits["test"].y.numpy()
    if case.config.standardise:
        x, queries = features.standardise(x, queries)
    refit = case.fit(x, y, [penalty])
    predicted = case.predict(queries, refit.weights[0], refit.intercepts[0])
    details = {
        "penalty": penalty,
        "iterations": int(refit.iterations[0]),
        "converged": bool(refit.converged[0]),
        "sweep": table,
    }
    if case.data.several:
        return _graded_by_precision(case, truth, predicted, score, details)
    near = float((case.nearest(x, y, queries) == truth).mean())
    return graded(case, truth, predicted, {"validation": score, "knn_top1": near}, details)


def _graded_by_precision(
    case: Case, truth: np.ndarray, scores: np.ndarray, validation: float, details: dict[str, Any]
) -> Outcome:
    """Grade scores of the test split, [n, K], where an image may have several classes."""
    by_class = {
        name: round(100 * metrics.average_precision(truth[:, k] > 0, scores[:, k]), 4)
        for k, name in enumerate(case.data.classes)
        if truth[:, k].any()
    }
    interval = metrics.bootstrap_interval_of(
        lambda rows: metrics.mean_average_precision(truth[rows], scores[rows]),
        len(truth),
        case.config.seed,
        resamples=200,
    )
    score = metrics.mean_average_precision(truth, scores)
    return Outcome(
        {"mean_ap": score, "validation": validation},
        interval,
        {**details, "average_precision_by_class": by_class},
    )


def sweep(case: Case, train: Features, val: Features) -> tuple[float, float, list[dict[str, Any]]]:
    """Fit every penalty on train and choose on validation; of equals, the smallest.

    Returns:
        The penalty, its validation score (a fraction), and a row for each penalty.
    """
    penalties = grid(case.config)
    x, shown = train.x, val.x
    if case.config.standardise:
        x, shown = features.standardise(x, shown)
    path = case.fit(x, train.y, penalties)
    scores = [
        case.score(val.y.numpy(), case.predict(shown, path.weights[i], path.intercepts[i]))
        for i in range(len(penalties))
    ]
    best = int(np.argmax(scores))  # the first of equals
    _note_edge(best, penalties)
    table = [
        {
            "penalty": penalty,
            "validation": round(100 * scores[i], 4),
            "iterations": int(path.iterations[i]),
            "converged": bool(path.converged[i]),
        }
        for i, penalty in enumerate(penalties)
    ]
    return penalties[best], scores[best], table


def knn(case: Case) -> Outcome:
    """Let the nearest features of train and validation vote on each image of test."""
    splits = case.features()
    x = torch.cat([splits["train"].x, splits["val"].x])
    y = torch.cat([splits["train"].y, splits["val"].y])
    queries, truth = splits["test"].x, splits["test"].y.numpy()
    if case.config.standardise:
        x, queries = features.standardise(x, queries)
    return graded(case, truth, case.nearest(x, y, queries), {}, {})


def few_shot(case: Case) -> Outcome:
    """Fit a few images of each class, several times, and grade each fit on test.

    Raises:
        DataError: a class has fewer train images than `shots`.
    """
    splits = case.features()
    train, val, test = (splits[name] for name in ("train", "val", "test"))
    penalties = grid(case.config)
    draws = [shots(case, train.y.numpy(), draw) for draw in range(case.config.repeats)]
    on_val = np.zeros((len(draws), len(penalties)))  # [R, P]
    on_test = np.zeros((len(draws), len(penalties)))
    with console.progress("few shots", len(draws), unit="draws") as meter:
        for r, rows in enumerate(draws):
            x, shown, queries = train.x[rows], val.x, test.x
            if case.config.standardise:
                x, shown, queries = features.standardise(x, shown, queries)
            path = case.fit(x, train.y[rows], penalties)
            for i in range(len(penalties)):
                w, b = path.weights[i], path.intercepts[i]
                for scores, z, y in ((on_val, shown, val.y), (on_test, queries, test.y)):
                    scores[r, i] = case.score(y.numpy(), case.predict(z, w, b))
            meter.advance()
    best = int(on_val.mean(0).argmax())
    _note_edge(best, penalties)
    best_scores = on_test[:, best]  # [R]
    return Outcome(
        {
            case.config.metric: float(best_scores.mean()),
            "validation": float(on_val[:, best].mean()),
        },
        metrics.bootstrap_interval_of(
            lambda resampled: float(best_scores[resampled].mean()),
            len(best_scores),
            case.config.seed,
        ),
        {
            "shots": case.config.shots,
            "repeats": len(draws),
            "penalty": penalties[best],
            "by_draw": [round(100 * float(score), 4) for score in best_scores],
            "spread": round(100 * float(best_scores.std(ddof=1)), 4)
            if len(best_scores) > 1
            else None,
        },
    )


def shots(case: Case, labels: np.ndarray, draw: int) -> np.ndarray:
    """Return positions of `shots` images of each class; a draw depends on seed and number."""
    chosen = []
    for k in range(case.classes):
        inside = np.flatnonzero(labels == k)
        if 0 < len(inside) < case.config.shots:
            raise DataError(
                f"{case.data.spec}: train images of class {case.data.classes[k]}",
                got=len(inside),
                expected=f"at least linear-probe.shots = {case.config.shots}",
            )
        generator = rng.generator(case.config.seed, draw, k)
        chosen.append(generator.permutation(inside)[: case.config.shots])
    return np.sort(np.concatenate(chosen))


def grid(config: LinearProbeConfig) -> list[float]:
    """Return the penalties to try."""
    return logistic.penalty_grid(config.penalties, config.lowest_penalty, config.highest_penalty)


def _note_edge(best: int, penalties: list[float]) -> None:
    if len(penalties) > 1 and best in (0, len(penalties) - 1):
        console.note(f"the chosen penalty, {penalties[best]:g}, is an end of the grid")
