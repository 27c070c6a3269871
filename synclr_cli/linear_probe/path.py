"""What the solvers of `logistic` return. Shapes: P penalties, D features, K classes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Path:
    """The solutions, one for each penalty, in the order given."""

    weights: Tensor  # [P, D, K] float64; of a softmax their mean over classes is zero
    intercepts: Tensor  # [P, K] float64
    objectives: Tensor  # [P] float64
    iterations: Tensor  # [P] int64 passes over the features: products with the Hessian, evaluations
    converged: Tensor  # [P] bool
