"""Training settings that the space searches: for all modules, or for those of one kind."""

import numpy as np
import pytest

from autopeft.space.parameters import Interval
from autopeft.space.search_space import SearchSpace
from autopeft.space.spec import SpaceSpec
from tests.anatomies import bert_like

SMALL = bert_like(3, 16, 20_000)
RATE = {"low": 1e-4, "high": 1e-2, "log": True}
CASE = {
    "layers": {"groups": 2},
    "modules": {
        "lora": {"size": [0, 1, 2], "learning_rate": RATE},
        "prefix": {"per": "model", "size": [0, 1], "weight_decay": [0.0, 0.1], "learning_rate": 0.01},
    },
    "training": {"learning_rate": RATE},
}


def bound(case) -> SearchSpace:
    return SearchSpace(parsed(case), SMALL, 2_000)


def parsed(case) -> SpaceSpec:
    return SpaceSpec.model_validate({"version": 1, **case}, strict=False)


def test_settings_of_a_module_are_dimensions_while_it_is_on():
    space = bound(CASE)
    names = {p.name: p.domain for p in space.parameters if p.is_training}
    assert set(names) == {"learning_rate", "lora.learning_rate", "prefix.weight_decay", "prefix.learning_rate"}
    assert names["lora.learning_rate"] == Interval(1e-4, 1e-2, log=True)
    rng, seen = np.random.default_rng(0), set()
    for _ in range(100):
        point = space.sample(rng)
        kinds = point.architecture.modules
        given = {name.split(".")[1] for name, _ in point.training if name.startswith("modules.")}
        assert given == kinds
        seen.add(kinds)
        assert space.candidate(dict(point.params)) == point
        params = space.encode(point.architecture, dict(point.training))
        assert space.candidate(params).training == point.training
        for neighbour in space.neighbours(dict(point.params)):
            assert space.candidate(dict(neighbour.params)) == neighbour
            assert neighbour.least == space.layout.measure(dict(neighbour.params))
    assert len(seen) == 3


def test_settings_of_a_module_that_is_always_on_always_exist():
    case = {"modules": {"lora": {"per": "model", "size": 2, "learning_rate": RATE}, "prefix": {"size": [0, 1]}}}
    assert all(dict(p.training)["modules.lora.learning_rate"] for p in bound(case).points())


def test_they_change_no_architecture_and_no_number_of_points():
    plain = {**CASE, "modules": {"lora": {"size": [0, 1, 2]}, "prefix": {"per": "model", "size": [0, 1]}}}
    assert bound(CASE).cardinality == bound(plain).cardinality == len(list(bound(CASE).points()))


def test_spaces_without_them_are_the_studies_they_were():
    content = parsed({"modules": {"lora": {"size": 1}}}).content()
    assert not {"learning_rate", "weight_decay"} & set(content["modules"]["lora"])
    assert parsed(CASE).content() != parsed({**CASE, "modules": {"lora": {"size": [0, 1, 2]}}}).content()


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"modules": {"lora": {"size": 1, "learning_rate": 0}}}, r"modules.lora.learning_rate: must be above 0"),
        ({"modules": {"lora": {"size": 1, "weight_decay": 11.0}}}, r"modules.lora.weight_decay: must be from 0 to 10"),
        ({"modules": {"lora": {"size": 1}}, "training": {"warmup_fraction": 1}}, r"warmup_fraction: .* below 1, got 1"),
        ({"modules": {"lora": {"size": 1}}, "training": {"learning_rate": []}}, "at least one"),
        (
            {
                "modules": {
                    "low": {"kind": "lora", "roles": "q", "size": 1, "learning_rate": 0.1},
                    "high": {"kind": "lora", "roles": "v", "size": 1, "learning_rate": 0.1},
                }
            },
            "modules.high.learning_rate: lora has one already, by low",
        ),
    ],
)
def test_settings_that_cannot_be_trained_with_are_refused(case, message):
    with pytest.raises(ValueError, match=message):
        parsed(case)
