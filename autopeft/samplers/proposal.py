"""What every sampler promises: the proposal is in the space, within the budget, and was not trained before."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from autopeft.errors import AutopeftError
from autopeft.space.modules import Scalar
from autopeft.space.parameters import Params
from autopeft.space.search_space import Candidate, SearchSpace

_WALKS = 200
"""Random points tried for an untrained one before the whole space is looked through."""
_ENUMERABLE = 100_000


class SpaceExhaustedError(AutopeftError):
    """Every architecture of the space within the budget has been trained."""

    exit_code = 0


@dataclass(frozen=True)
class Observation:
    """One past trial, as a sampler sees it."""

    params: tuple[tuple[str, Scalar], ...]
    architecture_id: str
    state: Literal["running", "complete", "failed"]
    score: float | None
    """Greater is better; None unless complete."""


class Sampler(Protocol):
    def __call__(self, space: SearchSpace, past: Sequence[Observation], seed: int) -> Params:
        """Params of the space; `propose` makes them feasible and new."""


def propose(sampler: Sampler, space: SearchSpace, past: Sequence[Observation], seed: int) -> Candidate:
    """The next point to train: the sampler's, or the nearest to it that is within the budget and untrained.

    Raises:
        BudgetError: no architecture of the space fits.
        SpaceExhaustedError: all that fit have been trained.
    """
    rng = np.random.default_rng(seed)
    trained = {observation.architecture_id for observation in past}
    candidate = space.repair(sampler(space, past, seed), rng)
    if candidate.architecture.id not in trained:
        return candidate
    near = [c for c in space.neighbours(dict(candidate.params)) if c.architecture.id not in trained]
    if near:
        return near[int(rng.integers(len(near)))]
    for _ in range(_WALKS):
        candidate = space.sample(rng)
        if candidate.architecture.id not in trained:
            return candidate
    if space.cardinality <= _ENUMERABLE:
        for candidate in space.points():
            if space.is_valid(candidate) and candidate.architecture.id not in trained:
                return candidate
    raise SpaceExhaustedError(
        f"all {len(trained)} architectures of the search space that fit into the budget have been trained"
    )
