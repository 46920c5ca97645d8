"""Optuna's Gaussian process with expected improvement, its proposals repaired to the budget.

It takes all trials to have the same parameters: inactive ones are at a fixed value. That all past trials keep to the
budget, and how far they stay below it, is told as a constraint: it is continued to where it would be broken. Otherwise
most proposals are far over the budget, and what repair makes of them is no better than a random point.
"""

import math
from typing import Any

from autopeft.samplers.proposal import Ask, Observation
from autopeft.samplers.random import suggest_random
from autopeft.samplers.replay import n_complete, quiet_optuna, suggest_flat
from autopeft.space.parameters import Params

_STARTUP_TRIALS = 10


def suggest_gp(ask: Ask) -> Params:
    """Optuna's Gaussian process, repaired to the budget; slow: seconds a proposal. The first ten trials are random."""
    if n_complete(ask) < _STARTUP_TRIALS:
        return suggest_random(ask)
    import optuna

    with quiet_optuna():
        sampler = optuna.samplers.GPSampler(seed=ask.seed, n_startup_trials=_STARTUP_TRIALS)
    return suggest_flat(ask, sampler, lambda past: [_constraint(ask, one) for one in past])


def _constraint(ask: Ask, observation: Observation) -> dict[str, Any]:
    """The attribute in which Optuna keeps constraints: none without a budget."""
    excess = ask.space.excess(ask.space.candidate(dict(observation.params)))
    return {"constraints": [math.log(excess)]} if excess > 0 else {}
