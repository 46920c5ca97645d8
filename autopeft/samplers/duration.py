"""Seconds that a trial will take: most of it is the layers from the first adapted one on, since the frozen part below
is computed once for all trials.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autopeft.samplers.proposal import Observation
from autopeft.space.search_space import Candidate, SearchSpace

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

_ENOUGH = 5
_RIDGE = 0.1


def expected_seconds(space: SearchSpace, past: Sequence[Observation], candidates: Sequence[Candidate]) -> Vector:
    """(n,) by a regression over the past trials' seconds; all 1 where fewer than five are known."""
    timed = [trial for trial in past if trial.state == "complete" and trial.seconds]
    if len(timed) < _ENOUGH:
        return np.ones(len(candidates))
    A = _features(space, [space.candidate(dict(trial.params)) for trial in timed])
    seconds = np.array([trial.seconds for trial in timed], dtype=float)
    typical = float(np.median(seconds))
    # Shrunk towards the median: a few trials do not say much about three coefficients.
    ridge = _RIDGE * np.eye(A.shape[1])
    coefficients = np.linalg.solve(A.T @ A + ridge, A.T @ (seconds / typical - 1))
    expected: Vector = typical * (1 + _features(space, candidates) @ coefficients)
    least = 0.25 * float(seconds.min())
    return np.array(np.maximum(expected, least))


def _features(space: SearchSpace, candidates: Sequence[Candidate]) -> Matrix:
    """(n, 3): 1, the part of the layers from the first adapted one on, the share of the budget."""
    budget = space.budget or max(1, space.largest_candidate.measured[0])
    return np.array([[1.0, 1 - first_adapted(space, c), c.measured[0] / budget] for c in candidates])


def first_adapted(space: SearchSpace, candidate: Candidate) -> float:
    """Part of the layers below the first that holds a module: 0 for the first layer, towards 1 for the last."""
    active = dict(candidate.params)
    lengths = {stack.name: len(stack.layers) for stack in space.anatomy.stacks}
    found = [1.0]
    for unit in space.structure.in_force(active):
        for entry in unit.entries:
            if entry.value("size", active) != 0:
                found += [index / lengths[stack] for stack, index in space.layout.positions(unit, entry, active)]
    return min(found)
