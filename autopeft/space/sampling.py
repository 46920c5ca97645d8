"""Points of a bound space at random, and the nearest valid point to one that is not.

A sample has every active parameter uniform over its values, on condition that the point is valid and within the budget;
exactly so at every budget, tight or loose (see `autopeft.space.feasible`). Only spaces with very many masks or depths
(thousands of states) are sampled by rejection, and repaired where that finds nothing.
"""

from typing import TYPE_CHECKING

import numpy as np

from autopeft.space.modules import Scalar
from autopeft.space.parameters import Params
from autopeft.space.repair import shrunk

if TYPE_CHECKING:
    from autopeft.space.search_space import Candidate, SearchSpace

_DRAWS = 500
"""Draws before a sample is taken from the smallest points instead."""
_DOUBTFUL = 20
"""Draws after which it is looked up whether anything fits at all."""


def sample(space: "SearchSpace", rng: np.random.Generator) -> "Candidate":
    """
    Raises:
        BudgetError: no architecture fits; names the smallest reachable budget.
    """
    feasible = space.feasible
    if feasible is not None and not feasible.weights.any():
        raise space.infeasible()
    for number in range(_DRAWS):
        if number == _DOUBTFUL and not any(space.is_valid(c) for c in space.smallest_candidates):
            raise space.infeasible()
        candidate = space.bind(space.completed(feasible.draw(rng) if feasible else {}, rng))
        if space.is_valid(candidate):
            return candidate
    return repair(space, space.draw(rng), rng) if feasible is None else _smallest_at_random(space, rng)


def repair(space: "SearchSpace", params: Params, rng: np.random.Generator) -> "Candidate":
    """
    Raises:
        BudgetError: no architecture fits; names the smallest reachable budget.
    """
    active = _restored(space, space.complete(params, lambda p: p.domain.sample(rng)), rng)
    candidate = shrunk(space, space.bind(active), rng)
    return candidate if space.is_valid(candidate) else _nearest_valid(space, candidate, rng)


def _smallest_at_random(space: "SearchSpace", rng: np.random.Generator) -> "Candidate":
    smallest = [c for c in space.smallest_candidates if space.is_valid(c)]
    if not smallest:
        raise space.infeasible()
    chosen = smallest[int(rng.integers(len(smallest)))]
    training = {p.name for p in space.parameters if p.is_training}
    return space.bind(space.completed({n: v for n, v in chosen.params if n not in training}, rng))


def _nearest_valid(space: "SearchSpace", candidate: "Candidate", rng: np.random.Generator) -> "Candidate":
    """Another valid point, with the training settings of the one that could not be mended."""
    other = _smallest_at_random(space, rng) if space.feasible is None else sample(space, rng)
    training = {p.name for p in space.parameters if p.is_training}
    given = dict(other.params) | {name: value for name, value in candidate.params if name in training}
    return space.bind(space.complete(given, lambda parameter: parameter.domain.sample(rng)))


def _restored(space: "SearchSpace", active: dict[str, Scalar], rng: np.random.Generator) -> dict[str, Scalar]:
    """Params that keep the constraints which do not hang on the budget, if a few tries find such."""
    for _ in range(_DRAWS):
        broken = next(space.structure.breaches(active), None)
        if broken is None:
            break
        entry = broken.entries[int(rng.integers(len(broken.entries)))]
        others = [p for p in entry.parameters if p.name in active or not active]
        if not others:
            continue
        parameter = others[int(rng.integers(len(others)))]
        changed = {**active, parameter.name: parameter.domain.sample(rng)}
        active = space.complete(changed, lambda p: p.domain.sample(rng))
    return active
