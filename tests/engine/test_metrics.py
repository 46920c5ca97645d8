"""Metrics against scikit-learn and SciPy, at the edges where those warn or give NaN, and their intervals."""

import warnings

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from autopeft.engine.metrics import METRICS, interval
from autopeft.engine.problem_names import METRICS_OF

CLASSIFICATION = [METRICS[name] for name in METRICS_OF["classification"]]
REGRESSION = [METRICS[name] for name in METRICS_OF["regression"]]
OF_ONE_VALUE = {metric.name: metric for metric in (*CLASSIFICATION, *REGRESSION)}

pairs_of_classes = st.integers(1, 4).flatmap(
    lambda k: st.lists(st.tuples(st.integers(0, k), st.integers(0, k)), min_size=1, max_size=40)
)
numbers = st.integers(-3, 3).map(float) | st.floats(-1e3, 1e3)
pairs_of_numbers = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=40)


def reference(name: str, predicted: np.ndarray, labels: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        match name:
            case "accuracy":
                return sklearn.metrics.accuracy_score(labels, predicted)
            case "f1":
                return sklearn.metrics.f1_score(labels, predicted, labels=[1], average="macro", zero_division=0)
            case "macro_f1":
                return sklearn.metrics.f1_score(labels, predicted, average="macro", zero_division=0)
            case "mcc":
                return sklearn.metrics.matthews_corrcoef(labels, predicted)
            case "pearson":
                return stats.pearsonr(predicted, labels).statistic if len(labels) > 1 else 0.0
            case _:
                return stats.spearmanr(predicted, labels).statistic if len(labels) > 1 else 0.0


@pytest.mark.parametrize("metric", CLASSIFICATION, ids=lambda metric: metric.name)
@settings(max_examples=40, deadline=None)
@given(pairs=pairs_of_classes)
def test_classification_metrics_agree_with_scikit_learn(metric, pairs):
    predicted, labels = np.array(pairs).T
    assert metric.score(predicted, labels) == pytest.approx(reference(metric.name, predicted, labels), abs=1e-12)


@pytest.mark.parametrize("metric", REGRESSION, ids=lambda metric: metric.name)
@settings(max_examples=40, deadline=None)
@given(pairs=pairs_of_numbers)
def test_regression_metrics_agree_with_scipy_and_are_0_where_it_gives_nan(metric, pairs):
    predicted, labels = np.array(pairs).T
    assert metric.score(predicted, labels) == pytest.approx(
        np.nan_to_num(reference(metric.name, predicted, labels)), abs=1e-6
    )


@pytest.mark.parametrize("metric", OF_ONE_VALUE.values(), ids=OF_ONE_VALUE)
def test_undefined_scores_are_0_without_a_warning(metric):
    n = 6
    cases = [([0] * n, [0] * n), ([0] * n, [1] * n), ([1] * n, [0] * n), ([0.1] * n, [0, 1, 2, 0, 1, 2]), ([0], [1])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = [metric.score(predicted, labels) for predicted, labels in cases]
        if metric in REGRESSION:
            scores.append(metric.score([float("nan"), 1.0, 2.0], [0.0, 1.0, 2.0]))
            scores.append(metric.score([float("inf"), 1.0, 2.0], [0.0, 1.0, 2.0]))
    allowed = {0.0, 1.0} if metric.name in {"accuracy", "macro_f1"} else {0.0}
    assert set(scores) <= allowed


@pytest.mark.parametrize("metric", OF_ONE_VALUE.values(), ids=OF_ONE_VALUE)
def test_perfect_predictions_score_1(metric):
    labels = [0, 1, 1, 0, 1]
    assert metric.score(labels, labels) == pytest.approx(1.0)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_correlations_do_not_depend_on_the_scale(scale):
    predicted, labels = [1.0, 2.0, 4.0, 3.0], [1.0, 2.0, 3.0, 5.0]
    for metric in REGRESSION:
        scaled = metric.score([scale * value for value in predicted], labels)
        assert scaled == pytest.approx(metric.score(predicted, labels), abs=1e-12)


@pytest.mark.parametrize("metric", OF_ONE_VALUE.values(), ids=OF_ONE_VALUE)
def test_an_interval_is_that_of_a_plain_bootstrap(metric):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2 if metric.name == "f1" else 5, 120)
    predicted = np.where(rng.random(120) < 0.6, labels, rng.permutation(labels))
    plain = []
    for _ in range(1500):
        rows = rng.integers(0, 120, 120)
        plain.append(metric.score(predicted[rows], labels[rows]))
    low, high = interval(metric, predicted, labels, seed=0)
    assert low < metric.score(predicted, labels) < high
    assert (low, high) == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])), abs=0.03)


def test_an_interval_repeats_with_its_seed_and_widens_with_its_level():
    labels, predicted = [0, 1, 1, 0, 1, 0, 1, 1] * 5, [0, 1, 0, 0, 1, 1, 1, 1] * 5
    metric = METRICS["accuracy"]
    assert interval(metric, predicted, labels, seed=3) == interval(metric, predicted, labels, seed=3)
    low, high = interval(metric, predicted, labels, seed=3)
    wider_low, wider_high = interval(metric, predicted, labels, seed=3, level=0.99)
    assert wider_low < low < high < wider_high


def test_an_interval_is_the_same_in_blocks_of_any_size(monkeypatch):
    labels, predicted = [0, 1, 1, 0, 1, 0, 1, 1], [0, 1, 0, 0, 1, 1, 1, 1]
    whole = interval(METRICS["mcc"], predicted, labels, seed=3)
    monkeypatch.setattr("autopeft.engine.metrics._BLOCK", 8 * 37)
    assert interval(METRICS["mcc"], predicted, labels, seed=3) == whole


@pytest.mark.parametrize(("predicted", "labels"), [([], []), ([1], [1, 0]), ([[1]], [1])])
def test_shapes_that_do_not_fit_are_refused(predicted, labels):
    with pytest.raises(ValueError, match="must be alike"):
        METRICS["accuracy"].score(predicted, labels)
