"""Optuna's tree-structured Parzen estimator, over the conditional space, its proposals repaired to the budget.

Each call replays the past into an in-memory study, so that the proposal depends on (past, seed) alone. Ordered sizes
enter as their position, which keeps their order. Source: Bergstra et al. 2011; multivariate and grouped as in Optuna.
"""

import warnings
from typing import TYPE_CHECKING

import numpy as np

from autopeft.samplers.proposal import Ask, Observation
from autopeft.space.modules import Scalar
from autopeft.space.parameters import Choices, Interval, Parameter, Params

if TYPE_CHECKING:  # Optuna takes a second to import, which lists and help need not wait for
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

_STARTUP_TRIALS = 10
_CANDIDATES = 48
_STATES = {"complete": "COMPLETE", "failed": "FAIL", "running": "RUNNING", "pruned": "FAIL"}


def suggest_tpe(ask: Ask) -> Params:
    """Optuna's tree-structured Parzen estimator, repaired to the budget; the first ten trials are random."""
    import optuna

    space, past, seed = ask.space, ask.past, ask.seed
    finished = sum(observation.state == "complete" for observation in past)
    if finished < _STARTUP_TRIALS:
        return dict(space.sample(np.random.default_rng(seed)).params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=seed,
            multivariate=True,
            group=True,
            constant_liar=True,
            n_startup_trials=_STARTUP_TRIALS,
            n_ei_candidates=_CANDIDATES,
        )
    known = {parameter.name: parameter for parameter in space.parameters}
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), sampler=sampler, direction="maximize")
    study.add_trials([_frozen(observation, known) for observation in past])
    trial = study.ask()
    return space.complete({}, lambda parameter: _suggest(trial, parameter))


def _suggest(trial: "Trial", parameter: Parameter) -> Scalar:
    name, domain = parameter.name, parameter.domain
    if isinstance(domain, Interval):
        return domain.round(trial.suggest_float(name, domain.low, domain.high, log=domain.log))
    if domain.ordered:
        return domain.values[trial.suggest_int(name, 0, len(domain.values) - 1)]
    value = trial.suggest_categorical(name, domain.values)
    assert isinstance(value, bool | int | float | str)
    return value


def _distribution(parameter: Parameter) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    domain = parameter.domain
    if isinstance(domain, Interval):
        return FloatDistribution(domain.low, domain.high, log=domain.log)
    return IntDistribution(0, len(domain.values) - 1) if domain.ordered else CategoricalDistribution(domain.values)


def _frozen(observation: Observation, known: dict[str, Parameter]) -> "FrozenTrial":
    from optuna.trial import TrialState, create_trial

    params = {}
    for name, value in observation.params:
        domain = known[name].domain
        ordered = isinstance(domain, Choices) and domain.ordered
        params[name] = domain.values.index(value) if ordered and isinstance(domain, Choices) else value
    return create_trial(
        params=params,
        distributions={name: _distribution(known[name]) for name in params},
        value=observation.score,
        state=TrialState[_STATES[observation.state]],
    )
