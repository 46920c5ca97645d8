"""Steps from one point of a space to others near it: single changes, and several at once.

Two changes at once take from one module and give to another, which single changes cannot where the budget is spent.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from autopeft.space.modules import Scalar
from autopeft.space.parameters import Interval
from autopeft.space.search_space import Candidate, SearchSpace

_STEPS = (-0.2, -0.07, -0.02, 0.02, 0.07, 0.2)
"""Along an interval, in parts of its length."""

Change = tuple[str, Scalar]


def changes(space: SearchSpace, candidate: Candidate) -> list[Change]:
    """(parameter, value) of all single changes, valid or not."""
    active = dict(candidate.params)
    found: list[Change] = []
    for parameter in space.parameters:
        if (value := active.get(parameter.name)) is None:
            continue
        domain = parameter.domain
        if isinstance(domain, Interval):
            found += [(parameter.name, _moved(domain, float(value), step)) for step in _STEPS]
        else:
            found += [(parameter.name, other) for other in domain.near(value)]
    return found


def single(space: SearchSpace, candidate: Candidate) -> Iterator[Candidate]:
    """The valid points that are one change away, along intervals also by smaller steps than `neighbours` takes."""
    active = dict(candidate.params)
    yield from space.neighbours(active)
    for parameter in space.parameters:
        domain = parameter.domain
        if isinstance(domain, Interval) and parameter.name in active:
            value = float(active[parameter.name])
            for step in _STEPS:
                other = space.changed(active, parameter.name, _moved(domain, value, step))
                if other.params != candidate.params and space.is_valid(other):
                    yield other


def several(
    space: SearchSpace, candidate: Candidate, rng: np.random.Generator, n_points: int, n_changes: int = 2
) -> Iterator[Candidate]:
    """Up to `n_points` valid points that are `n_changes` random changes away."""
    known = changes(space, candidate)
    for _ in range(n_points):
        other = _changed(space, candidate, [known[int(at)] for at in rng.permutation(len(known))[:n_changes]])
        if other.params != candidate.params and space.is_valid(other):
            yield other


def _changed(space: SearchSpace, candidate: Candidate, chosen: Sequence[Change]) -> Candidate:
    for name, value in chosen:
        active = dict(candidate.params)
        if name in active and active[name] != value:
            candidate = space.changed(active, name, value)
    return candidate


def _moved(domain: Interval, value: float, step: float) -> float:
    if domain.log:
        return domain.round(value * (domain.high / domain.low) ** step)
    return domain.round(value + step * (domain.high - domain.low))
