"""Optuna's samplers as its users set them up: nothing is repaired, the budget is a constraint that they may break.

Every ordered size is an integer (its position, which keeps the order), everything else a category, the learning rate a
float on a logarithmic scale. An architecture over the budget is a trial like any other for Optuna: it is told the
violation, relative to the budget, with `Trial.set_constraint`; it uses up a trial and cannot be the best. So does one
that holds no module or breaks a rule of the space. Proposals that were made before are trained again.

- `optuna-tpe`: `TPESampler` at its defaults on the conditional space (define-by-run).
- `optuna-tpe-multivariate`: the same with `multivariate=True, group=True`.
- `optuna-gp`, `optuna-nsga2`: at their defaults. Both need a fixed space: inactive parameters are suggested too, and
  ignored.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from autopeft.errors import EnvironmentProblem
from autopeft.space.modules import Scalar
from autopeft.space.parameters import Choices, Interval, Parameter
from autopeft.space.search_space import Candidate, SearchSpace

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial

_CONSTRAINT = "over_budget"


@dataclass(frozen=True)
class User:
    """A sampler of Optuna's in a user's hands."""

    make: Callable[[int], "BaseSampler"]
    """From a seed."""
    is_conditional: bool
    """Whether only active parameters are suggested."""


def _tpe(seed: int, **options: Any) -> "BaseSampler":
    import optuna

    return optuna.samplers.TPESampler(seed=seed, **options)


def _gp(seed: int) -> "BaseSampler":
    import optuna

    return optuna.samplers.GPSampler(seed=seed)


def _nsga2(seed: int) -> "BaseSampler":
    import optuna

    return optuna.samplers.NSGAIISampler(seed=seed)


USERS: Mapping[str, User] = MappingProxyType(
    {
        "optuna-tpe": User(_tpe, is_conditional=True),
        "optuna-tpe-multivariate": User(lambda seed: _tpe(seed, multivariate=True, group=True), is_conditional=True),
        "optuna-gp": User(_gp, is_conditional=False),
        "optuna-nsga2": User(_nsga2, is_conditional=False),
    }
)


class OptunaStudy:
    """One study of a user: `ask` gives a point of the space, `tell` takes its score.

    Raises:
        EnvironmentProblem: Optuna is older than 5.
    """

    def __init__(self, user: User, space: SearchSpace, seed: int) -> None:
        import optuna

        if not hasattr(optuna.Trial, "set_constraint"):
            raise EnvironmentProblem(f"Optuna's own samplers need Optuna 5 or newer here, found {optuna.__version__}")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space, self._is_conditional = space, user.is_conditional
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._study = optuna.create_study(direction="maximize", sampler=user.make(seed))
        self._trial: Trial | None = None
        self._asked: Candidate | None = None

    def ask(self) -> Candidate:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._trial = trial = self._study.ask()
            if self._is_conditional:
                params = self._space.complete({}, lambda parameter: _suggest(trial, parameter))
            else:
                params = {parameter.name: _suggest(trial, parameter) for parameter in self._space.parameters}
        self._asked = self._space.candidate(params)
        return self._asked

    def tell(self, candidate: Candidate, score: float) -> None:
        """The score of what was asked, or of another architecture that was trained in its place."""
        from optuna.trial import TrialState

        assert self._trial is not None and self._asked is not None
        if candidate.params != self._asked.params:
            filled = {} if self._is_conditional else self._trial.params
            self._study.tell(self._trial, state=TrialState.FAIL)
            self._study.add_trial(_frozen(self._space, candidate, score, filled))
            return
        self._trial.set_constraint(_CONSTRAINT, violation(self._space, candidate))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._study.tell(self._trial, score)


def _frozen(space: SearchSpace, trained: Candidate, score: float, filled: Mapping[str, Any]) -> "FrozenTrial":
    """A finished trial of the architecture that stands for a proposal; `filled` are values of inactive parameters."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.trial import create_trial

    active = dict(trained.params)
    params: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}
    for parameter in space.parameters:
        name, domain = parameter.name, parameter.domain
        if name not in active and name not in filled:
            continue
        is_ordered = isinstance(domain, Choices) and domain.ordered
        if isinstance(domain, Interval):
            distributions[name] = FloatDistribution(domain.low, domain.high, log=domain.log)
        elif is_ordered:
            distributions[name] = IntDistribution(0, len(domain.values) - 1)
        else:
            distributions[name] = CategoricalDistribution(domain.values)
        if name not in active:
            params[name] = filled[name]
        elif isinstance(domain, Choices) and is_ordered:
            params[name] = domain.values.index(active[name])
        else:
            params[name] = active[name]
    constraints = {_CONSTRAINT: violation(space, trained)}
    return create_trial(params=params, distributions=distributions, value=score, constraints=constraints)


def violation(space: SearchSpace, candidate: Candidate) -> float:
    """How far over the budget, relative to it; above 0 as well for what the space does not allow; else at most 0."""
    assert space.budget is not None
    over = (candidate.stored - space.budget) / space.budget
    return over if over > 0 or space.is_valid(candidate) else 1.0


def _suggest(trial: "Trial", parameter: Parameter) -> Scalar:
    domain = parameter.domain
    if isinstance(domain, Interval):
        return domain.round(trial.suggest_float(parameter.name, domain.low, domain.high, log=domain.log))
    if domain.ordered:
        return domain.values[trial.suggest_int(parameter.name, 0, len(domain.values) - 1)]
    value = trial.suggest_categorical(parameter.name, domain.values)
    assert isinstance(value, bool | int | float | str)
    return value
