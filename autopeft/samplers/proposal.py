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

Objective = Literal["score", "pareto"]
"""`score`: the best score within the budget; `pareto`: the best score for every number of stored parameters."""


class SpaceExhaustedError(AutopeftError):
    """Every architecture of the space within the budget has been trained."""

    exit_code = 0


@dataclass(frozen=True)
class Observation:
    """One past trial, as a sampler sees it."""

    params: tuple[tuple[str, Scalar], ...]
    architecture_id: str
    state: Literal["running", "complete", "failed", "pruned"]
    score: float | None
    """Greater is better; None unless complete."""
    stored: int | None = None
    """Stored adapter parameters, exactly; None: not known."""
    seconds: float | None = None
    """That the trial took; None while it runs."""
    curve: tuple[float, ...] = ()
    """Of a pruned or complete trial: the score after each epoch."""
    screened: float | None = None
    """The score of a short training on a part of the rows before; None: there was none."""


@dataclass(frozen=True)
class Earlier:
    """The trials of an earlier study, of the same task or another."""

    name: str
    trials: tuple[Observation, ...]
    """Complete ones whose params are of the space that is searched."""


@dataclass(frozen=True)
class Ask:
    """What a sampler is asked for: the next point of `space`, after the `past`."""

    space: SearchSpace
    past: Sequence[Observation]
    """In the order of their numbers, running ones included."""
    seed: int
    """Of this proposal; it follows from the study's seed and the trial's number."""
    objective: Objective = "score"
    earlier: tuple[Earlier, ...] = ()
    per_second: bool = False
    """Whether improvement is weighed against the seconds that a trial is expected to take."""


class Sampler(Protocol):
    def __call__(self, ask: Ask) -> Params:
        """Params of the space; `propose` makes them feasible and new."""


def propose(sampler: Sampler, ask: Ask) -> Candidate:
    """The next point to train: the sampler's, or the nearest to it that is within the budget and untrained.

    Raises:
        BudgetError: no architecture of the space fits.
        SpaceExhaustedError: all that fit have been trained.
    """
    space = ask.space
    rng = np.random.default_rng(ask.seed)
    trained = {observation.architecture_id for observation in ask.past}
    candidate = space.repair(sampler(ask), rng)
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
