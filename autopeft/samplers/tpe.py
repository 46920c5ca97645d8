"""Optuna's tree-structured Parzen estimator, over the conditional space, its proposals repaired to the budget.

Source: Bergstra et al. 2011; multivariate and grouped as in Optuna; two objectives as in Ozaki et al. 2022.
"""

from autopeft.samplers.proposal import Ask
from autopeft.samplers.random import suggest_random
from autopeft.samplers.replay import n_complete, quiet_optuna, suggest_conditional
from autopeft.space.parameters import Params

_STARTUP_TRIALS = 10
_CANDIDATES = 48


def suggest_tpe(ask: Ask) -> Params:
    """Optuna's tree-structured Parzen estimator, repaired to the budget; the first ten trials are random."""
    if n_complete(ask) < _STARTUP_TRIALS:
        return suggest_random(ask)
    import optuna

    with quiet_optuna():
        sampler = optuna.samplers.TPESampler(
            seed=ask.seed,
            multivariate=True,
            group=True,
            constant_liar=True,
            n_startup_trials=_STARTUP_TRIALS,
            n_ei_candidates=_CANDIDATES,
        )
    return suggest_conditional(ask, sampler)
