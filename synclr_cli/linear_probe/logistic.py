"""Multinomial logistic regression at many L2 strengths at once, to the optimum.

For each penalty lambda the minimum over weights W [D, K] and intercepts b [K] of

    sum_i CE(y_i, softmax(x_i W + b))  +  lambda / 2 |W|^2                (C = 1 / lambda)

which for two classes is the usual sigmoid problem. L-BFGS runs for several penalties side by side:
the features are read once per iteration, in one matrix product for all of them, and a penalty
leaves when it has converged. Three things keep the iterations few:

- Rotated to the eigenbasis of their covariance, features are uncorrelated, so the diagonal
  `curvature of the softmax x eigenvalue + lambda` is a good Hessian for every penalty.
- The path is solved coarse to fine; a penalty between two solved ones starts between them,
  with the curvature pairs of its neighbour (lambda enters those exactly).
- The first step from zero weights is a Newton step.

x, y, penalties --fit_path--> Path(weights [P, D, K], intercepts [P, K], objectives [P], ...)

Shapes: n pictures, D features, K classes, P penalties, A of them active, J = D + 1 coefficients of
a class, the intercept last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

HISTORY = 30  # curvature pairs kept, as far as they fit into
HISTORY_BYTES = 2**30  # for the whole path
ARMIJO = 1e-4
SHORTEST_STEP = 2.0**-20
FLOAT64_OPERATIONS = 5e10  # below this many multiplications the path is solved in double precision
# A penalty has converged when the objective is estimated to lie above its minimum by at most
# TOLERANCE x objective + SLACK x pictures. The slack ends problems whose minimum is almost zero.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-7}
SLACK = {torch.float64: 1e-13, torch.float32: 1e-8}
EIGENVALUE_FLOOR = {torch.float64: 1e-12, torch.float32: 1e-6}  # of the largest
CHUNK_NUMBERS = 2**20  # logits held at a time


@dataclass(frozen=True)
class Path:
    """The solutions, one for each penalty, in the order given."""

    weights: Tensor  # [P, D, K] float64
    intercepts: Tensor  # [P, K] float64
    objectives: Tensor  # [P] float64
    iterations: Tensor  # [P] int64
    converged: Tensor  # [P] bool


def penalty_grid(count: int, lowest: float, highest: float) -> list[float]:
    """Return `count` penalties, log-spaced and ascending."""
    return torch.logspace(
        torch.tensor(lowest).log10().item(),
        torch.tensor(highest).log10().item(),
        count,
        dtype=torch.float64,
    ).tolist()


def logits(x: Tensor, weights: Tensor, intercepts: Tensor) -> Tensor:
    """Return class scores [P, n, K] (or [n, K] for one solution)."""
    return (x.double() @ weights + intercepts.unsqueeze(-2)).float()  # [P, n, K]


def fit_path(
    x: Tensor, y: Tensor, penalties: Sequence[float], *, classes: int, iterations: int
) -> Path:
    """Fit every penalty.

    Args:
        x: [n, D] features, on the device to work on.
        y: [n] int64 class ids below `classes`.
        penalties: lambda > 0 each; neighbours in the list help each other, so keep them sorted.
        iterations: at most, of each penalty.

    Raises:
        ValueError: a feature is not finite, or a penalty is not positive.
    """
    if not torch.isfinite(x).all():
        raise ValueError("a feature is NaN or infinite")
    if min(penalties) <= 0:
        raise ValueError(f"penalties must be above 0, one is {min(penalties)}")
    operations = 100.0 * x.shape[0] * x.shape[1] * classes * len(penalties)
    dtype = torch.float64 if operations < FLOAT64_OPERATIONS else torch.float32
    # Two classes: softmax weights are +-w/2, so twice the penalty makes it the sigmoid problem.
    scale = 2.0 if classes == 2 else 1.0
    problem = _Problem(x, y, classes, dtype)
    strengths = scale * torch.tensor(penalties, dtype=torch.float64, device=x.device)
    solved = _Solved(problem, strengths)
    for wave in _waves(len(penalties)):
        _solve(problem, solved, wave, iterations)
    return solved.path()


def _waves(count: int) -> list[list[int]]:
    """Return the order to solve in: ends and every 16th first, then the middles, then theirs."""
    stride = 16
    done = sorted({*range(0, count, stride), count - 1})
    waves = [done]
    while stride > 1:
        stride //= 2
        wave = [i for i in range(0, count, stride) if i not in done]
        if wave:
            waves.append(wave)
        done = sorted({*done, *wave})
    return waves


class _Problem:
    """The features in their eigenbasis, and the loss there."""

    def __init__(self, x: Tensor, y: Tensor, classes: int, dtype: torch.dtype):
        self.n, self.classes, self.dtype, self.y = len(x), classes, dtype, y
        self.mean = x.double().mean(0)  # [D]
        centred = (x.double() - self.mean) if dtype == torch.float64 else x - self.mean.float()
        covariance = (centred.T @ centred).double()  # [D, D]
        eigenvalues, self.basis = torch.linalg.eigh(covariance)  # [D], [D, D]
        ones = torch.ones(self.n, 1, dtype=dtype, device=x.device)
        self.x = torch.cat([(centred @ self.basis.to(centred.dtype)).to(dtype), ones], 1)  # [n, J]
        scatter = torch.cat([eigenvalues.clamp(min=0), eigenvalues.new_tensor([self.n])])  # [J]
        self.scatter = scatter.clamp(min=float(eigenvalues.max()) * EIGENVALUE_FLOOR[dtype])
        self.penalised = torch.ones_like(self.scatter)  # [J]
        self.penalised[-1] = 0  # the intercept is free
        self.counts = torch.bincount(y, minlength=classes).to(torch.float64)  # [K]

    def evaluate(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the summed cross entropy [A], its gradient [J, A, K] and p (1 - p) [A, K]."""
        j, a, k = theta.shape
        flat = theta.to(self.dtype).reshape(j, a * k)
        loss = torch.zeros(a, dtype=torch.float64, device=theta.device)
        gradient = torch.zeros_like(flat)
        squares = torch.zeros(a, k, dtype=torch.float64, device=theta.device)
        rows = max(CHUNK_NUMBERS // (a * k), 64)
        for x, y in zip(self.x.split(rows), self.y.split(rows), strict=True):
            log_p = (x @ flat).view(len(x), a, k).log_softmax(-1)  # [rows, A, K]
            at_label = y[:, None, None].expand(-1, a, 1)
            loss -= log_p.gather(-1, at_label).sum((0, 2), dtype=torch.float64)
            p = log_p.exp_()
            squares += torch.linalg.vector_norm(p, dim=0).double() ** 2
            p.scatter_add_(-1, at_label, p.new_full((1, 1, 1), -1.0).expand_as(at_label))
            gradient.addmm_(x.T, p.view(len(x), a * k))
        gradient = gradient.view(j, a, k)
        spread = (gradient[-1].double() + self.counts - squares) / self.n  # [A, K]
        return loss, gradient, spread.clamp(min=1e-12)

    def start(self, count: int) -> Tensor:
        """Return zero weights and the intercepts that are best for them, [J, count, K]."""
        theta = torch.zeros(
            len(self.scatter), count, self.classes, dtype=self.dtype, device=self.x.device
        )
        theta[-1] = (self.counts.clamp(min=0.5) / self.n).log().to(self.dtype)
        return theta


class _Solved:
    """What is known of each penalty so far."""

    def __init__(self, problem: _Problem, strengths: Tensor):
        self.problem, self.strengths = problem, strengths
        count = len(strengths)
        self.theta: dict[int, Tensor] = {}  # [J, K]
        self.pairs: dict[int, list[tuple[Tensor, Tensor]]] = {}  # steps and data-term changes
        self.objectives = torch.full((count,), float("nan"), dtype=torch.float64)
        self.iterations = torch.zeros(count, dtype=torch.int64)
        self.converged = torch.zeros(count, dtype=torch.bool)

    def guess(self, i: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Return a start for penalty i, [J, K], and curvature pairs, from its solved neighbours."""
        below = max((k for k in self.theta if k < i), default=None)
        above = min((k for k in self.theta if k > i), default=None)
        if below is None or above is None:
            return self.problem.start(1)[:, 0], []
        h = above - i
        outer = [self.theta.get(i - 3 * h), self.theta.get(i + 3 * h)]
        middle = (self.theta[below] + self.theta[above]) / 2
        if i - below == h and outer[0] is not None and outer[1] is not None:
            middle = (9 / 8) * middle - (outer[0] + outer[1]) / 16  # cubic through four
        return middle, self.pairs[above]

    def path(self) -> Path:
        """Return the solutions for features as they were given."""
        stacked = torch.stack([self.theta[i] for i in range(len(self.strengths))], 1).double()
        rotated = stacked[:-1].permute(1, 0, 2)  # [P, D, K]
        weights = self.problem.basis @ rotated  # [P, D, K]
        intercepts = stacked[-1] - self.problem.mean @ weights  # [P, K]
        return Path(weights, intercepts, self.objectives, self.iterations, self.converged)


@dataclass
class _Pair:
    """A step taken and how the gradient of the data term changed, for every active penalty."""

    s: Tensor  # [J, A, K]
    y: Tensor  # [J, A, K], of the data term
    used: Tensor  # [A] float, 0 where this penalty took no step


@dataclass
class _State:
    """The penalties of a wave that have not converged."""

    index: Tensor  # [A] of the path
    penalty: Tensor  # [J, A, 1]
    theta: Tensor  # [J, A, K]
    loss: Tensor  # [A] objective
    data_gradient: Tensor  # [J, A, K]
    spread: Tensor  # [A, K]
    direction: Tensor  # [J, A, K]
    slope: Tensor  # [A]
    step: Tensor  # [A]
    taken: Tensor  # [A] iterations
    pairs: list[_Pair] = field(default_factory=list)

    def keep(self, active: Tensor) -> None:
        """Drop the penalties that are done."""
        for name in ("index", "loss", "spread", "slope", "step", "taken"):
            setattr(self, name, getattr(self, name)[active])
        for name in ("penalty", "theta", "data_gradient", "direction"):
            setattr(self, name, getattr(self, name)[:, active])
        self.pairs = [_Pair(p.s[:, active], p.y[:, active], p.used[active]) for p in self.pairs]


def _solve(problem: _Problem, solved: _Solved, wave: list[int], iterations: int) -> None:
    """Run L-BFGS for the penalties of one wave and put down what was found."""
    guesses = [solved.guess(i) for i in wave]
    index = torch.tensor(wave, device=problem.x.device)
    penalty = (problem.penalised[:, None] * solved.strengths[index]).to(problem.dtype)[..., None]
    theta = torch.stack([theta for theta, _ in guesses], 1)  # [J, A, K]
    data_loss, data_gradient, spread = problem.evaluate(theta)
    state = _State(
        index=index,
        penalty=penalty,
        theta=theta,
        loss=data_loss + _half_square(penalty, theta),
        data_gradient=data_gradient,
        spread=spread,
        direction=torch.zeros_like(theta),
        slope=torch.zeros_like(data_loss),
        step=torch.ones_like(data_loss),
        taken=torch.zeros_like(index),
        pairs=_inherit([pairs for _, pairs in guesses]),
    )
    tolerance, slack = TOLERANCE[problem.dtype], SLACK[problem.dtype] * problem.n
    history = _history(theta, len(solved.strengths))
    fresh = torch.ones(len(wave), dtype=torch.bool, device=theta.device)
    while True:
        direction, slope, plain = _direction(problem, state)
        state.direction = torch.where(fresh[:, None], direction, state.direction)
        state.slope = torch.where(fresh, slope, state.slope)
        state.step = torch.where(fresh, torch.ones_like(state.step), state.step)
        gain = torch.maximum(-slope, plain) / 2  # Newton decrement: about f - minimum
        converged = fresh & (gain <= tolerance * state.loss + slack)
        stuck = state.step < SHORTEST_STEP  # rounding hides any descent
        done = converged | stuck | (state.taken >= iterations)
        if done.any():
            _put_down(solved, state, done, converged)
            if done.all():
                return
            state.keep(~done)

        trial = state.theta + state.step.to(problem.dtype)[:, None] * state.direction
        data_loss, data_gradient, spread = problem.evaluate(trial)
        loss = data_loss + _half_square(state.penalty, trial)
        rounding = torch.finfo(problem.dtype).eps / 4 * state.loss
        fresh = loss <= state.loss + ARMIJO * state.step * state.slope + rounding
        pair = _Pair(trial - state.theta, data_gradient - state.data_gradient, fresh.double())
        state.pairs = [*state.pairs[-(history - 1) :], pair]
        taken = fresh[:, None]
        state.theta = torch.where(taken, trial, state.theta)
        state.data_gradient = torch.where(taken, data_gradient, state.data_gradient)
        state.spread = torch.where(taken, spread, state.spread)
        # Where the step was too long: the minimum of the parabola through what is known.
        bend = (loss - state.loss - state.step * state.slope).clamp(min=1e-300)
        shorter = -state.slope * state.step**2 / (2 * bend)
        shorter = shorter.clamp(0.1 * state.step, 0.5 * state.step)
        state.step = torch.where(fresh, state.step, shorter)
        state.loss = torch.where(fresh, loss, state.loss)
        state.taken += 1


def _direction(problem: _Problem, state: _State) -> tuple[Tensor, Tensor, Tensor]:
    """Return the L-BFGS direction [J, A, K], the slope along it and g' D^-1 g, both [A]."""
    gradient = state.data_gradient + state.penalty * state.theta
    model = problem.scatter[:, None, None] * state.spread + state.penalty.double()  # [J, A, K]
    inverse = (1 / model).to(problem.dtype)
    plain = _dot(gradient, inverse * gradient)
    q = gradient.clone()
    known = []
    for pair in reversed(state.pairs):
        y = pair.y + state.penalty * pair.s
        sy = _dot(pair.s, y)
        usable = (pair.used > 0) & (sy > 1e-12 * _dot(y, inverse * y))
        rho = torch.where(usable, 1 / sy, torch.zeros_like(sy))
        alpha = rho * _dot(pair.s, q)
        q -= alpha.to(q.dtype)[:, None] * y
        known.append((pair, y, sy, rho, alpha, usable))
    scale = torch.ones_like(plain)
    for _, y, sy, _, _, usable in reversed(known):
        scale = torch.where(usable, sy / _dot(y, inverse * y).clamp(min=1e-300), scale)
    q = scale.to(q.dtype)[:, None] * (inverse * q)
    for pair, y, _, rho, alpha, _ in reversed(known):
        q += (alpha - rho * _dot(y, q)).to(q.dtype)[:, None] * pair.s
    return -q, -_dot(gradient, q), plain


def _history(theta: Tensor, penalties: int) -> int:
    """Return how many pairs to keep, given one wave's coefficients [J, A, K]."""
    pair_bytes = 2 * theta[:, 0].numel() * theta.element_size()
    return max(5, min(HISTORY, HISTORY_BYTES // (pair_bytes * penalties)))


def _inherit(given: list[list[tuple[Tensor, Tensor]]]) -> list[_Pair]:
    """Line up the pairs that each penalty starts with, the latest last."""
    length = max(len(pairs) for pairs in given)
    shape = next((pairs[0][0] for pairs in given if pairs), None)
    if shape is None:
        return []
    lined = []
    for back in range(length, 0, -1):
        have = [pairs[-back] if len(pairs) >= back else None for pairs in given]
        zero = torch.zeros_like(shape)
        lined.append(
            _Pair(
                torch.stack([zero if p is None else p[0] for p in have], 1),
                torch.stack([zero if p is None else p[1] for p in have], 1),
                torch.tensor([p is not None for p in have], device=shape.device).double(),
            )
        )
    return lined


def _put_down(solved: _Solved, state: _State, done: Tensor, converged: Tensor) -> None:
    for a in done.nonzero()[:, 0].tolist():
        i = int(state.index[a])
        solved.theta[i] = state.theta[:, a].clone()
        solved.pairs[i] = [
            (p.s[:, a].clone(), p.y[:, a].clone()) for p in state.pairs if p.used[a] > 0
        ]
        solved.objectives[i] = state.loss[a].cpu()
        solved.iterations[i] = state.taken[a].cpu()
        solved.converged[i] = converged[a].cpu()


def _half_square(penalty: Tensor, theta: Tensor) -> Tensor:
    return (penalty * theta.double() ** 2).sum((0, 2)) / 2  # [A]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((0, 2), dtype=torch.float64)  # [A]
