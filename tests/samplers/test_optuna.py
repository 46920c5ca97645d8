"""Samplers of Optuna and OptunaHub by name, and ours in a study that Optuna runs."""

import importlib.util
import sys
import types
from pathlib import Path

import optuna
import pytest

from autopeft.errors import EnvironmentProblem, UnknownNameError, UsageError
from autopeft.samplers import SAMPLERS, SpaceExhaustedError, as_optuna, find_sampler
from autopeft.samplers.optuna_study import suggest
from autopeft.space.search_space import SearchSpace
from autopeft.space.spec import SpaceSpec, load_space
from tests.samplers.test_contract import ANATOMY, check, run, score

HUB_SAMPLER = """
import numpy as np
from optuna.samplers import RandomSampler

class Counting(RandomSampler):
    '''Remembers in memory what it was told: a step-by-step replay has to tell it everything.'''
    def __init__(self, seed=None):
        super().__init__(seed)
        self.told = 0
    def after_trial(self, study, trial, state, values):
        self.told += 1
    def sample_independent(self, study, trial, name, distribution):
        if self.told != sum(t.state.is_finished() for t in study.get_trials(deepcopy=False)):
            raise ValueError(f"told of {self.told} trials")
        return super().sample_independent(study, trial, name, distribution)

class Other(RandomSampler):
    pass
"""


def space() -> SearchSpace:
    return SearchSpace(load_space("lora"), ANATOMY, 113_566)


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """An OptunaHub whose registry is a folder; `registry(code)` puts a package into it."""
    hub = types.ModuleType("optunahub")

    def load_module(package: str):
        path = Path(tmp_path) / package / "__init__.py"
        if not path.exists():
            raise ValueError(f"{package} is not in the registry")
        spec = importlib.util.spec_from_file_location("hub_module", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    hub.load_module = load_module
    monkeypatch.setitem(sys.modules, "optunahub", hub)

    def put(package: str, code: str) -> None:
        (tmp_path / package).mkdir(parents=True)
        (tmp_path / package / "__init__.py").write_text(code)

    return put


@pytest.mark.parametrize("objective", ["score", "pareto"])
@pytest.mark.parametrize("name", ["RandomSampler", "TPESampler", "QMCSampler", "NSGAIIISampler"])
def test_any_sampler_of_optuna_can_be_named(name, objective):
    sampler, bound = find_sampler(f"optuna:{name}"), space()
    sampler.check(bound, objective)
    past = run(sampler, bound, 24, objective=objective)
    check(bound, past)
    assert past == run(find_sampler(f"optuna:{name}"), space(), 24, objective=objective)


def test_unknown_names_list_what_exists():
    with pytest.raises(UnknownNameError, match=r"Did you mean 'evolution'.*optunahub:PACKAGE.*random"):
        find_sampler("evolutoin")
    with pytest.raises(UnknownNameError, match="Did you mean 'CmaEsSampler'"):
        find_sampler("optuna:CmaESampler")
    with pytest.raises(UnknownNameError, match="unknown sampler of Optuna"):
        find_sampler("optuna:BaseSampler")


@pytest.mark.parametrize(("name", "why"), [("GridSampler", "search_space"), ("BruteForceSampler", "step")])
def test_a_sampler_that_cannot_search_the_space_is_refused_in_its_own_words(name, why):
    with pytest.raises(UsageError, match=f"optuna:{name} cannot search here: .*{why}"):
        find_sampler(f"optuna:{name}").check(space(), "score")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(EnvironmentProblem, match="cmaes"):
        find_sampler("optuna:CmaEsSampler").check(space(), "score")
    monkeypatch.setitem(sys.modules, "optunahub", None)
    with pytest.raises(EnvironmentProblem, match="optunahub"):
        find_sampler("optunahub:samplers/any")


def test_a_sampler_of_optunahub_is_told_every_past_trial(registry):
    registry("samplers/counting", HUB_SAMPLER.replace("class Other(RandomSampler):\n    pass", ""))
    sampler, bound = find_sampler("optunahub:samplers/counting:Counting"), space()
    check(bound, run(sampler, bound, 12))


def test_of_several_samplers_of_a_package_one_has_to_be_named(registry):
    registry("samplers/two", HUB_SAMPLER + "__all__ = ['Counting', 'Other']")
    with pytest.raises(UsageError, match="optunahub:samplers/two:NAME, of Counting, Other"):
        find_sampler("optunahub:samplers/two")
    assert find_sampler("optunahub:samplers/two:Other").kind.__name__ == "Other"
    with pytest.raises(UnknownNameError, match="Counting"):
        find_sampler("optunahub:samplers/two:Third")


def test_what_the_registry_says_is_passed_on(registry):
    with pytest.raises(EnvironmentProblem, match="samplers/none is not in the registry"):
        find_sampler("optunahub:samplers/none")
    registry("samplers/broken", "import a_package_that_is_not_there")
    with pytest.raises(EnvironmentProblem, match="a_package_that_is_not_there"):
        find_sampler("optunahub:samplers/broken")


@pytest.mark.parametrize("name", ["random", "tpe", "nsga2", "evolution"])
def test_a_study_that_optuna_runs_stays_within_the_budget_without_duplicates(name):
    bound = space()
    study = optuna.create_study(direction="minimize", sampler=as_optuna(name, bound, seed=3))

    def objective(trial: optuna.Trial) -> float:
        candidate = suggest(trial, bound)
        assert bound.is_valid(candidate)
        if trial.number == 4:
            raise optuna.TrialPruned
        return -score(candidate)

    study.optimize(objective, n_trials=22)
    found = [bound.candidate(trial.params).architecture.id for trial in study.trials]
    assert len(set(found)) == 22
    again = optuna.create_study(direction="minimize", sampler=as_optuna(SAMPLERS[name], bound, seed=3))
    again.optimize(objective, n_trials=22)
    assert [t.params for t in again.trials] == [t.params for t in study.trials]


def test_running_trials_of_an_optuna_study_are_known_and_own_parameters_are_left_to_the_user():
    bound = space()
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=as_optuna("evolution", bound))
    pending = [study.ask() for _ in range(5)]
    points = [suggest(trial, bound) for trial in reversed(pending)]
    assert len({point.architecture.id for point in points}) == 5
    assert 0 <= pending[0].suggest_float("of my own", 0, 1) <= 1
    for trial, point in zip(reversed(pending), points, strict=True):
        study.tell(trial, [score(point), point.stored])
    assert study.ask().params == {}


def test_an_exhausted_space_ends_the_optuna_study_with_the_reason():
    spec = SpaceSpec.model_validate({"version": 1, "modules": {"lora": {"per": "model", "size": (0, 1, 2, 4)}}})
    small = SearchSpace(spec, ANATOMY, 20_000)
    study = optuna.create_study(direction="maximize", sampler=as_optuna("random", small))
    with pytest.raises(SpaceExhaustedError, match="all 2 architectures"):
        study.optimize(lambda trial: float(suggest(trial, small).stored), n_trials=5)


def test_other_objectives_are_refused():
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=as_optuna("random", space()))
    with pytest.raises(ValueError, match="minimised"):
        study.ask()
