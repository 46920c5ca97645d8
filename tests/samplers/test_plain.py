"""Plain points: few kinds, the same settings in all groups, within the budget."""

import numpy as np
import pytest

from autopeft.samplers.plain import crossed, filled, plain, ties, together
from autopeft.space.search_space import Candidate, SearchSpace
from autopeft.space.spec import load_space
from tests.samplers.test_contract import ANATOMY

BUDGET = 113_566
SPACES = ["hybrid", "s4", "autopeft", "noah", "lora", "unipelt"]


def space_of(name: str) -> SearchSpace:
    return SearchSpace(load_space(name), ANATOMY, BUDGET)


def kinds(candidate: Candidate) -> set[str]:
    return {placement.module for placement in candidate.architecture.placements}


@pytest.mark.parametrize("name", SPACES)
def test_points_are_valid(name):
    space, rng = space_of(name), np.random.default_rng(0)
    points = [plain(space, rng) for _ in range(25)]
    points += together(space, points[0], rng, 25)
    points += crossed(space, points[:5], rng, 25)
    assert all(space.is_valid(point) for point in points)
    assert all(space.candidate(dict(point.params)) == point for point in points)


def test_plain_points_hold_few_kinds_and_say_the_same_in_all_groups():
    space, rng = space_of("hybrid"), np.random.default_rng(1)
    points = [plain(space, rng) for _ in range(60)]
    assert {len(kinds(point)) for point in points} == {1, 2, 3}
    assert len(set().union(*map(kinds, points))) == 5
    for point in points:
        roles = {
            (name.split(".")[1], value) for name, value in point.params if name.endswith((".roles", ".scale", ".gate"))
        }
        settings = {key for key in ties(space).names if key[1] in {"roles", "scale", "gate"}}
        assert len(roles) <= len(settings)
        per_module = [module for module, _ in roles]
        assert all(per_module.count(module) <= 2 for module in per_module)


def test_most_plain_points_spend_the_budget():
    space, rng = space_of("hybrid"), np.random.default_rng(2)
    shares = [plain(space, rng).stored / BUDGET for _ in range(40)]
    assert np.median(shares) > 0.9


def test_what_is_filled_has_its_kinds_and_no_room_for_a_larger_one():
    space, rng = space_of("hybrid"), np.random.default_rng(3)
    for _ in range(20):
        point = space.sample(rng)
        larger = filled(space, point, rng)
        assert kinds(larger) == kinds(point)
        assert larger.stored >= point.stored
        assert filled(space, larger, rng) == larger


def test_kinds_change_places_in_all_groups_at_once():
    space, rng = space_of("hybrid"), np.random.default_rng(4)
    start = space.candidate(
        {"pattern": "uniform", "learning_rate": 1e-3}
        | {f"g{g}.{kind}.size": 0 for g in range(1, 5) for kind in ("lora", "parallel", "serial", "prefix", "bitfit")}
        | {f"g{g}.lora.size": 4 for g in range(1, 5)}
        | {f"g{g}.lora.roles": "q,v" for g in range(1, 5)}
    )
    found = list(together(space, start, rng, 300))
    adapters = [point for point in found if "serial" in kinds(point)]
    everywhere = [p for p in adapters if all(dict(p.params)[f"g{g}.serial.size"] != 0 for g in range(1, 5))]
    assert everywhere
    assert any(kinds(point) == {"serial"} for point in found)
