"""What earlier studies say of a point, weighed by how well they foretell the trials of this one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopeft.samplers.encoding import Encoding
from autopeft.samplers.outcomes import tamed
from autopeft.samplers.proposal import Earlier
from autopeft.samplers.surrogate import Posterior, fit
from autopeft.space.search_space import Candidate

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

_LEAST = 5
"""Trials without which an earlier study says nothing."""
_BELIEF, _DOUBT = 0.5, 0.5
"""Mean and standard deviation of a study's weight before this one has any trials."""
_NOISE = 0.75
"""Variance of this study's standardised scores that no earlier study is expected to tell."""


@dataclass(frozen=True)
class Forecast:
    """Posterior means of the earlier studies, and their weights."""

    posteriors: tuple[Posterior, ...]
    weights: Vector

    def __call__(self, Z: Matrix) -> Vector:
        """(m,) expected standardised scores at encoded points Z (m, d), as far as earlier studies tell them."""
        total: Vector = np.zeros(len(Z))
        for weight, posterior in zip(self.weights, self.posteriors, strict=True):
            total = total + weight * posterior.predict(Z)[0]
        return total


def forecast(
    earlier: Sequence[Earlier], encoding: Encoding, columns: Sequence[Sequence[int]], X: Matrix, y: Vector
) -> Forecast:
    """Of the earlier studies, given what this one has seen: standardised scores y (n,) at X (n, d); n may be 0.

    Each weight is a Bayesian regression's, at least 0: a study that foretells nothing, or the contrary, is left out as
    soon as the trials say so.
    """
    posteriors = [p for study in earlier if (p := _posterior_of(study, encoding, columns)) is not None]
    left, weights = y.copy(), []
    for posterior in posteriors:
        told = posterior.predict(X)[0] if len(X) else np.zeros(0)
        told = told - told.mean() if len(told) else told
        precision = 1 / _DOUBT**2 + float(told @ told) / _NOISE
        weight = max(0.0, (_BELIEF / len(posteriors) / _DOUBT**2 + float(told @ left) / _NOISE) / precision)
        left = left - weight * told
        weights.append(weight)
    return Forecast(tuple(posteriors), np.array(weights))


def _posterior_of(study: Earlier, encoding: Encoding, columns: Sequence[Sequence[int]]) -> Posterior | None:
    trials = [trial for trial in study.trials if trial.score is not None]
    if len(trials) < _LEAST:
        return None
    known = encoding.studies.get(study)
    if known is None:
        candidates: list[Candidate] = [encoding.space.candidate(dict(trial.params)) for trial in trials]
        X = encoding.encode(candidates)
        scores = tamed(np.array([trial.score for trial in trials], dtype=float))
        y = (scores - scores.mean()) / (scores.std() or 1.0)
        known = encoding.studies[study] = Posterior(fit(X, y, columns), X, y)
    return known
