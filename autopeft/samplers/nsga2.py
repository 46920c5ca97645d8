"""Optuna's NSGA-II, its children repaired to the budget. Source: Deb et al. 2002.

Generations follow from the order of the trials: each is full with `POPULATION` completed ones.
"""

from typing import Any

from autopeft.samplers.proposal import Ask, Observation
from autopeft.samplers.random import suggest_random
from autopeft.samplers.replay import n_complete, quiet_optuna, suggest_flat
from autopeft.space.parameters import Params

POPULATION = 16
"""Small beside Optuna's 50: a search has some sixty trials, and the first generation is random."""


def suggest_nsga2(ask: Ask) -> Params:
    """Optuna's NSGA-II, children repaired to the budget; the first generation of sixteen trials is random."""
    if n_complete(ask) < POPULATION:
        return suggest_random(ask)
    import optuna

    with quiet_optuna():
        sampler = optuna.samplers.NSGAIISampler(seed=ask.seed, population_size=POPULATION)
    return suggest_flat(ask, sampler, lambda past: generations(past, type(sampler), POPULATION))


def generations(past: list[Observation], kind: Any, population: int) -> list[dict[str, Any]]:
    """What Optuna's genetic samplers (`kind`) note on each trial: the generation that it belongs to."""
    notes, generation, members = [], 0, 0
    for observation in past:
        if members == population:
            generation, members = generation + 1, 0
        members += observation.state == "complete"
        notes.append({kind._get_generation_key(): generation})
    return notes
