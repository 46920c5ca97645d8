"""Scores of predictions with bootstrap intervals over the rows.

A metric is a function of weighted rows, and a bootstrap sample is a vector of row weights, so that the score and its
interval come from one formula, whole blocks of samples at a time. Where a score is undefined (one class only, constant
numbers, NaN among the predictions) it is 0, without a warning. Accuracy, F1, macro-F1 and MCC agree with scikit-learn,
Pearson and Spearman with SciPy: the tests compare them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from autopeft.engine.custom_metrics import by_rows, load_metric
from autopeft.engine.problem_names import GENERATED, METRICS_OF
from autopeft.engine.tags import entity_f1, token_accuracy
from autopeft.engine.text_metrics import bleu, exact_match, rouge

__all__ = ["METRICS", "Metric", "find_metric", "interval"]

Array = npt.NDArray[Any]
Float = npt.NDArray[np.float64]

Reads = Literal["predictions", "losses", "texts"]

_BLOCK = 4_000_000
"""Weights held at a time, 32 MB."""

_FEWER_RESAMPLES = 200
"""For functions of others, which are called once for each."""

_ROUNDING = 1e-13
"""Relative spread below which numbers count as one constant."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A named score.

    `weighted(predicted, labels, weights (R, n))` gives `(R,)` scores; weights are counts of the `n` rows. A row is a
    number, or whatever else its problem's `compared` gives.
    """

    name: str
    weighted: Callable[[Any, Any, Float], Float]
    reads: Reads = "predictions"
    """What `predicted` and `labels` are: `losses`: the sums of each row's losses, and how many those are; `texts`: what
    a model made, and the true ones."""
    is_minimised: bool = False
    resamples: int = 1000
    """Of a bootstrap interval."""

    def score(self, predicted: Any, labels: Any) -> float:
        """Score of predicted class numbers (or real numbers, for regression) `(n,)` against `labels (n,)`.

        Raises:
            ValueError: no rows, or shapes that differ.
        """
        P, Y = _checked(predicted, labels)
        return float(self.weighted(P, Y, np.ones((1, len(Y))))[0])


def interval(
    metric: Metric,
    predicted: Any,
    labels: Any,
    *,
    seed: int,
    level: float = 0.95,
    resamples: int | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the score over rows drawn with replacement; the same seed, the same interval.

    Raises:
        ValueError: no rows, or shapes that differ.
    """
    P, Y = _checked(predicted, labels)
    n = len(Y)
    resamples = resamples or metric.resamples
    rng = np.random.default_rng(seed)
    rows_at_once = max(1, _BLOCK // n)
    scores: list[Float] = []
    for start in range(0, resamples, rows_at_once):
        R = min(rows_at_once, resamples - start)
        drawn = rng.integers(0, n, size=(R, n)) + n * np.arange(R)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=R * n).reshape(R, n).astype(np.float64)
        scores.append(metric.weighted(P, Y, weights))
    low, high = np.quantile(np.concatenate(scores), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _checked(predicted: Any, labels: Any) -> tuple[Any, Any]:
    """Numbers as arrays; lists of lists or of texts as they are, if there are as many."""
    if len(predicted) == len(labels) > 0 and isinstance(labels[0], list | str):
        return predicted, labels
    P, Y = np.asarray(predicted), np.asarray(labels)
    if P.shape != Y.shape or Y.ndim not in (1, 2) or len(Y) == 0:
        raise ValueError(f"predictions {P.shape} and labels {Y.shape} must be alike, with a row at least")
    return P, Y


def _divide(numerator: Float, denominator: Float) -> Float:
    """Quotient, and 0 where it is undefined."""
    fine = (denominator > 0) & np.isfinite(numerator)
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=fine)


def _accuracy(P: Array, Y: Array, weights: Float) -> Float:
    """Share of the rows that are right; of several labels `(n, C)`, all of them."""
    is_right = P == Y if P.ndim == 1 else (P == Y).all(axis=1)
    return (weights @ is_right) / weights.sum(axis=1)


def _f1(P: Array, Y: Array, weights: Float) -> Float:
    """F1 of class 1."""
    hits = weights @ ((P == 1) & (Y == 1))
    return _divide(2 * hits, weights @ (P == 1).astype(float) + weights @ (Y == 1).astype(float))


def _class_sums(P: Array, Y: Array, weights: Float) -> tuple[Float, Float, Float]:
    """Hits, predictions and labels of each class (for single labels, that occurs): three arrays `(R, n_classes)`."""
    if P.ndim == 2:  # 1 where a row has the class
        return weights @ (P * Y), weights @ P, weights @ Y
    classes, index = np.unique(np.concatenate([P, Y]), return_inverse=True)
    p, y = index[: len(P)], index[len(P) :]
    one_hot = np.eye(len(classes))
    return weights @ (one_hot[y] * (p == y)[:, None]), weights @ one_hot[p], weights @ one_hot[y]


def _macro_f1(P: Array, Y: Array, weights: Float) -> Float:
    """Mean F1 of the classes that occur among the sample's predictions or labels."""
    hits, predicted, true = _class_sums(P, Y, weights)
    return _divide(_divide(2 * hits, predicted + true).sum(axis=1), ((predicted + true) > 0).sum(axis=1).astype(float))


def _micro_f1(P: Array, Y: Array, weights: Float) -> Float:
    """F1 of all classes together."""
    hits, predicted, true = _class_sums(P, Y, weights)
    return _divide(2 * hits.sum(axis=1), (predicted + true).sum(axis=1))


def _mcc(P: Array, Y: Array, weights: Float) -> Float:
    """Matthews correlation, Gorodkin 2004 for more than two classes."""
    hits, predicted, true = _class_sums(P, Y, weights)
    n = weights.sum(axis=1)
    covariance = hits.sum(axis=1) * n - (predicted * true).sum(axis=1)
    spread = (n**2 - (predicted**2).sum(axis=1)) * (n**2 - (true**2).sum(axis=1))
    return _divide(covariance, np.sqrt(spread))


def _pearson(P: Array, Y: Array, weights: Float) -> Float:
    R = len(weights)
    return _correlation(
        np.broadcast_to(P.astype(float), (R, len(P))), np.broadcast_to(Y.astype(float), (R, len(Y))), weights
    )


def _spearman(P: Array, Y: Array, weights: Float) -> Float:
    if not (np.isfinite(P).all() and np.isfinite(Y).all()):
        return np.zeros(len(weights))
    return _correlation(_ranks(P, weights), _ranks(Y, weights), weights)


def _ranks(values: Array, weights: Float) -> Float:
    """Mid-ranks of the rows within each weighted sample, `(R, n)`; ties share their mean rank."""
    _, group = np.unique(values, return_inverse=True)
    in_group = np.stack([np.bincount(group, weights=row) for row in weights])  # (R, n_distinct)
    return (np.cumsum(in_group, axis=1) - in_group / 2)[:, group]


def _correlation(P: Float, Y: Float, weights: Float) -> Float:
    """Weighted Pearson correlation of the rows of `P` and `Y (R, n)`."""
    if not (np.isfinite(P).all() and np.isfinite(Y).all()):
        return np.zeros(len(weights))
    P, Y = _centred(P, weights), _centred(Y, weights)
    spread = np.sqrt((weights * P**2).sum(axis=1)) * np.sqrt((weights * Y**2).sum(axis=1))
    return np.clip(_divide((weights * P * Y).sum(axis=1), spread), -1.0, 1.0)


def _centred(X: Float, weights: Float) -> Float:
    """`X (R, n)` less its weighted mean, its largest entry ±1; all 0 where the drawn rows are one constant."""
    # Scaled before the squares are taken: neither tiny nor huge numbers may end as 0 or infinity.
    X = X / _largest(X)
    X = np.where(weights > 0, X - (weights * X).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True), 0.0)
    X = np.where(np.abs(X).max(axis=1, keepdims=True) > _ROUNDING, X, 0.0)
    return X / _largest(X)


def _loss(sums: Float, numbers: Float, weights: Float) -> Float:
    """The mean of all losses."""
    return _divide(weights @ sums, weights @ numbers)


def _perplexity(sums: Float, numbers: Float, weights: Float) -> Float:
    """e to the mean loss, per token of the model's own vocabulary."""
    with np.errstate(over="ignore"):
        return np.exp(_loss(sums, numbers, weights))


def _largest(X: Float) -> Float:
    """Largest absolute value of each row, `(R, 1)`; 1 for a row of zeros."""
    largest = np.abs(X).max(axis=1, keepdims=True)
    return np.where(largest > 0, largest, 1.0)


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", _accuracy),
        Metric("f1", _f1),
        Metric("macro_f1", _macro_f1),
        Metric("mcc", _mcc),
        Metric("micro_f1", _micro_f1),
        Metric("loss", _loss, "losses", is_minimised=True),
        Metric("perplexity", _perplexity, "losses", is_minimised=True),
        Metric("exact_match", exact_match, "texts"),
        *(Metric(kind, rouge(kind), "texts") for kind in ("rouge1", "rouge2", "rougeL")),
        Metric("bleu", bleu, "texts"),
        Metric("entity_f1", entity_f1),
        Metric("token_accuracy", token_accuracy),
        Metric("pearson", _pearson),
        Metric("spearman", _spearman),
    )
}


def find_metric(name: str, problem: str) -> Metric:
    """The metric of this name, of ours or of an installed package, for one kind of problem.

    Raises:
        ConfigError: there is none.
        EnvironmentProblem: it cannot be imported.
    """
    if name in METRICS:
        return METRICS[name]
    function = load_metric(name)
    writes = bool({*GENERATED} & {*METRICS_OF[problem]})
    reads: Reads = getattr(function, "reads", "texts" if writes else "predictions")
    is_minimised = bool(getattr(function, "is_minimised", False))
    return Metric(name, by_rows(name, function), reads, is_minimised, _FEWER_RESAMPLES)
