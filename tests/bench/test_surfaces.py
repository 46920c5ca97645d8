"""Surfaces of the synthetic suite: what they promise about themselves and about their optima."""

import json

import numpy as np
import pytest

from autopeft.bench.anatomies import ANATOMIES
from autopeft.bench.grouped import best_of_groups
from autopeft.bench.masked import best_of_masks
from autopeft.bench.suite import SURFACES, fingerprint, load_problem
from autopeft.bench.surface import Family, Surface
from autopeft.cli import run
from autopeft.space.architecture import Architecture
from autopeft.space.search_space import SearchSpace
from autopeft.space.spec import SpaceSpec, load_space
from tests.anatomies import bert_like

FAMILIES: tuple[Family, ...] = ("layered", "patchy", "pooled")


def small_space(n_layers: int = 4) -> SearchSpace:
    """840 points on a model of four layers, some over the budget."""
    modules = {
        "lora": {"size": (0, 2, 8), "roles": ("q,v", "all")},
        "parallel": {"size": (0, 8), "roles": "ffn"},
        "serial": {"size": (0, 8)},
    }
    spec = SpaceSpec.model_validate(
        {
            "version": 1,
            "title": "small",
            "layers": {"groups": 2, "pattern": ("uniform", "increasing")},
            "modules": modules,
        }
    )
    return SearchSpace(spec, bert_like(n_layers, 64, 400_000), 16_000)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_best_of_groups_is_the_best_of_all_points(family):
    space = small_space()
    surface = Surface(family, space.anatomy, seed=3)
    found = best_of_groups(space, surface)
    values = [surface.raw(c.architecture, dict(c.training)) for c in space.points() if space.is_valid(c)]
    assert len(values) > 500
    assert found.raw == pytest.approx(max(values), abs=1e-12)
    assert surface.raw(space.decode(found.params), {}) == pytest.approx(found.raw, abs=1e-12)
    assert space.is_valid(space.candidate(found.params))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_best_of_masks_is_the_best_of_all_points(family):
    spec = load_space(
        "autopeft", ["modules.serial.size=[0, 2, 8]", "modules.parallel.size=[0, 4]", "modules.prefix.size=[0, 2]"]
    )
    space = SearchSpace(spec, bert_like(5, 64, 400_000), 5_000)
    surface = Surface(family, space.anatomy, seed=5)
    found = best_of_masks(space, surface)
    values = [surface.raw(c.architecture, dict(c.training)) for c in space.points() if space.is_valid(c)]
    assert 50 < len(values) < space.cardinality
    assert found.raw == pytest.approx(max(values), abs=1e-12)


@pytest.mark.parametrize("name", SURFACES)
def test_a_stored_optimum_is_of_this_surface_and_no_sample_or_neighbour_is_better(name):
    problem = load_problem(name)
    assert problem.optimum.drawn == fingerprint(problem.drawn), "run `autopeft bench optima`"
    best = problem.space.candidate(problem.optimum.params)
    assert problem.space.is_valid(best)
    assert problem.score(best) == pytest.approx(problem.best, abs=1e-9)
    rng = np.random.default_rng(0)
    others = [*problem.space.neighbours(dict(best.params)), *(problem.space.sample(rng) for _ in range(30))]
    assert max(map(problem.score, others)) <= problem.best + 1e-3


def test_an_empty_architecture_is_worth_nothing_and_a_module_something():
    for family in FAMILIES:
        surface = Surface(family, ANATOMIES["bert-base"], seed=1)
        space = load_problem("lora-12-patchy").space
        assert surface.raw(Architecture(), {"learning_rate": 1e-3}) == 0
        points = [space.sample(np.random.default_rng(seed)) for seed in range(20)]
        assert len({round(surface.raw(c.architecture, dict(c.training)), 6) for c in points}) > 15


def test_surfaces_of_other_seeds_order_architectures_differently():
    space = load_problem("lora-12-patchy").space
    points = [space.sample(np.random.default_rng(seed)) for seed in range(60)]
    values = [
        [Surface("layered", space.anatomy, seed).raw(c.architecture, dict(c.training)) for c in points]
        for seed in range(3)
    ]
    correlations = np.corrcoef(np.argsort(np.argsort(values, axis=1), axis=1))
    assert correlations[np.triu_indices(3, 1)].max() < 0.95


def test_noise_follows_the_seed_and_has_the_problems_spread():
    problem = load_problem("hybrid-12-layered")
    first, other = problem.start(1), problem.start(2)
    assert first.noise(2) == problem.start(1).noise(2) not in {first.noise(3), other.noise(2)}
    seen = np.array([first.noise(number) for number in range(2000)])
    assert seen.mean() == pytest.approx(0, abs=0.1)
    assert seen.std() == pytest.approx(problem.noise, rel=0.1)


def test_a_rate_far_too_high_ruins_every_architecture():
    problem = load_problem("hybrid-12-layered")
    best = problem.space.candidate(problem.optimum.params)
    ruined = problem.surface.raw(best.architecture, {"learning_rate": 1.0})
    assert ruined < 0.05 * problem.optimum.raw


@pytest.mark.parametrize(
    "name",
    [
        "autopeft-24-layered",
        "lora-12-patchy",
        "lora-24-pooled",
        "held-lora-24-patchy",
        *(pytest.param(n, marks=pytest.mark.nightly) for n in SURFACES if "hybrid" in n),
    ],
)
def test_an_optimum_computed_anew_is_the_stored_one(name, tmp_path):
    assert run(["bench", "optima", "--problems", name, "--out", str(tmp_path / "optima.json")]) == 0
    found = json.loads((tmp_path / "optima.json").read_text())[name]
    stored = load_problem(name).optimum
    assert found["raw"] == pytest.approx(stored.raw, abs=1e-9)
    assert found["raw_median"] == pytest.approx(stored.raw_median, abs=1e-9)
    assert found["drawn"] == stored.drawn
