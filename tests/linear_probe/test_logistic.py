"""The penalty path against scikit-learn, an independent gradient, and itself."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from synclr_cli.linear_probe import logistic, newton


def clusters(n=240, width=12, classes=4, seed=0, spread=1.0, decay=0.0):
    """Return overlapping clusters whose directions shrink as j^-decay, moved off the origin."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    scale = (np.arange(width) + 1.0) ** -decay
    x = (rng.normal(size=(classes, width))[y] + spread * rng.normal(size=(n, width))) * scale + 2
    return torch.tensor(x), torch.tensor(y)


def objective_and_gradient(x, y, weights, intercepts, penalty):
    """Return the objective and its largest gradient entry, by numpy in float64."""
    x, y, w, b = x.numpy(), y.numpy(), weights.numpy(), intercepts.numpy()
    z = x @ w + b
    z = z - z.max(1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    loss = -log_p[np.arange(len(y)), y].sum() + penalty / 2 * (w**2).sum()
    residual = np.exp(log_p)
    residual[np.arange(len(y)), y] -= 1
    gradient = np.concatenate([x.T @ residual + penalty * w, residual.sum(0, keepdims=True)])
    return loss, np.abs(gradient).max()


def test_the_grid_is_log_spaced_from_end_to_end():
    grid = logistic.penalty_grid(45, 1e-6, 1e5)
    assert np.allclose(grid, np.logspace(-6, 5, 45), rtol=1e-6)


def test_every_penalty_reaches_the_optimum_of_scikit_learn():
    x, y = clusters(spread=1.5)
    penalties = logistic.penalty_grid(9, 1e-3, 1e4)
    path = logistic.fit_path(x, y, penalties, classes=4, iterations=1000)
    assert path.converged.all()
    for i, penalty in enumerate(penalties):
        reference = LogisticRegression(C=1 / penalty, max_iter=10_000, tol=1e-10).fit(x, y)
        w = torch.tensor(reference.coef_.T)
        b = torch.tensor(reference.intercept_)
        theirs, _ = objective_and_gradient(x, y, w, b, penalty)
        ours, gradient = objective_and_gradient(x, y, path.weights[i], path.intercepts[i], penalty)
        assert ours <= theirs * (1 + 1e-9)
        assert ours == pytest.approx(float(path.objectives[i]), rel=1e-9)
        assert gradient < 1e-3
        assert torch.allclose(path.weights[i], w, atol=2e-3 * float(w.abs().max()))


def test_two_classes_are_the_sigmoid_problem():
    x, y = clusters(classes=2, spread=2.0)
    path = logistic.fit_path(x, y, [3.0], classes=2, iterations=1000)
    reference = LogisticRegression(C=1 / 3.0, max_iter=10_000, tol=1e-10).fit(x, y)
    w = path.weights[0][:, 1] - path.weights[0][:, 0]
    assert np.allclose(w.numpy(), reference.coef_[0], atol=1e-4)


def test_weak_penalties_on_nearly_collinear_features_do_not_stall():
    # A preconditioner that trusts tiny eigenvalues stops at a point that is not an optimum.
    x, y = clusters(n=600, width=16, decay=3.0, spread=2.0)
    x[:, 1] = x[:, 0] + 1e-5 * x[:, 1]
    penalties = logistic.penalty_grid(8, 1e-6, 1e1)
    path = logistic.fit_path(x, y, penalties, classes=4, iterations=2000)
    for i, penalty in enumerate(penalties):
        at_zero, first = objective_and_gradient(x, y, torch.zeros(16, 4), torch.zeros(4), penalty)
        found, gradient = objective_and_gradient(x, y, path.weights[i], path.intercepts[i], penalty)
        assert found < at_zero
        assert gradient < 1e-4 * first
    # A stronger penalty never fits the data better.
    assert (path.objectives.diff() > 0).all()


@pytest.mark.parametrize("most", [0, 1e15], ids=["lbfgs", "newton"])
def test_single_precision_finds_the_same_minimum(monkeypatch, most):
    x, y = clusters(n=500, spread=1.5, decay=1.0)
    penalties = logistic.penalty_grid(12, 1e-4, 1e5)
    double = logistic.fit_path(x, y, penalties, classes=4, iterations=500)
    monkeypatch.setattr(logistic, "FLOAT64_OPERATIONS", 0)
    monkeypatch.setattr(logistic, "NEWTON_OPERATIONS", most)
    single = logistic.fit_path(x.float(), y, penalties, classes=4, iterations=500)
    for i, penalty in enumerate(penalties):
        found, _ = objective_and_gradient(x, y, single.weights[i], single.intercepts[i], penalty)
        assert found == pytest.approx(float(double.objectives[i]), rel=1e-5)


def test_a_penalty_alone_gets_the_solution_it_gets_in_company():
    x, y = clusters(spread=1.5)
    penalties = logistic.penalty_grid(19, 1e-2, 1e3)
    together = logistic.fit_path(x, y, penalties, classes=4, iterations=500)
    for i in (0, 7, 18):
        alone = logistic.fit_path(x, y, [penalties[i]], classes=4, iterations=500)
        assert float(alone.objectives[0]) == pytest.approx(float(together.objectives[i]), rel=1e-9)


def test_rotating_and_moving_the_features_changes_no_prediction():
    x, y = clusters(spread=1.5)
    rotation, _ = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))
    plain = logistic.fit_path(x, y, [0.1, 10.0], classes=4, iterations=500)
    turned = logistic.fit_path(x @ rotation - 5, y, [0.1, 10.0], classes=4, iterations=500)
    assert torch.allclose(plain.objectives, turned.objectives, rtol=1e-9)
    before = logistic.logits(x, plain.weights, plain.intercepts)
    after = logistic.logits(x @ rotation - 5, turned.weights, turned.intercepts)
    assert torch.allclose(before.softmax(-1), after.softmax(-1), atol=1e-3)


def test_the_iteration_cap_holds_and_is_owned_up_to():
    x, y = clusters(spread=1.5)
    path = logistic.fit_path(x, y, [1e-6, 1e5], classes=4, iterations=3)
    assert path.iterations.max() <= 3
    assert not path.converged[0]


def test_separable_classes_at_a_weak_penalty_stay_finite():
    x, y = clusters(n=40, width=30, spread=0.1)
    path = logistic.fit_path(x, y, [1e-6, 1e-3], classes=4, iterations=300)
    assert torch.isfinite(path.weights).all()
    scores = logistic.logits(x, path.weights, path.intercepts)
    assert (scores.argmax(-1) == y).all()


def test_a_class_without_pictures_is_never_predicted():
    x, y = clusters(classes=3)
    path = logistic.fit_path(x, y, [1.0], classes=4, iterations=200)
    scores = logistic.logits(x, path.weights[0], path.intercepts[0])
    assert torch.isfinite(scores).all()
    assert (scores.argmax(-1) != 3).all()


def test_a_feature_that_is_not_finite_is_refused():
    x, y = clusters()
    x[3, 2] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        logistic.fit_path(x, y, [1.0], classes=4, iterations=10)


def test_a_penalty_of_zero_is_refused():
    x, y = clusters()
    with pytest.raises(ValueError, match="above 0"):
        logistic.fit_path(x, y, [0.0, 1.0], classes=4, iterations=10)


def test_several_classes_a_picture_are_as_many_sigmoid_problems():
    x, y = clusters(n=300, spread=2.0)
    flags = torch.nn.functional.one_hot(y, 4)
    flags[::3, 0] = 1
    path = logistic.fit_path(x, flags, [0.5, 20.0], classes=4, iterations=1000)
    for i, penalty in enumerate((0.5, 20.0)):
        for k in range(4):
            reference = LogisticRegression(C=1 / penalty, max_iter=10_000, tol=1e-10)
            reference.fit(x, flags[:, k])
            assert np.allclose(path.weights[i][:, k], reference.coef_[0], atol=1e-4)
            assert float(path.intercepts[i][k]) == pytest.approx(
                float(reference.intercept_[0]), abs=2e-3
            )


@pytest.mark.parametrize("most", [0, 1e15], ids=["lbfgs", "newton"])
def test_what_is_common_to_all_classes_is_zero(monkeypatch, most):
    monkeypatch.setattr(logistic, "NEWTON_OPERATIONS", most)
    x, y = clusters(spread=1.5)
    path = logistic.fit_path(x, y, [1e-4, 1e-1, 1e2], classes=4, iterations=500)
    largest = path.weights.abs().amax((1, 2))
    assert (path.weights.mean(-1).abs().amax(-1) < 1e-12 * largest).all()


@pytest.mark.parametrize(
    ("name", "value"), [("CHUNK_NUMBERS", 256), ("DENSE", 5), ("FACTOR_ROWS", 50), ("NUMBERS", 1)]
)
def test_sizes_that_save_memory_change_no_solution(monkeypatch, name, value):
    x, y = clusters(n=400, width=20, spread=1.5, decay=1.0)
    penalties = logistic.penalty_grid(9, 1e-4, 1e4)
    plain = logistic.fit_path(x, y, penalties, classes=4, iterations=2000)
    monkeypatch.setattr(newton, name, value)
    path = logistic.fit_path(x, y, penalties, classes=4, iterations=2000)
    assert path.converged.all()
    assert torch.allclose(path.objectives, plain.objectives, rtol=1e-9)
