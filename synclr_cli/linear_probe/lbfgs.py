"""The penalty path by L-BFGS, for problems where a pass over the features is what costs.

It runs for several penalties side by side: the features are read once per iteration, in one matrix
product for all of them, and a penalty leaves when it has converged. Three things keep the
iterations few:

- Rotated to the eigenbasis of their covariance, features are uncorrelated, so the diagonal
  `curvature of the softmax x eigenvalue + lambda` is a good Hessian for every penalty.
- The path is solved coarse to fine; a penalty between two solved ones starts between them,
  with the curvature pairs of its neighbour (lambda enters those exactly).
- The first step from zero weights is a Newton step.

Shapes: n images, D features, K classes, P penalties, A of them active, J = D + 1 coefficients of
a class, the intercept last.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from synclr_cli.linear_probe.path import Path

HISTORY = 30  # curvature pairs kept, as far as they fit into
HISTORY_BYTES = 2**30  # for the whole path
ARMIJO = 1e-4
SHORTEST_STEP = 2.0**-20
# A penalty has converged when the objective is estimated to lie above its minimum by at most
# TOLERANCE x objective + SLACK x pictures. The slack ends problems whose minimum is almost zero.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-7}
SLACK = {torch.float64: 1e-13, torch.float32: 1e-8}
EIGENVALUE_FLOOR = {torch.float64: 1e-12, torch.float32: 1e-6}  # of the largest
CHUNK_NUMBERS = 2**20  # logits held at a time


def fit(x: Tensor, y: Tensor, strengths: Tensor, *, classes: int, iterations: int) -> Path:
    """Return the minima at all strengths [P], by float32 sums; the rest as `logistic.fit_path`."""
    problem = _Problem(x, y, classes, torch.float32)
    solved = _Solved(problem, strengths)
    for wave in _waves(len(strengths)):
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
        if y.ndim == 1:
            self.counts = torch.bincount(y, minlength=classes).to(torch.float64)  # [K]
        else:
            self.y, self.counts = y.to(dtype), y.sum(0, dtype=torch.float64)

    def evaluate(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the summed cross entropy [A], its gradient [A, J, K] and mean p (1 - p) [A, K]."""
        a, j, k = theta.shape
        flat = theta.transpose(0, 1).reshape(j, a * k)  # [J, A K]
        loss = torch.zeros(a, dtype=torch.float64, device=theta.device)
        gradient = torch.zeros_like(flat)
        squares = torch.zeros(a, k, dtype=torch.float64, device=theta.device)
        rows = max(CHUNK_NUMBERS // (a * k), 64)
        for x, y in zip(self.x.split(rows), self.y.split(rows), strict=True):
            z = (x @ flat).view(len(x), a, k)  # [rows, A, K]
            if y.ndim == 1:
                log_p = z.log_softmax(-1)
                at_label = y[:, None, None].expand(-1, a, 1)
                loss -= log_p.gather(-1, at_label).sum((0, 2), dtype=torch.float64)
                p = log_p.exp_()
                squares += torch.linalg.vector_norm(p, dim=0).double() ** 2
                p.scatter_add_(-1, at_label, p.new_full((1, 1, 1), -1.0).expand_as(at_label))
            else:
                loss += (F.softplus(z) - z * y[:, None]).sum((0, 2), dtype=torch.float64)
                p = z.sigmoid_()
                squares += torch.linalg.vector_norm(p, dim=0).double() ** 2
                p -= y[:, None]
            gradient.addmm_(x.T, p.view(len(x), a * k))
        gradient = gradient.view(j, a, k).transpose(0, 1).contiguous()  # [A, J, K]
        spread = (gradient[:, -1].double() + self.counts - squares) / self.n  # [A, K]
        return loss, gradient, spread.clamp(min=1e-12)

    def start(self) -> Tensor:
        """Return zero weights and the intercepts that are best for them, [J, K]."""
        theta = torch.zeros(len(self.scatter), self.classes, dtype=self.dtype, device=self.x.device)
        share = self.counts.clamp(0.5, self.n - 0.5) / self.n
        theta[-1] = (share.log() if self.y.ndim == 1 else share.logit()).to(self.dtype)
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
            return self.problem.start(), []
        h = above - i
        outer = [self.theta.get(i - 3 * h), self.theta.get(i + 3 * h)]
        middle = (self.theta[below] + self.theta[above]) / 2
        if i - below == h and outer[0] is not None and outer[1] is not None:
            middle = (9 / 8) * middle - (outer[0] + outer[1]) / 16  # cubic through four
        return middle, self.pairs[above]

    def path(self) -> Path:
        """Return the solutions for features as they were given."""
        theta = torch.stack([self.theta[i] for i in range(len(self.strengths))]).double()
        weights = self.problem.basis @ theta[:, :-1]  # [P, D, K]
        if self.problem.y.ndim == 1:  # rounding has put in what a softmax does not see
            weights -= weights.mean(-1, keepdim=True)
        intercepts = theta[:, -1] - self.problem.mean @ weights  # [P, K]
        return Path(weights, intercepts, self.objectives, self.iterations, self.converged)


@dataclass
class _Pair:
    """A step taken and how the gradient changed, for every active penalty."""

    s: Tensor  # [A, J, K]
    y: Tensor  # [A, J, K]
    rho: Tensor  # [A] 1 / s'y; 0 where this penalty took no step, or one that says nothing

    def at(self, active: Tensor) -> _Pair:
        """Return the pair for some of the penalties."""
        return _Pair(self.s[active], self.y[active], self.rho[active])


@dataclass
class _State:
    """The penalties of a wave that have not converged."""

    index: Tensor  # [A] of the path
    penalty: Tensor  # [A, J, 1]
    theta: Tensor  # [A, J, K]
    loss: Tensor  # [A] objective
    gradient: Tensor  # [A, J, K]
    inverse: Tensor  # [A, J, K] of the diagonal model of the Hessian
    scale: Tensor  # [A] of that model, as the last pair measured it
    taken: Tensor  # [A] iterations
    direction: Tensor  # [A, J, K]
    slope: Tensor  # [A]
    step: Tensor  # [A]
    pairs: list[_Pair]

    def keep(self, active: Tensor) -> None:
        """Drop the penalties that are done."""
        for name, value in vars(self).items():
            if name != "pairs":
                setattr(self, name, value[active])
        self.pairs = [pair.at(active) for pair in self.pairs]


def _solve(problem: _Problem, solved: _Solved, wave: list[int], iterations: int) -> None:
    """Run L-BFGS for the penalties of one wave and put down what was found."""
    guesses = [solved.guess(i) for i in wave]
    index = torch.tensor(wave, device=problem.x.device)
    penalty = (solved.strengths[index, None] * problem.penalised).to(problem.dtype)[..., None]
    theta = torch.stack([theta for theta, _ in guesses])  # [A, J, K]
    loss, gradient, inverse = _at(problem, penalty, theta)
    state = _State(
        index=index,
        penalty=penalty,
        theta=theta,
        loss=loss,
        gradient=gradient,
        inverse=inverse,
        scale=torch.ones_like(loss),
        taken=torch.zeros_like(index),
        direction=torch.zeros_like(theta),
        slope=torch.zeros_like(loss),
        step=torch.ones_like(loss),
        pairs=_inherit([pairs for _, pairs in guesses], penalty, inverse),
    )
    tolerance, slack = TOLERANCE[problem.dtype], SLACK[problem.dtype] * problem.n
    history = _history(theta, len(solved.strengths))
    fresh = torch.ones_like(index, dtype=torch.bool)  # penalties that have moved since
    while True:
        direction = _direction(state)
        slope = _dot(state.gradient, direction)
        gain = torch.maximum(-slope, _dot(state.gradient, state.inverse * state.gradient)) / 2
        state.direction = torch.where(_wide(fresh), direction, state.direction)
        state.slope = torch.where(fresh, slope, state.slope)
        state.step = torch.where(fresh, torch.ones_like(state.step), state.step)
        # The Newton decrement is about the objective's height above its minimum.
        converged = fresh & (gain <= tolerance * state.loss + slack)
        stuck = state.step < SHORTEST_STEP  # rounding hides any descent
        done = converged | stuck | (state.taken >= iterations)
        if done.any():
            _put_down(solved, state, done, converged)
            if done.all():
                return
            state.keep(~done)

        trial = state.theta + _wide(state.step).to(problem.dtype) * state.direction
        loss, gradient, inverse = _at(problem, state.penalty, trial)
        rounding = torch.finfo(problem.dtype).eps / 4 * state.loss
        fresh = loss <= state.loss + ARMIJO * state.step * state.slope + rounding
        pair, scale = _pair(trial - state.theta, gradient - state.gradient, inverse, fresh)
        state.pairs = [*state.pairs[-(history - 1) :], pair]
        state.scale = torch.where(pair.rho > 0, scale, state.scale)
        # Where the step was too long: the minimum of the parabola through what is known.
        bend = (loss - state.loss - state.step * state.slope).clamp(min=1e-300)
        shorter = -state.slope * state.step**2 / (2 * bend)
        shorter = shorter.clamp(0.1 * state.step, 0.5 * state.step)
        state.step = torch.where(fresh, state.step, shorter)
        state.theta = torch.where(_wide(fresh), trial, state.theta)
        state.gradient = torch.where(_wide(fresh), gradient, state.gradient)
        state.inverse = torch.where(_wide(fresh), inverse, state.inverse)
        state.loss = torch.where(fresh, loss, state.loss)
        state.taken += 1


def _at(problem: _Problem, penalty: Tensor, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the objective [A], its gradient and the inverse of its diagonal model [A, J, K]."""
    loss, gradient, spread = problem.evaluate(theta)
    loss = loss + (penalty * theta.double() ** 2).sum((1, 2)) / 2
    model = problem.scatter[:, None] * spread[:, None] + penalty.double()  # [A, J, K]
    return loss, gradient + penalty * theta, (1 / model).to(theta.dtype)


def _direction(state: _State) -> Tensor:
    """Return the L-BFGS direction, [A, J, K]: two loops over the pairs, newest first."""
    q = state.gradient.clone()
    alphas = []
    for pair in reversed(state.pairs):
        alpha = _wide(pair.rho * _dot(pair.s, q)).to(q.dtype)
        q -= alpha * pair.y
        alphas.append(alpha)
    q *= _wide(state.scale).to(q.dtype) * state.inverse
    for pair, alpha in zip(state.pairs, reversed(alphas), strict=True):
        q += (alpha - _wide(pair.rho * _dot(pair.y, q)).to(q.dtype)) * pair.s
    return -q


def _pair(s: Tensor, y: Tensor, inverse: Tensor, taken: Tensor) -> tuple[_Pair, Tensor]:
    """Return a pair and the scale of the diagonal model that it measures, [A]."""
    sy, yy = _dot(s, y), _dot(y, inverse * y)
    usable = taken & (sy > 1e-12 * yy)
    rho = torch.where(usable, 1 / sy, torch.zeros_like(sy))
    return _Pair(s, y, rho), sy / yy.clamp(min=1e-300)


def _history(theta: Tensor, penalties: int) -> int:
    """Return how many pairs to keep, given one wave's coefficients [A, J, K]."""
    pair_bytes = 2 * theta[0].numel() * theta.element_size()
    return max(5, min(HISTORY, HISTORY_BYTES // (pair_bytes * penalties)))


def _inherit(
    given: list[list[tuple[Tensor, Tensor]]], penalty: Tensor, inverse: Tensor
) -> list[_Pair]:
    """Line up the pairs that each penalty starts with, the latest last, with its own lambda."""
    lined = []
    nothing = torch.zeros_like(inverse[0])
    for back in range(max(len(pairs) for pairs in given), 0, -1):
        have = [pairs[-back] if len(pairs) >= back else None for pairs in given]
        s = torch.stack([nothing if pair is None else pair[0] for pair in have])  # [A, J, K]
        y = torch.stack([nothing if pair is None else pair[1] for pair in have])
        there = torch.tensor([pair is not None for pair in have], device=s.device)
        lined.append(_pair(s, y + penalty * s, inverse, there)[0])
    return lined


def _put_down(solved: _Solved, state: _State, done: Tensor, converged: Tensor) -> None:
    """Write down the penalties that are done; of their pairs, the data term's part."""
    for a in done.nonzero()[:, 0].tolist():
        i = int(state.index[a])
        solved.theta[i] = state.theta[a].clone()
        solved.pairs[i] = [
            (pair.s[a].clone(), pair.y[a] - state.penalty[a] * pair.s[a])
            for pair in state.pairs
            if pair.rho[a] > 0
        ]
        solved.objectives[i] = state.loss[a].cpu()
        solved.iterations[i] = state.taken[a].cpu()
        solved.converged[i] = converged[a].cpu()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each penalty's coefficients, [A] float64."""
    return torch.bmm(a.flatten(1)[:, None], b.flatten(1)[:, :, None])[:, 0, 0].double()


def _wide(x: Tensor) -> Tensor:
    return x[:, None, None]
