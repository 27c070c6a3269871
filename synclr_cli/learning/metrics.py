"""Scores of the evaluations, from labels and predictions. All are fractions, 0 to 1.

Shapes: n images, K classes. A confusion matrix is [K, K] with the truth along the rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from synclr_cli import rng

RECALLS = 11  # 0, 0.1, ... 1: VOC 2007's average precision


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count truth (rows) against prediction (columns); [K, K] int64.

    Args:
        truth, predicted: int arrays of one shape, ids below `classes`. Entries whose truth is
            negative or beyond `classes` (unlabelled pixels) are left out.

    Raises:
        ValueError: shapes differ, or a predicted id is out of range.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"truth is {truth.shape}, predicted is {predicted.shape}")
    labelled = (truth >= 0) & (truth < classes)
    truth, predicted = truth[labelled].astype(np.int64), predicted[labelled].astype(np.int64)
    if predicted.size and not 0 <= predicted.min() <= predicted.max() < classes:
        raise ValueError(f"predicted ids reach {predicted.max()}, there are {classes} classes")
    return np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)


def top1(counts: np.ndarray) -> float:
    """Return the share of right predictions; for pixels this is the pixel accuracy."""
    return float(np.trace(counts) / counts.sum())


def recalls(counts: np.ndarray) -> np.ndarray:
    """Return each class's share of right predictions, [K]; NaN for a class that never occurs."""
    return _ratio(np.diag(counts), counts.sum(1))  # [K]


def mean_per_class(counts: np.ndarray) -> float:
    """Return the mean recall over the classes that occur in the truth."""
    return float(np.nanmean(recalls(counts)))


def iou(counts: np.ndarray) -> np.ndarray:
    """Return each class's intersection over union, [K]; NaN if nobody has or predicts it."""
    hits = np.diag(counts)
    return _ratio(hits, counts.sum(0) + counts.sum(1) - hits)  # [K]


def mean_iou(counts: np.ndarray) -> float:
    """Return the mean IoU over the classes that occur in truth or prediction."""
    return float(np.nanmean(iou(counts)))


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Return VOC 2007's 11-point average precision of one class.

    The mean, over recalls 0, 0.1, ... 1, of the best precision reached at that recall or above.
    The curve begins at precision 1 for recall 0, as in the released code. Images of equal score
    enter together.

    Args:
        truth: [n] bool.
        scores: [n], higher is likelier.

    Raises:
        ValueError: no image has the class, or a score is NaN.
    """
    positives = int(truth.sum())
    if positives == 0:
        raise ValueError("average precision needs an image that has the class")
    if np.isnan(scores).any():
        raise ValueError("a score is NaN")
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(truth[order])
    last_of_ties = np.append(np.diff(scores[order]) != 0, True)
    hits, shown = hits[last_of_ties], (np.arange(len(scores)) + 1)[last_of_ties]
    precision = np.append(1.0, hits / shown)
    # Recall >= i/10 in whole numbers, so that 3 of 10 reaches 0.3 whatever floats say.
    reached = np.append(0, hits) * (RECALLS - 1)
    best = [precision[reached >= i * positives].max() for i in range(RECALLS)]
    return float(np.mean(best))


def mean_average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Return the mean 11-point average precision over the classes that occur.

    Args:
        truth: [n, K] of 0 and 1.
        scores: [n, K].
    """
    occurs = np.flatnonzero(truth.any(0))
    return float(np.mean([average_precision(truth[:, k] > 0, scores[:, k]) for k in occurs]))


def wilson(hits: int, of: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    if not of:
        return 0.0, 1.0
    z = 1.959964
    p, z2 = hits / of, z * z
    centre = (p + z2 / (2 * of)) / (1 + z2 / of)
    half = z * math.sqrt(p * (1 - p) / of + z2 / (4 * of * of)) / (1 + z2 / of)
    # The share itself where it is 0 or 1 and the bound a rounding inside.
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def accuracy_interval(
    correct: np.ndarray, seed: int, *, labels: np.ndarray | None = None, resamples: int = 10_000
) -> tuple[float, float]:
    """Return the 95 % interval of an accuracy: Wilson's, or a bootstrap for the mean per class.

    A bootstrap of outcomes that are all right is a point, whatever their number; Wilson's is not.
    Drawing n right-or-wrong outcomes with replacement is one binomial draw, so that is what is
    drawn.

    Args:
        correct: [n] bool.
        labels: [n] classes. Given, images are drawn within their class and the interval is that
            of the mean per class.
    """
    if labels is None:
        return wilson(int(correct.sum()), len(correct))
    generator = rng.generator(seed)
    groups = [correct[labels == k] for k in np.unique(labels)]
    means = [generator.binomial(len(g), g.mean(), resamples) / len(g) for g in groups]
    low, high = np.percentile(np.mean(means, axis=0), [2.5, 97.5])
    return float(low), float(high)


def bootstrap_interval_of(
    statistic: Callable[[np.ndarray], float], n: int, seed: int, *, resamples: int = 1000
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of any statistic of n images.

    Args:
        statistic: takes image numbers drawn with replacement, [n], gives the score.
    """
    generator = rng.generator(seed)
    resampled = [statistic(generator.integers(0, n, n)) for _ in range(resamples)]
    low, high = np.nanpercentile(resampled, [2.5, 97.5])
    return float(low), float(high)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    missing = np.full(len(whole), np.nan)
    return np.divide(part, whole, out=missing, where=whole > 0)
