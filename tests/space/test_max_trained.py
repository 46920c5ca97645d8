"""A bound on trained parameters beside that on stored ones: exact, and kept by everything that makes points."""

from collections import Counter

import numpy as np
import pytest

from autopeft.errors import BudgetError
from autopeft.space.counting import count_parameters
from autopeft.space.search_space import SearchSpace
from autopeft.space.spec import SpaceSpec, load_space
from tests.anatomies import bert_like

SMALL = bert_like(3, 16, 20_000)
MLP = {
    "layers": {"groups": 2},
    "modules": {
        "prefix": {"size": [0, 1, 4], "reparameterisation": ["none", 8]},
        "lora": {"per": "model", "size": [0, 1, 2, 4], "variant": ["plain", "fa"]},
    },
}


def bound(case, budget: int, max_trained: int, anatomy=SMALL) -> SearchSpace:
    return SearchSpace(SpaceSpec.model_validate({"version": 1, **case}, strict=False), anatomy, budget, max_trained)


@pytest.mark.parametrize(("budget", "max_trained"), [(1_200, 900), (1_200, 400), (500, 2_000), (100_000, 150)])
def test_samples_have_the_prior_on_condition_that_both_budgets_are_kept(budget, max_trained):
    space = bound(MLP, budget, max_trained)
    wanted = {}
    for point in space.points():
        count = count_parameters(point.architecture, SMALL)
        assert (point.stored, point.trained) == (count.stored, count.trained)
        assert space.is_valid(point) == (count.stored <= budget and count.trained <= max_trained)
        if space.is_valid(point):
            domains = {p.name: p.domain for p in space.parameters}
            wanted[point.params] = float(np.prod([1 / len(domains[name].values) for name, _ in point.params]))
    assert wanted
    total, n = sum(wanted.values()), 1_500
    rng = np.random.default_rng(0)
    drawn = Counter(space.sample(rng).params for _ in range(n))
    assert set(drawn) <= set(wanted)
    distance = sum(abs(drawn[params] / n - weight / total) for params, weight in wanted.items()) / 2
    chance = sum((weight / total * (1 - weight / total) / n) ** 0.5 for weight in wanted.values()) / 2
    assert distance < 1.25 * chance + 0.02


def test_repairs_neighbours_and_growth_keep_both():
    space = bound(MLP, 1_200, 700)
    rng = np.random.default_rng(0)
    for _ in range(40):
        repaired = space.repair(space.draw(rng), rng)
        for point in (repaired, space.grow(dict(repaired.params), rng), *space.neighbours(dict(repaired.params))):
            count = count_parameters(point.architecture, SMALL)
            assert count.stored <= 1_200
            assert count.trained <= 700


def test_the_share_within_both_budgets_agrees_with_listing_them():
    for max_trained in (400, 1_000):
        space = bound(MLP, 1_200, max_trained)
        share, fitting = space.share(), sum(space.is_valid(p) for p in space.points())
        assert abs(share.fraction - fitting / space.cardinality) < 4 * share.standard_error
    plain = bound({"modules": {"lora": {"size": [0, 1, 2, 4]}}}, 1_200, 400)
    assert plain.share().points == sum(plain.is_valid(p) for p in plain.points())


def test_where_all_that_is_stored_trains_the_smaller_budget_counts():
    space = SearchSpace(load_space("lora"), bert_like(), 547_411, 100_000)
    same = SearchSpace(load_space("lora"), bert_like(), 100_000)
    for seed in range(20):
        assert space.sample(np.random.default_rng(seed)).params == same.sample(np.random.default_rng(seed)).params


def test_an_impossible_number_of_trained_parameters_names_the_smallest():
    case = {"modules": {"prefix": {"per": "model", "size": [1, 4], "reparameterisation": 8}}}
    least = 3 * (16 + 16 * 8 + 8 + 8 * 32 + 32)
    with pytest.raises(BudgetError, match=rf"--max-trained: no architecture.*Give at least --max-trained {least}$"):
        bound(case, 5_000, least - 1).sample(np.random.default_rng(0))
    assert bound(case, 5_000, least).sample(np.random.default_rng(0)).trained == least
