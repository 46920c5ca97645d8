"""Every shipped space, on every anatomy: sampling, decoding, encoding, neighbours, budgets, sizes."""

from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import BudgetError, ConfigError
from autopeft.resources import shipped_names
from autopeft.space.architecture import Architecture, place
from autopeft.space.counting import count_parameters
from autopeft.space.search_space import SearchSpace
from autopeft.space.spec import SpaceSpec, load_space
from tests.anatomies import ANATOMIES, bert_like

SPACES = shipped_names("search_spaces")
SEEDS = st.integers(0, 2**32 - 1)


def bound(name: str, anatomy: str, fraction: float = 0.01) -> SearchSpace:
    model = ANATOMIES[anatomy]
    return SearchSpace(load_space(name), model, floor(fraction * model.n_parameters))


def fitting(name: str, anatomy: str) -> SearchSpace:
    return bound(name, anatomy, 0.01 if "bert" in anatomy else 0.2)


pairs = st.tuples(st.sampled_from(SPACES), st.sampled_from(sorted(ANATOMIES)))


def test_the_spaces_of_the_literature_ship():
    assert {"hybrid", "s4", "unipelt", "mam", "autopeft", "lora"} <= set(SPACES)


@given(pairs, SEEDS)
def test_a_sample_is_valid_and_within_the_budget(pair, seed):
    space = fitting(*pair)
    candidate = space.sample(np.random.default_rng(seed))
    assert candidate.architecture
    assert candidate.stored == count_parameters(candidate.architecture, space.anatomy).stored <= space.budget


@given(pairs, SEEDS)
def test_an_architecture_survives_encoding(pair, seed):
    space = fitting(*pair)
    candidate = space.sample(np.random.default_rng(seed))
    params = space.encode(candidate.architecture, dict(candidate.training))
    assert space.decode(params) == candidate.architecture
    assert space.candidate(params).training == candidate.training
    assert space.contains(candidate.architecture)


@given(pairs, SEEDS)
def test_inactive_parameters_leave_no_trace(pair, seed):
    space = fitting(*pair)
    rng = np.random.default_rng(seed)
    candidate = space.sample(rng)
    everything = {p.name: p.domain.sample(rng) for p in space.parameters} | dict(candidate.params)
    assert space.candidate(everything) == candidate


@given(pairs, SEEDS)
def test_neighbours_are_other_valid_points_of_the_space(pair, seed):
    space = fitting(*pair)
    candidate = space.sample(np.random.default_rng(seed))
    neighbours = list(space.neighbours(dict(candidate.params)))
    assert candidate.params not in {n.params for n in neighbours}
    assert len({n.params for n in neighbours}) == len(neighbours)
    for neighbour in neighbours:
        assert space.is_valid(neighbour)
        assert space.candidate(dict(neighbour.params)) == neighbour


@given(pairs, SEEDS)
def test_repair_keeps_what_fits_and_mends_what_does_not(pair, seed):
    space = fitting(*pair)
    rng = np.random.default_rng(seed)
    params = space.draw(rng)
    repaired = space.repair(params, rng)
    assert space.is_valid(repaired)
    drawn = space.candidate(params)
    if space.is_valid(drawn):
        assert repaired == drawn


@given(pairs, SEEDS)
def test_the_same_seed_gives_the_same_sample(pair, seed):
    first, second = (fitting(*pair).sample(np.random.default_rng(seed)) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("fraction", [0.001, 1.0])
def test_tight_and_loose_budgets_both_work(name, fraction):
    space = bound(name, "bert-base", fraction)
    for seed in range(20):
        assert space.sample(np.random.default_rng(seed)).stored <= space.budget


@pytest.mark.parametrize("name", SPACES)
def test_an_impossible_budget_names_the_smallest_reachable_one(name):
    anatomy = ANATOMIES["bert-base"]
    with pytest.raises(BudgetError, match="Give at least --budget") as caught:
        SearchSpace(load_space(name), anatomy, 3).sample(np.random.default_rng(0))
    smallest = int(str(caught.value).rsplit(" ", 1)[1])
    assert SearchSpace(load_space(name), anatomy, smallest).sample(np.random.default_rng(0)).stored == smallest
    with pytest.raises(BudgetError):
        SearchSpace(load_space(name), anatomy, smallest - 1).sample(np.random.default_rng(0))


def test_autopeft_has_the_papers_number_of_points():
    # Zhou et al. 2024: 2^12 masks x 11^3 sizes; 5,446,350 of them have a module and a layer switched on.
    assert SearchSpace(load_space("autopeft"), bert_like()).cardinality == 5_446_350


def test_s4_has_the_papers_number_of_points():
    # Chen et al. 2023 count 5 x 3 x 15 x 15^4, modules of groups that are not tuned included. A point of ours has no
    # modules there: 5 x 3 x (16^4 - 1).
    space = SearchSpace(load_space("s4"), bert_like(), 547_411)
    assert space.cardinality == 5 * 3 * (16**4 - 1)


def test_counting_points_agrees_with_listing_them():
    for name in ("unipelt", "mam", "autopeft"):
        space = SearchSpace(load_space(name), bert_like(2, 16, 20_000), 20_000)
        assert sum(1 for _ in space.points()) == space.cardinality


def test_a_filled_budget_is_spent():
    space = bound("s4", "bert-base", 0.005)
    spent = [space.sample(np.random.default_rng(seed)).stored / space.budget for seed in range(100)]
    assert np.median(spent) > 0.95
    assert max(spent) <= 1


def test_the_model_leaves_out_what_it_cannot_hold_and_says_so():
    space = fitting("mam", "gpt2")
    assert any("prefix" in note for note in space.notes)
    assert not any("prefix" in p.name for p in space.parameters)


def test_query_and_value_of_a_fused_projection_are_one_site():
    space = fitting("unipelt", "gpt2")
    roles = {
        p.role
        for seed in range(30)
        for p in space.sample(np.random.default_rng(seed)).architecture.placements
        if p.module == "lora"
    }
    assert roles == {"attn.qkv"}


def test_a_mean_gate_is_left_out_of_causal_models():
    space = fitting("unipelt", "llama")
    assert any("look ahead" in note for note in space.notes)
    assert not any(p.name.endswith(".gate") for p in space.parameters)


def test_a_foreign_architecture_is_not_contained():
    space = bound("lora", "bert-base")
    foreign = Architecture.of([place("encoder", 0, "ffn", "parallel", 8)])
    assert not space.contains(foreign)
    with pytest.raises(ValueError, match="not in the search space"):
        space.encode(foreign)


def test_a_space_that_fills_a_budget_needs_one():
    with pytest.raises(ConfigError, match="--budget"):
        SearchSpace(load_space("s4"), bert_like())


def test_entries_of_one_kind_must_not_share_a_site():
    modules = {"low": {"kind": "lora", "size": 2, "roles": "q,v"}, "high": {"kind": "lora", "size": 8, "roles": "v"}}
    with pytest.raises(ValueError, match=r"share the site attn\.v"):
        SpaceSpec.model_validate({"version": 1, "modules": modules})
