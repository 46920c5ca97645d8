"""The past of a study replayed into an Optuna study in memory, so that Optuna's samplers are pure functions as well.

Nothing of a sampler outlives a call: what it proposes depends on the past and the seed alone. Ordered sizes enter as
their position, which keeps their order. Of two objectives the score is maximised and the stored parameters minimised.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from autopeft.samplers.proposal import Ask, Observation
from autopeft.space.modules import Scalar
from autopeft.space.parameters import Interval, Parameter, Params, middle
from autopeft.space.search_space import SearchSpace

if TYPE_CHECKING:  # Optuna takes a second to import, which lists and help need not wait for
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial


def n_complete(ask: Ask) -> int:
    return sum(observation.state == "complete" for observation in ask.past)


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna without its log lines and its notes on what is experimental; what others have set is set back."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(level)


def suggest_conditional(ask: Ask, sampler: "BaseSampler") -> Params:
    """What `sampler` suggests parameter by parameter, each asked for only where it is active."""
    with quiet_optuna():
        study = _study(ask, sampler)
        study.add_trials([_frozen(ask, past, dict(past.params), {}) for past in ask.past])
        trial = study.ask()
        return ask.space.complete({}, lambda parameter: _suggest(trial, parameter))


def suggest_flat(
    ask: Ask, sampler: "BaseSampler", attributes: Callable[[list[Observation]], list[dict[str, Any]]] | None = None
) -> Params:
    """What `sampler` suggests for all parameters at once; inactive ones are at a fixed value in the past.

    For samplers that look only at parameters which every trial has. `attributes` gives each past trial what the
    sampler would have noted on it.
    """
    past = list(ask.past)
    notes = attributes(past) if attributes else [{}] * len(past)
    with quiet_optuna():
        study = _study(ask, sampler)
        trials = [_frozen(ask, o, filled(ask.space, dict(o.params)), note) for o, note in zip(past, notes, strict=True)]
        study.add_trials(trials)
        trial = study.ask()
        return _active(ask.space, {p.name: _suggest(trial, p) for p in ask.space.parameters})


def suggest_stepwise(ask: Ask, sampler: "BaseSampler") -> Params:
    """As `suggest_flat`, the past asked and told trial by trial: for samplers that take notes on the way.

    Costs a proposal for every past trial.
    """
    from optuna.trial import TrialState

    states = {"complete": TrialState.COMPLETE, "failed": TrialState.FAIL, "pruned": TrialState.FAIL}
    with quiet_optuna():
        study = _study(ask, sampler)
        for observation in ask.past:
            values = filled(ask.space, dict(observation.params))
            study.enqueue_trial({p.name: _internal(p, values[p.name]) for p in ask.space.parameters})
            trial = study.ask()
            _ = trial.relative_params  # where samplers take their notes; the values themselves are given
            for parameter in ask.space.parameters:
                _suggest(trial, parameter)
            if observation.state != "running":
                study.tell(trial, _values(ask, observation), state=states[observation.state])
        trial = study.ask()
        return _active(ask.space, {p.name: _suggest(trial, p) for p in ask.space.parameters})


def filled(space: SearchSpace, active: Params) -> dict[str, Scalar]:
    """All parameters of the space: an inactive one has its first value (of an interval the middle), always the same."""
    return {p.name: active[p.name] if p.name in active else _idle(p) for p in space.parameters}


def _active(space: SearchSpace, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
    return space.complete(values, lambda parameter: values[parameter.name])


def _idle(parameter: Parameter) -> Scalar:
    return middle(parameter) if isinstance(parameter.domain, Interval) else parameter.domain.values[0]


def _study(ask: Ask, sampler: "BaseSampler") -> "Study":
    import optuna

    best, least = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
    directions = [best, least] if ask.objective == "pareto" else [best]
    storage = optuna.storages.InMemoryStorage()
    return optuna.create_study(storage=storage, sampler=sampler, directions=directions)


def _values(ask: Ask, observation: Observation) -> list[float] | None:
    if observation.state != "complete":
        return None
    assert observation.score is not None
    if ask.objective == "score":
        return [observation.score]
    stored = observation.stored
    return [observation.score, ask.space.candidate(dict(observation.params)).stored if stored is None else stored]


def _frozen(ask: Ask, observation: Observation, params: Params, attributes: dict[str, Any]) -> "FrozenTrial":
    from optuna.trial import TrialState, create_trial

    known = {parameter.name: parameter for parameter in ask.space.parameters}
    states = {"complete": "COMPLETE", "failed": "FAIL", "running": "RUNNING", "pruned": "PRUNED"}
    # Optuna has no pruning with several objectives: there such a trial tells no more than a failed one.
    is_failed = observation.state == "pruned" and ask.objective == "pareto"
    pruned = observation.state == "pruned" and not is_failed
    return create_trial(
        params={name: _internal(known[name], value) for name, value in params.items()},
        distributions={name: _distribution(known[name]) for name in params},
        values=_values(ask, observation),
        state=TrialState.FAIL if is_failed else TrialState[states[observation.state]],
        intermediate_values=dict(enumerate(observation.curve)) if pruned else None,
        system_attrs=dict(attributes),
    )


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


def _internal(parameter: Parameter, value: Scalar) -> Scalar:
    domain = parameter.domain
    return value if isinstance(domain, Interval) or not domain.ordered else domain.values.index(value)
