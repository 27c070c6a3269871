"""Metrics against scikit-learn, loops and numbers worked out by hand."""

import numpy as np
import pytest
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    jaccard_score,
    precision_recall_curve,
)

from synclr_cli.learning import metrics, reports

rng = np.random.default_rng(0)
TRUTH, PREDICTED = rng.integers(0, 5, 400), rng.integers(0, 5, 400)


def test_the_confusion_matrix_has_the_truth_in_rows():
    counts = metrics.confusion(TRUTH, PREDICTED, 5)
    assert (counts == confusion_matrix(TRUTH, PREDICTED)).all()


def test_pixels_beyond_the_classes_are_left_out():
    counts = metrics.confusion(np.array([0, 1, 255, -1]), np.array([0, 0, 1, 1]), 2)
    assert counts.tolist() == [[1, 0], [1, 0]]


def test_a_predicted_id_out_of_range_is_refused():
    with pytest.raises(ValueError, match="2 classes"):
        metrics.confusion(np.array([0, 1]), np.array([0, 2]), 2)


def test_top1_and_mean_per_class_agree_with_scikit_learn():
    counts = metrics.confusion(TRUTH, PREDICTED, 5)
    assert metrics.top1(counts) == (TRUTH == PREDICTED).mean()
    assert metrics.mean_per_class(counts) == pytest.approx(
        balanced_accuracy_score(TRUTH, PREDICTED)
    )


def test_a_class_that_never_occurs_does_not_make_the_mean_nan():
    # The released code divides by zero here.
    counts = metrics.confusion(np.array([0, 0, 1]), np.array([0, 2, 1]), 3)
    assert metrics.mean_per_class(counts) == pytest.approx((0.5 + 1) / 2)


def test_iou_agrees_with_scikit_learn():
    counts = metrics.confusion(TRUTH, PREDICTED, 5)
    assert np.allclose(metrics.iou(counts), jaccard_score(TRUTH, PREDICTED, average=None))
    assert metrics.mean_iou(counts) == pytest.approx(
        jaccard_score(TRUTH, PREDICTED, average="macro")
    )


def test_a_class_nobody_has_or_predicts_is_not_in_mean_iou():
    counts = metrics.confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 3)
    assert np.isnan(metrics.iou(counts)[2])
    assert metrics.mean_iou(counts) == pytest.approx(0.5)


@pytest.mark.parametrize("rounding", [None, 1])  # with and without equal scores
def test_average_precision_agrees_with_scikit_learns_curve(rounding):
    drawn = np.random.default_rng(1)
    truth = drawn.random(200) < 0.13
    scores = truth * 0.4 + drawn.normal(size=200)
    scores = scores if rounding is None else scores.round(rounding)
    precision, recall, _ = precision_recall_curve(truth, scores)
    expected = np.mean([precision[recall >= i / 10 - 1e-9].max() for i in range(11)])
    assert metrics.average_precision(truth, scores) == pytest.approx(expected)


def test_average_precision_by_hand():
    # Ranked right, wrong, right: precision 1 up to recall 0.5, then 2/3.
    found = metrics.average_precision(np.array([True, False, True]), np.array([0.9, 0.8, 0.7]))
    assert found == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_average_precision_of_nothing_is_refused():
    with pytest.raises(ValueError, match="has the class"):
        metrics.average_precision(np.zeros(3, bool), np.arange(3.0))
    with pytest.raises(ValueError, match="NaN"):
        metrics.average_precision(np.ones(3, bool), np.array([0.0, np.nan, 1]))


def test_the_interval_is_that_of_the_normal_approximation():
    correct = np.arange(2000) % 10 < 7  # 70 %
    low, high = metrics.accuracy_interval(correct, 0)
    half = 1.96 * np.sqrt(0.7 * 0.3 / 2000)
    assert (low, high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.003)
    assert metrics.accuracy_interval(correct, 0) == (low, high)
    thirds = np.arange(200) % 3 == 0
    assert metrics.accuracy_interval(thirds[:50], 1) != metrics.accuracy_interval(thirds, 1)


def test_the_interval_of_a_few_right_answers_is_no_point():
    low, high = metrics.accuracy_interval(np.ones(4, bool), 0)
    assert (low, high) == pytest.approx((0.5101, 1.0), abs=1e-4)  # Wilson's for 4 of 4
    assert metrics.accuracy_interval(np.zeros(4, bool), 0) == pytest.approx((0, 0.4899), abs=1e-4)


def test_the_interval_of_the_mean_per_class_is_around_it():
    labels = np.repeat([0, 1], [900, 100])
    correct = np.concatenate([np.arange(900) % 10 < 9, np.arange(100) % 2 == 0])
    low, high = metrics.accuracy_interval(correct, 0, labels=labels)
    assert low < 0.7 < high < 0.8  # the plain accuracy is 0.86


def test_the_interval_of_any_statistic_agrees_with_the_quick_one():
    correct = np.arange(500) % 4 != 0
    quick = metrics.accuracy_interval(correct, 0)
    slow = metrics.bootstrap_interval_of(lambda rows: correct[rows].mean(), 500, 0)
    assert slow == pytest.approx(quick, abs=0.01)


def test_a_matrix_of_classes_with_odd_names_is_drawn(tmp_path):
    names = [r"\frac{1 $x$ \frac{1$", "n" * 40]
    reports.draw_confusion(np.eye(2, dtype=int), names, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5000
    assert reports.shortened(names[1]) == "n" * 25 + "..."
