"""Mending a point by random steps: smaller until it fits into the budget, or larger until nothing more fits."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from autopeft.space.modules import Scalar
from autopeft.space.moves import Moves
from autopeft.space.parameters import Choices, Parameter

if TYPE_CHECKING:
    from autopeft.space.search_space import Candidate, SearchSpace

_FAR = 4
"""Times the budget beyond which sizes fall by more than one step at a time."""


def shrunk(space: "SearchSpace", candidate: "Candidate", rng: np.random.Generator) -> "Candidate":
    """Steps to cheaper points until one fits, or until there is no cheaper one; never to an empty one."""
    while space.excess(candidate) > 1:
        smaller = _step(space, candidate, rng, grow=False)
        if smaller is None:
            break
        candidate = smaller
    return candidate


def grown(space: "SearchSpace", candidate: "Candidate", rng: np.random.Generator) -> "Candidate":
    """Steps to larger valid points until there is none; without a budget, up to the largest."""
    while (larger := _step(space, candidate, rng, grow=True)) is not None:
        candidate = larger
    return candidate


def _step(space: "SearchSpace", candidate: "Candidate", rng: np.random.Generator, grow: bool) -> "Candidate | None":
    moves = Moves(space, candidate)
    active, stored, excess = moves.active, candidate.least.stored, space.excess(candidate)
    far = not grow and excess > _FAR
    steps = [
        (parameter.name, value)
        for parameter in space.parameters
        if parameter.name in active and not parameter.is_training
        for value in _values(parameter, active[parameter.name], far, grow)
    ]
    for i in rng.permutation(len(steps)):
        other = moves.to(*steps[int(i)])
        if not other.least.n_placements:
            continue
        if grow:
            if other.least.stored > stored and space.is_valid(other):
                return other
        elif space.excess(other) < excess and space.keeps_constraints(dict(other.params)):
            return other
    return None


def _values(parameter: Parameter, value: Scalar, far: bool, grow: bool) -> Iterator[Scalar]:
    domain = parameter.domain
    if not isinstance(domain, Choices):
        return
    if not domain.ordered:
        yield from domain.near(value)
        return
    at = domain.values.index(value)
    if grow:
        yield from domain.values[at + 1 : at + 2]
    else:
        yield from domain.values[:at] if far else domain.values[max(0, at - 1) : at]
