"""How long the whole penalty path takes: ours, scikit-learn's L-BFGS, one torch L-BFGS a penalty.

    python benchmarks/linear_probe_solver.py                          50,000 x 768, 100 classes
    python benchmarks/linear_probe_solver.py --images 10000 --width 256 --classes 50

Features are drawn, not measured: clusters in directions whose spread falls as j^-0.7 (as the
spectrum of ViT features does) with a noise level of its own for each image, so that weak
penalties overfit and the best penalty lies inside the grid. All three solvers stop at the same
iteration cap and get the same float32 features. Seconds are the process's CPU seconds over all
threads, which other programs on the machine disturb least; wall seconds stand beside them.
`--every 9 --first 4` fits every ninth penalty, from the fifth on, with the other two and scales
their time to the whole grid; what is printed says which.

A solution counts as converged if its objective is at most CONVERGED, relatively, above the lowest
of the three. What a solver says is printed too: one that stops because a step no longer lowers a
float32 sum calls that converged as well. Gradients are the largest entry, over the largest at zero
weights.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from synclr_cli.linear_probe import logistic

CONVERGED = 1e-5


def draw(images: int, width: int, classes: int, separation: float, seed: int):
    """Return features [n, D] float32 and labels [n]."""
    generator = torch.Generator().manual_seed(0)  # the clusters; the images come from `seed`
    spread = torch.arange(1, width + 1) ** -0.7
    turn = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    centres = torch.randn(classes, width, generator=generator) * spread * separation
    generator.manual_seed(seed)
    y = torch.randint(0, classes, (images,), generator=generator)
    noise = torch.randn(images, width, generator=generator) * spread
    noise = noise * (0.5 + torch.rand(images, 1, generator=generator))
    return (centres[y] + noise) @ turn * 3 + 0.3, y


def by_scikit_learn(x, y, penalty, cap):
    """Return weights, intercepts and iterations of scikit-learn's L-BFGS."""
    fit = LogisticRegression(C=1 / penalty, max_iter=cap, tol=1e-6).fit(x.numpy(), y.numpy())
    return torch.tensor(fit.coef_.T), torch.tensor(fit.intercept_), int(fit.n_iter_[0])


def by_torch(x, y, penalty, cap):
    """Return weights, intercepts and iterations of one torch L-BFGS from zero."""
    w = torch.zeros(x.shape[1], int(y.max()) + 1, requires_grad=True)
    b = torch.zeros(int(y.max()) + 1, requires_grad=True)
    solver = torch.optim.LBFGS(
        [w, b], max_iter=cap, tolerance_grad=1e-6, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure():
        solver.zero_grad()
        loss = F.cross_entropy(torch.addmm(b, x, w), y) + penalty / 2 / len(x) * w.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    return w.detach(), b.detach(), int(solver.state[w]["n_iter"])


def main() -> None:
    """Run the three and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--penalties", type=int, default=45)
    parser.add_argument("--cap", type=int, default=100)
    parser.add_argument("--separation", type=float, default=0.4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=int, default=1, help="of the grid, for the other two")
    parser.add_argument("--first", type=int, default=0, help="of the grid, for the other two")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore")

    shape = (options.width, options.classes, options.separation)
    x, y = draw(options.images, *shape, seed=1)
    shown, truth = draw(options.images // 5, *shape, seed=2)
    grid = logistic.penalty_grid(options.penalties, 1e-6, 1e5)

    once, share = x.double(), F.one_hot(y).double()

    def grade(w, b, penalty):
        """Return the objective, validation accuracy and largest entry of the gradient."""
        w, b = w.double(), b.double()
        z = once @ w + b
        loss = F.cross_entropy(z, y, reduction="sum") + penalty / 2 * w.square().sum()
        gradient = once.T @ (z.softmax(1) - share) + penalty * w
        right = (shown.double() @ w + b).argmax(1) == truth
        return float(loss), 100 * float(right.double().mean()), float(gradient.abs().max())

    zeros = torch.zeros(x.shape[1], options.classes)
    _, _, steepest = grade(zeros, zeros[0], 0.0)

    started, started_wall = time.process_time(), time.monotonic()
    path = logistic.fit_path(x, y, grid, classes=options.classes, iterations=options.cap)
    ours, wall = time.process_time() - started, {"ours": time.monotonic() - started_wall}
    print(f"ours {ours:.1f} CPU s, iterations {path.iterations.sum()}", flush=True)

    rows = []
    sampled = range(options.first, options.penalties, options.every)
    seconds = {"scikit-learn": 0.0, "torch": 0.0}
    for i in sampled:
        loss, accuracy, slope = grade(path.weights[i], path.intercepts[i], grid[i])
        row = {
            "penalty": grid[i],
            "ours": {
                "objective": loss,
                "validation": accuracy,
                "iterations": int(path.iterations[i]),
                "gradient": slope / steepest,
                "says_converged": bool(path.converged[i]),
            },
        }
        for name, solve in (("scikit-learn", by_scikit_learn), ("torch", by_torch)):
            started, started_wall = time.process_time(), time.monotonic()
            w, b, iterations = solve(x, y, grid[i], options.cap)
            seconds[name] += time.process_time() - started
            wall[name] = wall.get(name, 0.0) + time.monotonic() - started_wall
            theirs, accuracy, slope = grade(w, b, grid[i])
            row[name] = {
                "objective": theirs,
                "validation": accuracy,
                "iterations": iterations,
                "gradient": slope / steepest,
                "says_converged": iterations < options.cap,
                "ours_relative": (loss - theirs) / theirs,
            }
        lowest = min(row[name]["objective"] for name in ("ours", *seconds))
        for name in ("ours", *seconds):
            row[name]["converged"] = row[name]["objective"] <= lowest * (1 + CONVERGED)
        rows.append(row)
        print(json.dumps(row), flush=True)

    both = [r for r in rows if r["ours"]["converged"] and r["scikit-learn"]["converged"]]
    whole = {name: s * options.penalties / len(sampled) for name, s in seconds.items()}
    print(
        json.dumps(
            {
                "shape": [options.images, options.width, options.classes, options.penalties],
                "cap": options.cap,
                "threads": options.threads,
                "load": os.getloadavg()[0],
                "penalties_fitted_by_the_others": len(sampled),
                "cpu_seconds": {"ours": ours, **whole},
                "wall_seconds_unscaled": wall,
                "times_faster": {name: s / ours for name, s in whole.items()},
                "iterations": {
                    "ours": int(path.iterations.sum()),
                    **{name: sum(r[name]["iterations"] for r in rows) for name in whole},
                },
                "largest_relative_excess_of_our_objective": {
                    name: max(r[name]["ours_relative"] for r in rows) for name in whole
                },
                "largest_validation_difference_where_both_converge": max(
                    (abs(r["ours"]["validation"] - r["scikit-learn"]["validation"]) for r in both),
                    default=float(np.nan),
                ),
                "penalties_where_both_converge": len(both),
            }
        )
    )


if __name__ == "__main__":
    main()
