"""What every sampler promises, on small spaces with a made-up score."""

import math
import subprocess
import sys

import numpy as np
import pytest

from autopeft.errors import BudgetError
from autopeft.samplers import SAMPLERS, Ask, Observation, SpaceExhaustedError, propose
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
    is_complete = state == "complete"
    return Observation(
        c.params, c.architecture.id, state, score(c) if is_complete else None, c.stored, 1.0 if is_complete else None
    )


def run(sampler, space: SearchSpace, n_trials: int, seed: int = 0, past=()) -> list[Observation]:
    past = list(past)
    for number in range(len(past), n_trials):
        c = propose(sampler, Ask(space, past, seed * 1000 + number))
        state = "failed" if number % 7 == 3 else "running" if number == n_trials - 2 else "complete"
        past.append(observed(c, state))
    return past


@every_sampler
@pytest.mark.parametrize("name", ["hybrid", "s4", "autopeft"])
def test_proposals_are_in_the_space_within_the_budget_and_new(sampler, name):
    space = SearchSpace(load_space(name), ANATOMY, 113_566)
    past = run(sampler, space, 24)
    for observation in past:
        candidate = space.candidate(dict(observation.params))
        assert space.is_valid(candidate)
        assert candidate.architecture.id == observation.architecture_id
    assert len({o.architecture_id for o in past}) == len(past)


@every_sampler
def test_a_resumed_study_proposes_what_the_uninterrupted_one_does(sampler):
    space = SearchSpace(load_space("hybrid"), ANATOMY, 113_566)
    whole = run(sampler, space, 20)
    again = SearchSpace(load_space("hybrid"), ANATOMY, 113_566)
    assert propose(sampler, Ask(again, whole[:15], 15)) == again.candidate(dict(whole[15].params))


@pytest.mark.parametrize("name", SAMPLERS)
def test_proposals_are_the_same_in_another_process(name):
    code = (
        "from tests.samplers.test_contract import *\n"
        "space = SearchSpace(load_space('hybrid'), ANATOMY, 113_566)\n"
        f"print([o.architecture_id for o in run(SAMPLERS[{name!r}], space, 14)])"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    space = SearchSpace(load_space("hybrid"), ANATOMY, 113_566)
    assert other == str([o.architecture_id for o in run(SAMPLERS[name], space, 14)])


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


def test_tpe_learns_more_than_random():
    space = SearchSpace(load_space("lora"), ANATOMY, 113_566)

    def best(name: str, seed: int) -> float:
        past = run(SAMPLERS[name], space, 40, seed)
        return max(o.score for o in past if o.score is not None)

    gains = [best("tpe", seed) - best("random", seed) for seed in range(3)]
    assert np.mean(gains) > 0
