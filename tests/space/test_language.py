"""What the language of search spaces can say: each feature alone, by the exact set of its points."""

from collections import Counter

import numpy as np
import pytest

from autopeft.errors import ConfigError
from autopeft.space.architecture import Architecture
from autopeft.space.counting import count_parameters
from autopeft.space.feasible import Bounds, FeasibleSet, share_within
from autopeft.space.parameters import Choices
from autopeft.space.search_space import SearchSpace
from autopeft.space.spec import SpaceSpec
from tests.anatomies import bert_like, gpt2_like, llama_like

SMALL = bert_like(3, 16, 20_000)

EXAMPLES = {
    "depth per model": {"lora": {"per": "model", "size": [0, 1, 2], "depth": {"first": [1, 2, 3]}}},
    "depth per layer": {"lora": {"per": "layer", "size": [1, 2], "depth": {"first": [1, 3]}}, "bitfit": {"size": 1}},
    "depth from the end": {"serial": {"size": [0, 4], "depth": {"last": [1, 2]}}, "lora": {"size": [0, 1]}},
    "fixed depth": {"serial": {"per": "model", "size": [2, 4], "depth": {"last": 2}}},
    "own mask": {"lora": {"per": "model", "size": [0, 1], "mask": True}, "serial": {"per": "model", "size": [0, 3]}},
    "own mask and depth": {"lora": {"per": "model", "size": [0, 1], "mask": True, "depth": {"first": [2, 3]}}},
    "ranges": {
        "lora": {"size": {"low": 1, "high": 4}},
        "serial": {"size": {"low": 1, "high": 9, "power": 3, "off": True}},
    },
    "options": {
        "parallel": {"size": [0, 2], "scale": [2, "learned"], "activation": ["relu", "gelu"], "gate": ["none", "mean"]},
        "lora": {"per": "layer", "size": [0, 1], "gate": ["none", "token"], "alpha": [8, 16, 32]},
    },
    "shares": {"lora": {"size": {"share": [0.25, 0.5], "off": True}}, "serial": {"size": [0, 1]}},
    "fill": {"lora": {"size": [0, "fill"]}, "serial": {"size": [0, 2, "fill"]}},
}  # fmt: skip
LAYERS = {
    "searched groups": {"groups": [1, 2, 3], "pattern": ["uniform", "decreasing"]},
    "listed groups": {"groups": {"lists": [[0, 2], [1]]}},
    "groups that leave a layer out": {"groups": {"lists": [[0], [2]]}, "tuned": "any"},
    "shared mask in groups": {"groups": 2, "mask": True, "tuned": "any"},
    "shared mask": {"mask": True},
}
TWO = {"lora": {"size": [0, 1, 2]}, "serial": {"size": [0, 3]}}
CASES = {name: {"modules": modules} for name, modules in EXAMPLES.items()}
CASES |= {name: {"modules": TWO, "layers": layers} for name, layers in LAYERS.items()}
MASKED = {"lora": {"size": [0, 1], "mask": True}, "serial": {"per": "model", "size": [0, 3]}}
CASES |= {
    "masks in groups of a searched pattern": {
        "modules": MASKED, "layers": {"groups": 2, "pattern": ["increasing", "decreasing"]}
    },
    "masks in a searched number of groups": {"modules": MASKED, "layers": {"groups": [1, 2], "tuned": "any"}},
    "masks in listed groups": {"modules": MASKED, "layers": {"groups": {"lists": [[0, 2]]}}},
    "masks of a fixed size in groups": {
        "modules": {"lora": {"size": 1, "mask": True}, "bitfit": {"size": [0, 1]}},
        "layers": {"groups": 2, "pattern": ["increasing", "decreasing"], "tuned": "any"},
    },
    "masks and depth in groups": {
        "modules": {"lora": {"size": [0, 1], "mask": True, "depth": {"first": [1, 3]}}},
        "layers": {"groups": 2, "pattern": ["increasing", "decreasing"]},
    },
    "masks and filling": {
        "modules": {"lora": {"size": [0, "fill"], "mask": True}, "serial": {"size": [0, "fill"]}},
        "layers": {"groups": 2, "allocation": ["uniform", "increasing"]},
    },
    "mask with modules per model": {
        "modules": {**TWO, "prefix": {"per": "model", "size": [0, 1]}}, "layers": {"groups": 2, "mask": True}
    },
    "exclusion": {"modules": TWO, "layers": {"groups": 2}, "exclude": [{"lora": "on", "serial": "on"}]},
    "exclusion of sizes": {
        "modules": TWO,
        "layers": {"groups": 2, "tuned": "any"},
        "at_least_one": True,
        "exclude": [{"lora.size": [1, 2], "serial": "off"}, {"lora.size": 1}],
    },
    "exclusion per layer": {
        "modules": {name: {**module, "per": "layer"} for name, module in TWO.items()},
        "exclude": [{"lora": "off", "serial": "off"}],
    },
}  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def bound(case, budget: int | None = 2_000, anatomy=SMALL) -> SearchSpace:
    return SearchSpace(parsed(case), anatomy, budget)


def parsed(case) -> SpaceSpec:
    import json

    return SpaceSpec.model_validate_json(json.dumps({"version": 1, **case}))


@every_case
def test_points_are_counted_as_they_are_listed(case):
    space = bound(case)
    points = list(space.points())
    assert len({point.params for point in points}) == len(points) == space.cardinality
    assert share_within(space.tables, Bounds(2_000)) == sum(space.is_valid(point) for point in points)


@every_case
def test_every_point_can_be_counted_encoded_and_told_from_others(case):
    space = bound(case)
    architectures = set()
    for point in list(space.points())[::7]:
        counted = count_parameters(point.architecture, SMALL).stored
        assert point.stored == counted
        assert point.measured[1] == len(point.architecture)
        architectures.add(point.architecture)
        if space.is_valid(point):
            assert counted <= space.budget
            assert space.contains(point.architecture)
            assert space.decode(space.encode(point.architecture)) == point.architecture
    assert architectures


def prior(space: SearchSpace, params) -> float:
    """Probability of params when every active parameter is drawn uniformly from its values."""
    domains = {p.name: p.domain for p in space.parameters}
    return float(np.prod([1 / len(domains[name].values) for name, _ in params]))


@every_case
@pytest.mark.parametrize("budget", [None, 2_000, 500])
def test_samples_have_the_prior_on_condition_that_they_fit(case, budget):
    if budget is None and any(word in str(case) for word in ("fill", "share")):
        return
    space = bound(case, budget)
    wanted = {p.params: prior(space, p.params) for p in space.points() if space.is_valid(p)}
    if not wanted:
        return
    total, n = sum(wanted.values()), 1_500
    rng = np.random.default_rng(0)
    drawn = Counter(space.sample(rng).params for _ in range(n))
    assert set(drawn) <= set(wanted)
    # Total variation between the empirical and the wanted distribution, against what chance gives.
    distance = sum(abs(drawn[params] / n - weight / total) for params, weight in wanted.items()) / 2
    chance = sum((weight / total * (1 - weight / total) / n) ** 0.5 for weight in wanted.values()) / 2
    assert distance < 1.25 * chance + 0.02
    if budget is not None:
        assert space.feasible is not None


@every_case
def test_points_of_equal_weight_are_drawn_alike(case):
    space = bound(case)
    feasible = FeasibleSet(space.tables, Bounds(2_000), "points")
    rng = np.random.default_rng(1)
    wanted = {p.params for p in space.points() if space.is_valid(p)}
    n, drawn = 1_500, Counter()
    while drawn.total() < n:
        params = space.complete(feasible.draw(rng), lambda p: p.domain.sample(rng))
        point = space.candidate(params)
        drawn[point.params] += space.is_valid(point)
    drawn = +drawn
    assert set(drawn) <= wanted
    chance = len(wanted) * ((1 / len(wanted)) * (1 - 1 / len(wanted)) / n) ** 0.5 / 2
    assert sum(abs(drawn[p] / n - 1 / len(wanted)) for p in wanted) / 2 < 1.25 * chance + 0.02


@every_case
def test_repairing_and_growing_end_in_valid_points(case):
    space = bound(case, 900)
    rng = np.random.default_rng(0)
    for _ in range(20):
        repaired = space.repair(space.draw(rng), rng)
        assert space.is_valid(repaired)
        grown = space.grow(dict(repaired.params), rng)
        assert space.is_valid(grown)
        assert grown.measured[0] >= repaired.measured[0]


@every_case
def test_the_smallest_point_is_the_smallest(case):
    space = bound(case)
    assert space.smallest_candidates[0].measured[0] == min(point.measured[0] for point in space.points())


@every_case
def test_a_space_means_the_same_on_other_models(case):
    for anatomy in (gpt2_like(), llama_like()):
        try:
            space = SearchSpace(parsed(case), anatomy, anatomy.n_parameters // 5)
        except ConfigError as error:
            assert "nothing of it can stand" in str(error)
            continue
        rng = np.random.default_rng(0)
        for _ in range(20):
            point = space.sample(rng)
            assert point.stored == count_parameters(point.architecture, anatomy).stored <= space.budget
            assert space.contains(point.architecture)


def values(space: SearchSpace, name: str):
    domain = next(p.domain for p in space.parameters if p.name == name)
    assert isinstance(domain, Choices)
    return domain.values


def test_ranges_and_powers_are_what_they_say():
    modules = {
        "lora": {"per": "model", "size": {"low": 1, "high": 64, "power": 2}},
        "serial": {"per": "model", "size": {"low": 4, "high": 12, "step": 4, "off": True}},
    }
    space = bound({"modules": modules}, None)
    assert values(space, "lora.size") == (1, 2, 4, 8, 16, 32, 64)
    assert values(space, "serial.size") == (0, 4, 8, 12)


def test_a_depth_reaches_the_first_or_last_layers():
    modules = {
        "lora": {"per": "model", "size": 1, "depth": {"first": 1}},
        "serial": {"per": "model", "size": 1, "depth": {"last": 2}},
    }
    architecture = next(bound({"modules": modules}, None).points()).architecture
    assert {(p.module, p.layer) for p in architecture.placements} == {("lora", 0), ("serial", 1), ("serial", 2)}


def test_a_share_is_not_exceeded_and_nearly_reached():
    space = bound({"modules": {"lora": {"per": "model", "size": {"share": 0.5}}}}, 2_000)
    stored = next(space.points()).stored
    assert 1_000 - 3 * 2 * 32 < stored <= 1_000


def test_a_fraction_of_the_budget_is_filled():
    case = {"modules": {"lora": {"size": "fill"}}, "fill": 0.6}
    stored = next(bound(case, 10_000).points()).stored
    assert 5_700 < stored <= 6_000


def test_named_points_are_points_or_say_why_not():
    case = {
        "modules": {"lora": {"size": [0, 1]}, "prefix": {"size": [0, 2]}},
        "layers": {"groups": 2, "mask": True},
        "points": {
            "all": {"*.size": 1, "*.prefix.size": 2, "layer.*": True},
            "half": {"g1.lora.size": 1, "layer.encoder.0": True},
            "wrong": {"g1.lora.size": 9},
            "absent": {"g7.lora.size": 1},
        },
    }
    found = bound(case).named_points()
    assert isinstance(found["all"].architecture, Architecture)
    assert {p.module for p in found["all"].architecture.placements} == {"lora", "prefix"}
    assert [p.layer for p in found["half"].architecture.placements] == [0, 0]
    assert found["wrong"] == "g1.lora.size cannot be 9 here"
    assert "g7.lora.size" in found["absent"]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"modules": {"lora": {"size": 1, "depth": {"first": 1, "last": 2}}}}, "either first or last"),
        ({"modules": {"lora": {"size": 1, "depth": {"first": 0}}}}, "from 1 to"),
        ({"modules": {"lora": {"size": {"low": 9, "high": 8}}}}, "low <= high"),
        ({"modules": {"lora": {"size": {"low": 1, "high": 8, "power": 2, "step": 2}}}}, "not both"),
        ({"modules": {"lora": {"size": {"low": 1, "high": 900_000}}}}, "larger step"),
        ({"modules": {"lora": {"size": {"share": 1.5}}}}, "at most 1"),
        ({"modules": {"bitfit": {"size": {"share": 0.5}}}}, "on .1. or off"),
        ({"modules": {"lora": {"size": 1, "mask": True, "per": "layer"}}}, "list 0 among the sizes"),
        (
            {
                "modules": {"lora": {"size": 1, "mask": True}},
                "layers": {"groups": [1, 2], "pattern": ["uniform", "increasing"]},
            },
            "either the number of groups or their pattern",
        ),
        ({"modules": TWO, "layers": {"groups": {"lists": [[0, 1], [1]]}}}, "stands in two groups"),
        ({"modules": TWO, "layers": {"groups": 65}}, "from 1 to 64"),
        ({"modules": TWO, "exclude": [{"lorra": "on"}]}, "Did you mean 'lora'"),
        ({"modules": TWO, "exclude": [{"lora": "maybe"}]}, "must be on or off"),
        ({"modules": TWO, "exclude": [{"lora.sise": 1}]}, "has no 'sise'"),
        ({"modules": TWO, "exclude": [{}]}, "names no module"),
        ({"modules": {"lora": {"size": []}}}, "at least one"),
        ({"modules": TWO, "fill": 0}, "greater than 0"),
    ],
)
def test_what_makes_no_sense_is_refused(case, message):
    with pytest.raises(ValueError, match=message):
        parsed(case)


def test_a_space_in_which_everything_is_excluded_holds_nothing():
    space = bound({"modules": {"lora": {"size": [1, 2]}}, "exclude": [{"lora": "on"}]})
    assert space.cardinality == 0
    with pytest.raises(ConfigError, match="holds no architecture"):
        space.sample(np.random.default_rng(0))
