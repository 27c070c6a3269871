"""The paper's equations and the released code's rules as slow float64 loops.

Written from PAPER.md and REFERENCE.md alone; never imports `synclr_cli`. What the package computes
is compared with this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def unit(vector: Array) -> Array:
    return vector / math.sqrt(sum(float(v) ** 2 for v in vector))


def contrast(
    anchors: Array,
    candidates: Array,
    anchor_labels: Sequence[int],
    candidate_labels: Sequence[int],
    own: Sequence[int] | None,
    temperature: float,
) -> float:
    """Eq. 1-3: mean over anchors of -sum_j p_j log q_j."""
    total = 0.0
    for i, anchor in enumerate(anchors):
        kept = [j for j in range(len(candidates)) if own is None or j != own[i]]
        s = {j: float(unit(anchor) @ unit(candidates[j])) / temperature for j in kept}
        log_sum = math.log(sum(math.exp(v) for v in s.values()))
        positives = [j for j in kept if candidate_labels[j] == anchor_labels[i]]
        total += sum(-(s[j] - log_sum) for j in positives) / max(1, len(positives))
    return total / len(anchors)


def sinkhorn(scores: Array, temperature: float, iterations: int) -> Array:
    """Sinkhorn-Knopp as the released code orders it: prototypes first, then tokens."""
    tokens, prototypes = scores.shape
    q = np.exp(scores / temperature)
    q = q / q.sum()
    for _ in range(iterations):
        for k in range(prototypes):
            q[:, k] = q[:, k] / q[:, k].sum() / prototypes
        for i in range(tokens):
            q[i] = q[i] / q[i].sum() / tokens
    return q * tokens


def patch_loss(scores: Sequence[Array], targets: Sequence[Array], temperature: float) -> float:
    """The mean over masked images of the mean over their masked patches of H(target, student).

    Args:
        scores, targets: one [masked patches, prototypes] for each masked image.
    """
    of_images = []
    for s, t in zip(scores, targets, strict=True):
        of_patches = []
        for row, target in zip(s, t, strict=True):
            log_sum = math.log(sum(math.exp(v / temperature) for v in row))
            of_patches.append(
                -sum(q * (v / temperature - log_sum) for q, v in zip(target, row, strict=True))
            )
        of_images.append(sum(of_patches) / len(of_patches))
    return sum(of_images) / len(of_images)


def half_cosine(step: int, steps: int, start: float, end: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * step / steps)) / 2


def learning_rate(step: int, steps: int, warmup: int, peak: float, end: float) -> float:
    if step < warmup:
        return peak * step / warmup
    return half_cosine(step - warmup, steps - warmup, peak, end)


def ramp(step: int, steps: int, start: float, end: float) -> float:
    return end if step >= steps else start + (end - start) * step / steps


def adamw(
    weights: Array,
    gradients: Sequence[Array],
    rates: Sequence[float],
    decays: Sequence[float],
    beta1: float,
    beta2: float,
    eps: float = 1e-8,
) -> Array:
    """AdamW with decay decoupled and multiplied by the current rate, one weight at a time."""
    result = np.empty(weights.size)
    for i, start in enumerate(weights.reshape(-1)):
        w, m, v = float(start), 0.0, 0.0
        for t, (gradient, rate, decay) in enumerate(
            zip(gradients, rates, decays, strict=True), start=1
        ):
            g = float(gradient.reshape(-1)[i])
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g * g
            w -= rate * decay * w
            w -= rate * (m / (1 - beta1**t)) / (math.sqrt(v / (1 - beta2**t)) + eps)
        result[i] = w
    return result.reshape(weights.shape)


def moving_average(teacher: Array, students: Sequence[Array], momenta: Sequence[float]) -> Array:
    """Apply teacher <- m teacher + (1 - m) student, step after step."""
    for student, m in zip(students, momenta, strict=True):
        teacher = m * teacher + (1 - m) * student
    return teacher


def cubic(x: float, a: float = -0.75) -> float:
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resize_positions(grid: Array, side: int) -> Array:
    """The training form: sample at the given scale (side + 0.1) / own, borders repeated.

    Args:
        grid: [own, own, D].
    """
    own = grid.shape[0]
    scale = (side + 0.1) / own
    result = np.zeros((side, side, grid.shape[2]))
    for i in range(side):
        for j in range(side):
            y, x = (i + 0.5) / scale - 0.5, (j + 0.5) / scale - 0.5
            for dy in range(math.floor(y) - 1, math.floor(y) + 3):
                for dx in range(math.floor(x) - 1, math.floor(x) + 3):
                    sample = grid[min(max(dy, 0), own - 1), min(max(dx, 0), own - 1)]
                    result[i, j] += cubic(y - dy) * cubic(x - dx) * sample
    return result


def layer_norm(row: Array, eps: float) -> Array:
    """(x - mean) / sqrt(variance + eps), the variance being the mean square from the mean."""
    mean = sum(float(v) for v in row) / len(row)
    variance = sum((float(v) - mean) ** 2 for v in row) / len(row)
    return np.array([(float(v) - mean) / math.sqrt(variance + eps) for v in row])


def gelu(row: Array) -> Array:
    return np.array([v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in row])


def knn_top1(
    known: Array,
    known_labels: Sequence[int],
    queries: Array,
    query_labels: Sequence[int],
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """DINO's k-NN, in percent: the k nearest by cosine vote with exp(cosine / temperature)."""
    right = 0
    for query, label in zip(queries, query_labels, strict=True):
        cosines = [float(unit(query) @ unit(row)) for row in known]
        nearest = sorted(range(len(known)), key=lambda i: -cosines[i])[:k]
        votes: dict[int, float] = {}
        for i in nearest:
            votes[known_labels[i]] = votes.get(known_labels[i], 0.0) + math.exp(
                cosines[i] / temperature
            )
        right += max(votes, key=lambda c: votes[c]) == label
    return 100 * right / len(queries)
