"""How much of a space is within the budget."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from autopeft.space.feasible import Bounds, share_within, tightest
from autopeft.space.rows import TooManyError

if TYPE_CHECKING:
    from autopeft.space.search_space import SearchSpace

_DRAWS = 500


@dataclass(frozen=True)
class Share:
    """Of all points that hold a module and keep the constraints, those within the budget."""

    fraction: float
    standard_error: float
    """0 where the points were added up."""
    points: int | None
    """How many they are, where they were added up."""

    @property
    def is_exact(self) -> bool:
        return self.points is not None


def share_of_space(space: "SearchSpace", seed: int) -> Share:
    """Exact where the distinct costs are few enough to be added up.

    Else the rounded costs give a superset of known weight, and draws from that tell how much of it fits; the standard
    error is that of this last fraction, and small however rare the points that fit are.

    Raises:
        TooManyError: the space has too many states to be tabulated.
    """
    total = space.cardinality
    if space.budget is None:
        return Share(1.0, 0.0, total)
    bounds = Bounds(space.budget, space.max_trained)
    exact = share_within(space.tables, bounds)
    if exact is not None:
        return Share(exact / total if total else 0.0, 0.0, exact)
    try:
        feasible = tightest(space.tables, bounds, "points")
    except TooManyError:
        return _by_rejection(space, seed)
    rng = np.random.default_rng(seed)
    valid = 0
    for _ in range(_DRAWS if feasible.weights.any() else 0):
        params = space.complete(feasible.draw(rng), lambda parameter: parameter.domain.sample(rng))
        valid += space.is_valid(space.candidate(params))
    accepted = valid / _DRAWS
    scale = float(feasible.weights.sum()) * (feasible.n_raw_points / total)
    return Share(scale * accepted, scale * _standard_error(valid), None)


def _standard_error(successes: int) -> float:
    """Of a fraction of the draws; one success and one failure are added, so that it is never 0."""
    p = (successes + 1) / (_DRAWS + 2)
    return float((p * (1 - p) / _DRAWS) ** 0.5)


def _by_rejection(space: "SearchSpace", seed: int) -> Share:
    """By draws in which every active parameter is uniform over its values, instead of every point alike."""
    rng = np.random.default_rng(seed)
    valid = sum(space.is_valid(space.candidate(space.draw(rng))) for _ in range(_DRAWS))
    return Share(valid / _DRAWS, _standard_error(valid), None)
