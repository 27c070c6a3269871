"""The penalty path by Newton's method, for problems where the number of passes is what costs.

Each step solves `Hessian x step = -gradient` by conjugate gradients, which need products with the
Hessian only, for several penalties side by side: the features are read once for all of them.
Products are few since

- the path is walked from strong to weak penalties, each starting on the line through two before;
- conjugate gradients are preconditioned by the Hessian's blocks of single classes, factored once
  for neighbouring penalties: in their eigenbases lambda is only added to the eigenvalues;
- the blocks are dense in the directions of largest variance, diagonal in the others.

Shapes: n images, D features, K classes, P penalties, A of them side by side, J = 1 + number of
directions the features vary in, the intercept first; R < J of them in the dense blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from synclr_cli.linear_probe.path import Path

TOGETHER = 7  # neighbouring penalties with one preconditioner
NUMBERS = 2**27  # probabilities held at a time; fewer penalties side by side if there are more
CHUNK_NUMBERS = 2**20  # logits of one pass through cache
DENSE = 128  # directions in the preconditioner's dense blocks
FACTOR_ROWS = 8192  # images the blocks are estimated from
STALE = 40  # Hessian products of one Newton step after which the blocks are factored again
ARMIJO = 1e-4
SHORTEST_STEP = 2.0**-20
# A penalty has converged when the objective is estimated to lie above its minimum by at most
# TOLERANCE x objective + SLACK x images. The slack ends problems whose minimum is almost zero.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
SLACK = {torch.float64: 1e-13, torch.float32: 1e-7}
SMALLEST_EIGENVALUE = {torch.float64: 1e-12, torch.float32: 1e-7}  # of the largest


def fit(
    x: Tensor,
    y: Tensor,
    strengths: Tensor,
    *,
    classes: int,
    iterations: int,
    dtype: torch.dtype,
) -> Path:
    """Return the minima at all strengths [P]; the rest as `logistic.fit_path`."""
    problem = _Problem(x, y, classes, dtype)
    solver = _Solver(problem, strengths, iterations)
    together = max(1, min(TOGETHER, NUMBERS // (problem.n * classes)))
    order = torch.argsort(strengths, descending=True).tolist()
    for start in range(0, len(order), together):
        neighbours = order[start : start + together]
        middle = neighbours.pop(len(neighbours) // 2)
        solver.factor(middle)
        solver.solve([middle])
        if neighbours:
            solver.solve(neighbours)
    return solver.path()


class _Problem:
    """The features in the eigenbasis of their covariance, and the loss there."""

    def __init__(self, x: Tensor, y: Tensor, classes: int, dtype: torch.dtype):
        self.n, self.classes, self.dtype = len(x), classes, dtype
        self.softmax = y.ndim == 1
        self.y = (F.one_hot(y, classes) if self.softmax else y).to(dtype)  # [n, K]
        self.mean = x.double().mean(0)  # [D]
        centred = (x.double() - self.mean) if dtype == torch.float64 else x - self.mean.float()
        eigenvalues, basis = torch.linalg.eigh((centred.T @ centred).double())  # [D], [D, D]
        varies = eigenvalues > eigenvalues[-1] * SMALLEST_EIGENVALUE[dtype]
        self.basis = basis[:, varies].flip(1)  # [D, J - 1], the largest variance first
        ones = torch.ones(self.n, 1, dtype=dtype, device=x.device)
        self.x = torch.cat([ones, (centred @ self.basis.to(centred.dtype)).to(dtype)], 1)  # [n, J]
        self.penalised = torch.ones(self.x.shape[1], dtype=dtype, device=x.device)  # [J]
        self.penalised[0] = 0  # the intercept is free

    def start(self) -> Tensor:
        """Return zero weights and the intercepts that are best for them, [J, K]."""
        theta = self.x.new_zeros(self.x.shape[1], self.classes)
        share = self.y.sum(0, dtype=torch.float64).clamp(0.5, self.n - 0.5) / self.n
        theta[0] = (share.log() - share.log().mean() if self.softmax else share.logit()).to(theta)
        return theta

    def evaluate(self, theta: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the summed cross entropy [A], its gradient [J, A, K] and probabilities.

        The probabilities are in chunks of rows, [rows, A, K] each.
        """
        j, a, k = theta.shape
        loss = torch.zeros(a, dtype=torch.float64, device=theta.device)
        gradient = theta.new_zeros(j, a * k)
        chunks = []
        for x, y in self._chunks(self.x, self.y, a):
            z = (x @ theta.reshape(j, a * k)).view(len(x), a, k)  # [rows, A, K]
            if self.softmax:
                log_p = z.log_softmax(-1)
                loss -= torch.einsum("rak,rk->a", log_p, y).double()
                p = log_p.exp_()
            else:
                loss += (F.softplus(z) - z * y[:, None]).sum((0, 2), dtype=torch.float64)
                p = z.sigmoid_()
            gradient.addmm_(x.T, (p - y[:, None]).view(len(x), a * k))
            chunks.append(p)
        return loss, gradient.view(j, a, k), chunks

    def product(self, chunks: list[Tensor], v: Tensor) -> Tensor:
        """Return the Hessian of the cross entropy times v, [J, A, K]."""
        j, a, k = v.shape
        total = v.new_zeros(j, a * k)
        for x, p in zip(torch.split(self.x, [len(p) for p in chunks]), chunks, strict=True):
            u = (x @ v.reshape(j, a * k)).view(len(x), a, k)  # [rows, A, K]
            if self.softmax:
                u = p * u
                u -= p * u.sum(-1, keepdim=True)
            else:
                u *= p - p * p
            total.addmm_(x.T, u.view(len(x), a * k))
        return total.view(j, a, k)

    def _rows(self, a: int) -> int:
        return max(CHUNK_NUMBERS // (a * self.classes), 64)

    def _chunks(self, x: Tensor, y: Tensor, a: int) -> zip[tuple[Tensor, Tensor]]:
        rows = self._rows(a)
        return zip(torch.split(x, rows), torch.split(y, rows), strict=True)


class _Preconditioner:
    """The Hessian's blocks of single classes, at one penalty's solution or guess."""

    def __init__(self, problem: _Problem, theta: Tensor):
        step = -(-problem.n // FACTOR_ROWS)
        x = problem.x[::step].float()  # it need not be exact
        p = x @ theta.float()  # [rows, K]
        p = p.softmax(-1) if problem.softmax else p.sigmoid()
        spread = step * (p - p * p)  # [rows, K]
        self.dense = min(DENSE, x.shape[1] - 1)
        lead = x[:, 1 : 1 + self.dense]  # [rows, R]
        weighed = [lead * s[:, None] for s in spread.T]  # K of [rows, R]
        eigenvalues, basis = torch.linalg.eigh(torch.stack([lead.T @ w for w in weighed]).double())
        floor = float(eigenvalues.max()) * SMALLEST_EIGENVALUE[torch.float32]
        self.eigenvalues = eigenvalues.clamp(min=floor).to(problem.dtype)  # [K, R]
        self.basis = basis.to(problem.dtype)  # [K, R, R]
        self.corner = spread.sum(0).clamp(min=floor).to(problem.dtype)  # [K] of the intercepts
        edge = torch.stack([w.sum(0) for w in weighed]).to(problem.dtype)  # [K, R]
        self.edge = (self.basis.mT @ edge[..., None])[..., 0]  # [K, R]
        self.diagonal = (x[:, 1 + self.dense :] ** 2).T @ spread  # [J - 1 - R, K]
        self.diagonal = self.diagonal.clamp(min=floor).to(problem.dtype)
        self.softmax = problem.softmax

    def solve(self, r: Tensor, penalty: Tensor) -> Tensor:
        """Return the inverse of (blocks + penalty of the weights) times r, [J, A, K]."""
        scale = self.eigenvalues[..., None] + penalty  # [K, R, A]
        lead = self.basis.mT @ r[1 : 1 + self.dense].permute(2, 0, 1)  # [K, R, A]
        # The intercept is eliminated first: it has no penalty.
        edge = self.edge[..., None] / scale  # [K, R, A]
        free = self.corner[:, None] - (edge * self.edge[..., None]).sum(1)  # [K, A]
        free = free.clamp(min=1e-6 * self.corner[:, None])
        first = (r[0].T - (edge * lead).sum(1)) / free  # [K, A]
        lead = self.basis @ (lead / scale - edge * first[:, None])
        z = [first.T[None], lead.permute(1, 2, 0)]  # [1, A, K], [R, A, K]
        if len(r) > 1 + self.dense:
            z.append(r[1 + self.dense :] / (self.diagonal[:, None] + penalty[:, None]))
        whole = torch.cat(z)  # [J, A, K]
        # A softmax does not see what is common to all classes, and neither may the steps.
        return whole - whole.mean(-1, keepdim=True) if self.softmax else whole


class _Solver:
    """What is known of each penalty so far."""

    def __init__(self, problem: _Problem, strengths: Tensor, iterations: int):
        self.problem, self.strengths, self.limit = problem, strengths, iterations
        count = len(strengths)
        self.theta: dict[int, Tensor] = {}  # [J, K]
        self.objectives = torch.full((count,), float("nan"), dtype=torch.float64)
        self.iterations = torch.zeros(count, dtype=torch.int64)
        self.converged = torch.zeros(count, dtype=torch.bool)

    def guess(self, i: int, *, nearest: bool = False) -> Tensor:
        """Return a start for penalty i, [J, K]: in log lambda on the line through two solved."""
        if i in self.theta or not self.theta:
            return self.theta.get(i, self.problem.start())
        place = self.strengths.log().tolist()
        near = sorted(self.theta, key=lambda k: abs(place[k] - place[i]))[:2]
        if nearest or len(near) == 1 or place[near[0]] == place[near[1]]:
            return self.theta[near[0]]
        a, b = near
        along = (place[i] - place[a]) / (place[b] - place[a])
        return torch.lerp(self.theta[a], self.theta[b], along)

    def factor(self, i: int) -> None:
        """Make the preconditioner of penalty i and its neighbours."""
        self.preconditioner = _Preconditioner(self.problem, self.guess(i))

    def path(self) -> Path:
        """Return the solutions for features as they were given."""
        theta = torch.stack([self.theta[i] for i in range(len(self.strengths))]).double()
        weights = self.problem.basis @ theta[:, 1:]  # [P, D, K]
        intercepts = theta[:, 0] - self.problem.mean @ weights  # [P, K]
        return Path(weights, intercepts, self.objectives, self.iterations, self.converged)

    def solve(self, indices: list[int]) -> None:
        """Find the minima of some penalties, side by side."""
        problem = self.problem
        index = torch.tensor(indices)
        strength = self.strengths[index.to(self.strengths.device)].to(problem.dtype)  # [A]
        theta = torch.stack([self.guess(i) for i in indices], 1)  # [J, A, K]
        loss, gradient, chunks = self._evaluate(theta, strength)
        passes = torch.ones_like(index)
        near = torch.stack([self.guess(i, nearest=True) for i in indices], 1)
        if not torch.equal(near, theta):  # a line may lead astray
            safe_loss = self._evaluate(near, strength)[0]
            theta = torch.where((loss <= safe_loss)[:, None], theta, near)
            loss, gradient, chunks = self._evaluate(theta, strength)
            passes += 2
        step = torch.ones_like(loss)
        tolerance, slack = TOLERANCE[problem.dtype], SLACK[problem.dtype] * problem.n
        while True:
            z = self.preconditioner.solve(gradient, strength)
            # The Newton decrement is about the objective's height above its minimum.
            converged = _dot(gradient, z) / 2 <= tolerance * loss + slack
            done = (converged | (step < SHORTEST_STEP)).cpu() | (passes > self.limit - 2)
            if done.any():
                self.objectives[index[done]] = loss.cpu()[done]
                self.iterations[index[done]] = passes[done]
                self.converged[index[done]] = converged.cpu()[done]
                for a in done.nonzero().flatten().tolist():
                    self.theta[int(index[a])] = theta[:, a].clone()
                if done.all():
                    return
                index, passes, left = index[~done], passes[~done], (~done).to(theta.device)
                theta, gradient, z = theta[:, left], gradient[:, left], z[:, left]
                strength, loss = strength[left], loss[left]
                chunks = [p[:, left].contiguous() for p in chunks]
            direction, products = self._newton_step(gradient, z, chunks, strength, loss, passes)
            passes += products
            start = theta, loss, gradient
            step, (theta, loss, gradient, chunks) = self._along(direction, start, strength, passes)
            if products > STALE:
                self.preconditioner = _Preconditioner(problem, theta[:, len(index) // 2])

    def _along(
        self,
        direction: Tensor,
        start: tuple[Tensor, Tensor, Tensor],
        strength: Tensor,
        passes: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, list[Tensor]]]:
        """Return how far to go [A], and the coefficients, objective, gradient, probabilities there.

        `passes` counts the evaluations.
        """
        theta, loss, gradient = start
        slope = _dot(gradient, direction)  # [A]
        step = torch.ones_like(loss)
        rounding = torch.finfo(self.problem.dtype).eps * loss
        while True:
            trial = theta + step.to(theta)[:, None] * direction
            trial_loss, trial_gradient, chunks = self._evaluate(trial, strength)
            passes += 1
            climbs = trial_loss > loss + ARMIJO * step * slope + rounding
            if not (climbs & (step >= SHORTEST_STEP)).any() or passes.max() >= self.limit:
                return step, (trial, trial_loss, trial_gradient, chunks)
            # Where the step was too long: the minimum of the parabola through what is known.
            bend = (trial_loss - loss - step * slope).clamp(min=1e-300)
            shorter = (-slope * step**2 / (2 * bend)).clamp(0.1 * step, 0.5 * step)
            step = torch.where(climbs, shorter, step)

    def _newton_step(
        self,
        gradient: Tensor,
        z: Tensor,
        chunks: list[Tensor],
        strength: Tensor,
        loss: Tensor,
        passes: Tensor,
    ) -> tuple[Tensor, int]:
        """Return steps [J, A, K] by conjugate gradients, and the products that they took.

        They stop early where the minimum is still far, and at the limit of passes.
        """
        penalty = strength[:, None] * self.problem.penalised[:, None, None]  # [J, A, 1]
        r, z = -gradient, -z
        direction, total = z.clone(), torch.zeros_like(z)
        rz = first = _dot(r, z)  # [A]
        enough = 0.01 * (first / loss.clamp(min=1e-300)).clamp(max=1 / 16) * first
        products, most = 0, self.limit - 1 - int(passes.max())
        while products < most and (going := rz > enough).any():
            h = self.problem.product(chunks, direction) + penalty * direction
            products += 1
            bend = _dot(direction, h)
            alpha = torch.where(going & (bend > 0), rz / bend, 0.0).to(z)[:, None]
            total += alpha * direction
            r = r - alpha * h
            z = self.preconditioner.solve(r, strength)
            before, rz = rz, torch.where(going, _dot(r, z), rz)
            direction = z + torch.where(before > 0, rz / before, 0.0).to(z)[:, None] * direction
        return total, products

    def _evaluate(self, theta: Tensor, strength: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Return the objective [A], its gradient [J, A, K] and the probabilities."""
        loss, gradient, chunks = self.problem.evaluate(theta)
        penalised = strength[:, None] * self.problem.penalised[:, None, None] * theta
        return loss + _dot(penalised, theta) / 2, gradient + penalised, chunks


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products over all but the penalties, [A] float64."""
    return (a * b).sum((0, 2), dtype=torch.float64)
