"""Scores of past trials made fit for a surrogate: very bad ones drawn in, failed and pruned ones given a value."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autopeft.samplers.proposal import Observation

Vector = NDArray[np.float64]

_TAIL = 3.0
"""Distances of quartile and median below the median from which on scores are drawn in."""
_ENOUGH = 5
"""Complete trials from which the end of a pruned trial's curve is told."""


def tamed(scores: Vector) -> Vector:
    """Scores of which those far below the others (a learning rate that diverged) lie only somewhat below them.

    Their order is kept; how bad a bad trial is says little about where the good ones are.
    """
    quartile, median = np.quantile(scores, [0.25, 0.5])
    width = max(float(median - quartile), 1e-12)
    floor = median - _TAIL * width
    drawn: Vector = floor - width * np.log1p(np.maximum(floor - scores, 0) / width)
    return np.where(scores < floor, drawn, scores)


def expected_ends(pruned: Sequence[Observation], complete: Sequence[Observation]) -> list[tuple[Observation, float]]:
    """(pruned trial, the score that it would have ended with), where complete trials tell.

    A straight line from the score after as many epochs (or of the screening, where it got no further) to the final one,
    fitted to the complete trials; never above the best score that was seen, since a pruned trial was not among the good
    ones.
    """
    told = []
    best = max((o.score for o in complete if o.score is not None), default=0.0)
    for trial in pruned:
        n_epochs = len(trial.curve)
        reached = _reached(trial, n_epochs)
        pairs = [
            (early, o.score) for o in complete if (early := _reached(o, n_epochs)) is not None and o.score is not None
        ]
        if len(pairs) < _ENOUGH or reached is None:
            continue
        early, final = np.array(pairs).T
        spread = float(early.var())
        slope = (
            max(0.0, float(((early - early.mean()) * (final - final.mean())).mean()) / spread) if spread > 0 else 0.0
        )
        told.append((trial, min(best, float(final.mean() + slope * (reached - early.mean())))))
    return told


def _reached(trial: Observation, n_epochs: int) -> float | None:
    """The score after as many epochs, of the screening for none; None where there is none."""
    if n_epochs == 0:
        return trial.screened
    return trial.curve[n_epochs - 1] if len(trial.curve) >= n_epochs else None


def value_of_failed(scores: Vector) -> float:
    """What a failed trial counts as: no better than three quarters of the complete ones."""
    return float(np.quantile(scores, 0.25))
