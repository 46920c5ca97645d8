"""Optuna's Gaussian process with expected improvement, its proposals repaired to the budget.

It takes all trials to have the same parameters: inactive ones are at a fixed value.
"""

from autopeft.samplers.proposal import Ask
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
    return suggest_flat(ask, sampler)
