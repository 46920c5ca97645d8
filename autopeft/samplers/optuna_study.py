"""The other way round: our samplers as an Optuna `BaseSampler`, for a study that Optuna itself runs.

sampler = as_optuna("tpe", space)
study = optuna.create_study(direction="maximize", sampler=sampler)
study.optimize(lambda trial: train(suggest(trial, space)), n_trials=60)
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from autopeft.samplers.proposal import Ask, Objective, Observation, Sampler, propose
from autopeft.space.modules import Scalar
from autopeft.space.parameters import Choices, Parameter
from autopeft.space.search_space import Candidate, SearchSpace

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import Trial

PROPOSAL = "autopeft:proposal"
"""Note on a trial: its params, known before its parameters are suggested one by one."""

_STATES: Mapping[TrialState, Any] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.FAIL: "failed",
    TrialState.PRUNED: "pruned",
}


def stored_distribution(parameter: Parameter) -> BaseDistribution:
    """The Optuna distribution under which a parameter's values are stored and suggested."""
    domain = parameter.domain
    if isinstance(domain, Choices):
        return CategoricalDistribution(domain.values)
    return FloatDistribution(domain.low, domain.high, log=domain.log)


def suggest(trial: "Trial", space: SearchSpace) -> Candidate:
    """The trial's point of `space`: its active parameters, asked for one after the other."""

    def ask(parameter: Parameter) -> Scalar:
        domain = parameter.domain
        if isinstance(domain, Choices):
            value = trial.suggest_categorical(parameter.name, domain.values)
            assert isinstance(value, bool | int | float | str)
            return value
        return trial.suggest_float(parameter.name, domain.low, domain.high, log=domain.log)

    return space.candidate(space.complete({}, ask))


class SpaceSampler(BaseSampler):
    """One of our samplers over one space: `as_optuna` makes it.

    With two objectives the second one is taken to be the stored parameters, and has to be minimised. Parameters that
    are not of the space are drawn at random.
    """

    def __init__(self, sampler: Sampler, space: SearchSpace, seed: int = 0) -> None:
        self._sampler, self._space, self._seed = sampler, space, seed
        self._names = frozenset(parameter.name for parameter in space.parameters)
        self._others = RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: "Study", trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: "Study", trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def before_trial(self, study: "Study", trial: FrozenTrial) -> None:
        """Propose the trial's point and note it down, so that others know of it while the trial runs.

        Raises:
            SpaceExhaustedError: all that fit have been trained.
            ValueError: the study's directions are not those of a score, or of a score and a size.
        """
        objective, sign = _objective(study)
        others = [t for t in study.get_trials(deepcopy=False) if t.number < trial.number]
        past = [o for other in others if (o := self._observation(other, sign)) is not None]
        seed = int(np.random.SeedSequence((self._seed, trial.number)).generate_state(1)[0])
        ask = Ask(self._space, past, seed, objective)
        params = dict(propose(self._sampler, ask).params)
        study._storage.set_trial_system_attr(trial._trial_id, PROPOSAL, params)

    def sample_independent(
        self, study: "Study", trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        proposal = study._storage.get_trial(trial._trial_id).system_attrs.get(PROPOSAL, {})
        if param_name in proposal:
            return proposal[param_name]
        return self._others.sample_independent(study, trial, param_name, param_distribution)

    def _observation(self, trial: FrozenTrial, sign: float) -> Observation | None:
        """None where a trial is not of the space: one that was enqueued, or made before."""
        params = dict(trial.system_attrs.get(PROPOSAL, {})) | dict(trial.params)
        try:
            candidate = self._space.candidate({n: v for n, v in params.items() if n in self._names})
        except ValueError:
            return None
        state = _STATES.get(trial.state)
        if state is None:
            return None
        score = sign * trial.values[0] if state == "complete" and trial.values else None
        curve = tuple(sign * value for _, value in sorted(trial.intermediate_values.items()))
        return Observation(candidate.params, candidate.architecture.id, state, score, candidate.stored, None, curve)


def _objective(study: "Study") -> tuple[Objective, float]:
    """What is searched, and the sign that makes the score greater where it is better."""
    directions: Sequence[StudyDirection] = study.directions
    sign = 1.0 if directions[0] == StudyDirection.MAXIMIZE else -1.0
    if len(directions) == 1:
        return "score", sign
    if len(directions) == 2 and directions[1] == StudyDirection.MINIMIZE:
        return "pareto", sign
    raise ValueError("an autopeft sampler takes one objective, or a score and stored parameters, the latter minimised")
