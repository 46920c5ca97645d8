"""What every sampler promises, on small spaces with a made-up score."""

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from autopeft.errors import BudgetError
from autopeft.samplers import SAMPLERS, Ask, Observation, SpaceExhaustedError, gp, propose
from autopeft.space.search_space import Candidate, SearchSpace
from autopeft.space.spec import SpaceSpec, load_space
from tests.anatomies import bert_like

ANATOMY = bert_like(6, 384, 22_713_216)
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)


def score(candidate: Candidate) -> float:
    """Deep LoRA is good, prefixes are bad; the learning rate matters."""
    worth = {"lora": 2.0, "parallel": 1.0, "prefix": -1.0}
    gain = sum(worth.get(p.module, 0.0) * p.size**0.5 * (p.layer + 1) for p in candidate.architecture.placements)
    rate = dict(candidate.training).get("learning_rate", 1e-3)
    return gain - 5 * abs(math.log10(rate / 1e-3))


def observed(c: Candidate, state="complete") -> Observation:
    is_complete, is_pruned = state == "complete", state == "pruned"
    curve = (score(c) / 2, score(c)) if is_complete else (score(c) / 2,) if is_pruned else ()
    return Observation(
        c.params,
        c.architecture.id,
        state,
        score(c) if is_complete else None,
        c.stored,
        1.0 if is_complete else None,
        curve,
    )


def run(sampler, space: SearchSpace, n_trials: int, seed: int = 0, objective="score") -> list[Observation]:
    """Some trials fail, some are pruned, and the last but one is pending."""
    past = []
    for number in range(n_trials):
        c = propose(sampler, Ask(space, past, seed * 1000 + number, objective))
        state = {3: "failed", 5: "pruned"}.get(number % 8, "running" if number == n_trials - 2 else "complete")
        past.append(observed(c, state))
    return past


def home(name: str) -> tuple[SearchSpace, int]:
    """A space in which the sampler is quick, and trials enough to see more of it than its random start."""
    space, n_trials = ("unipelt", 18) if name in ("bo", "gp") else ("hybrid", 28)
    return SearchSpace(load_space(space), ANATOMY, 113_566), n_trials


@cache
def run_at_home(name: str, objective: str = "score") -> tuple[Observation, ...]:
    """Several tests look at it."""
    return tuple(run(SAMPLERS[name], *home(name), objective=objective))


def check(space: SearchSpace, past: Sequence[Observation]) -> None:
    for observation in past:
        candidate = space.candidate(dict(observation.params))
        assert space.is_valid(candidate)
        assert candidate.architecture.id == observation.architecture_id
    assert len({o.architecture_id for o in past}) == len(past)


@pytest.mark.parametrize("objective", ["score", "pareto"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_proposals_are_in_the_space_within_the_budget_and_new(name, objective):
    space, _ = home(name)
    check(space, run_at_home(name, objective))


@pytest.mark.parametrize("space", ["s4", "autopeft"])
@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"gp"}))
def test_spaces_that_fill_or_mask_are_searched_too(name, space):
    bound = SearchSpace(load_space(space), ANATOMY, 113_566)
    check(bound, run(SAMPLERS[name], bound, 24))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_resumed_study_proposes_what_the_uninterrupted_one_does(name):
    whole = run_at_home(name)
    again, n_trials = home(name)
    for number in (n_trials - 1, 7):
        assert propose(SAMPLERS[name], Ask(again, list(whole[:number]), number)) == again.candidate(
            dict(whole[number].params)
        )


def test_proposals_are_the_same_in_another_process():
    code = (
        "from tests.samplers.test_contract import *\n"
        "print({name: [o.architecture_id for o in run_at_home(name)] for name in SAMPLERS})"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == str({name: [o.architecture_id for o in run_at_home(name)] for name in SAMPLERS})


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"random"}))
def test_what_was_learned_changes_the_proposal(name):
    space, _ = home(name)
    past = list(run_at_home(name))
    worse = [replace(o, score=None if o.score is None else -o.score) for o in past]
    proposals = {propose(SAMPLERS[name], Ask(space, trials, 1)).architecture.id for trials in (past, worse)}
    assert len(proposals) == 2


@pytest.mark.parametrize("name", ["tpe", "nsga2", "evolution"])
def test_two_objectives_lead_to_smaller_architectures(name):
    space, _ = home(name)

    def late(objective: str) -> float:
        runs = [run(SAMPLERS[name], space, 60, seed, objective)[30:] for seed in range(2)]
        return float(np.mean([o.stored for past in runs for o in past]))

    assert late("pareto") < late("score")


@every_sampler
def test_a_small_space_is_searched_to_its_end_and_no_further(sampler):
    spec = SpaceSpec.model_validate({"version": 1, "modules": {"lora": {"per": "model", "size": (0, 1, 2, 4)}}})
    space = SearchSpace(spec, ANATOMY, 20_000)  # r=1 and r=2 on q and v: 9,216 and 18,432; r=4 is over
    past = []
    with pytest.raises(SpaceExhaustedError, match="all 2 architectures"):
        for number in range(5):
            c = propose(sampler, Ask(space, past, number))
            past.append(Observation(c.params, c.architecture.id, "complete", 0.5))
    assert len(past) == 2


@every_sampler
def test_an_impossible_budget_is_an_error(sampler):
    with pytest.raises(BudgetError, match="smallest"):
        propose(sampler, Ask(SearchSpace(load_space("hybrid"), ANATOMY, 100), [], 0))


@pytest.mark.parametrize("name", ["tpe", "evolution"])
def test_it_learns_more_than_random(name):
    space = SearchSpace(load_space("lora"), ANATOMY, 113_566)

    def best(sampler: str, seed: int) -> float:
        past = run(SAMPLERS[sampler], space, 40, seed)
        return max(o.score for o in past if o.score is not None)

    gains = [best(name, seed) - best("random", seed) for seed in range(3)]
    assert np.mean(gains) > 0


def test_the_gaussian_process_learns_where_the_budget_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    space = SearchSpace(load_space("lora"), ANATOMY, 113_566)  # the score rises with sizes

    def excess(seed: int) -> float:
        rng = np.random.default_rng(seed)
        past = [observed(space.sample(rng)) for _ in range(14)]
        return space.excess(space.candidate(dict(gp.suggest_gp(Ask(space, past, seed)))))

    told = [excess(seed) for seed in range(4)]
    monkeypatch.setattr(gp, "_constraint", lambda ask, observation: {})
    untold = [excess(seed) for seed in range(4)]
    assert sum(told) < 0.8 * sum(untold)
