"""Samplers: from the past trials of a study to the next architecture. Numbers in, params out; nothing of training here.

A sampler is a pure function of an `Ask` (space, past, seed): the study's storage holds all of its state, so a study
that was killed proposes what an uninterrupted one would. To add one, write such a function and name it in `SAMPLERS`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from autopeft.samplers.bo import suggest_bo
from autopeft.samplers.evolution import suggest_evolution
from autopeft.samplers.gp import suggest_gp
from autopeft.samplers.named import named_sampler
from autopeft.samplers.nsga2 import suggest_nsga2
from autopeft.samplers.proposal import Ask, Earlier, Objective, Observation, Sampler, SpaceExhaustedError, propose
from autopeft.samplers.random import suggest_random
from autopeft.samplers.tpe import suggest_tpe
from autopeft.space.search_space import SearchSpace

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "bo": suggest_bo,
        "random": suggest_random,
        "tpe": suggest_tpe,
        "gp": suggest_gp,
        "nsga2": suggest_nsga2,
        "evolution": suggest_evolution,
    }
)

LEARNS_FROM_EARLIER = frozenset({"bo", "evolution"})
"""Samplers that make use of `Ask.earlier`."""
WEIGHS_SECONDS = frozenset({"bo"})
"""Samplers that make use of `Ask.per_second`."""

__all__ = [
    "LEARNS_FROM_EARLIER",
    "SAMPLERS",
    "WEIGHS_SECONDS",
    "Ask",
    "Earlier",
    "Objective",
    "Observation",
    "Sampler",
    "SpaceExhaustedError",
    "as_optuna",
    "find_sampler",
    "propose",
]


def find_sampler(name: str) -> Sampler:
    """One of `SAMPLERS`, or `optuna:NAME`, or `optunahub:PACKAGE`.

    Raises:
        UnknownNameError: there is none of this name.
        UsageError: a package of OptunaHub that holds no sampler, or several.
        EnvironmentProblem: a package that is needed is not installed, or OptunaHub cannot be reached.
    """
    return named_sampler(name, SAMPLERS)


def as_optuna(sampler: str | Sampler, space: SearchSpace, seed: int = 0) -> "BaseSampler":
    """A sampler of ours for a plain Optuna study whose trials ask for their point with `optuna_study.suggest`.

    Raises:
        UnknownNameError: there is none of this name.
    """
    from autopeft.samplers.optuna_study import SpaceSampler

    return SpaceSampler(find_sampler(sampler) if isinstance(sampler, str) else sampler, space, seed)
