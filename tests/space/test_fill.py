"""Sizes that follow from a budget: as large as one common factor allows, and counted without building anything."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.space.counting import count_parameters
from autopeft.space.fill import Block, fill_sizes
from autopeft.space.search_space import SearchSpace
from autopeft.space.spec import SpaceSpec, load_space
from tests.anatomies import bert_like

numbers = st.integers(1, 40)
blocks_of_layers = st.dictionaries(
    st.builds(
        Block,
        st.sampled_from([0.25, 1 / 3, 0.5, 1.0, 2.0, 7.0]),
        st.integers(0, 60),
        numbers,
        numbers,
        st.integers(0, 9),
    ),
    st.integers(1, 5),
    min_size=1,
    max_size=8,
)


def grows_at(block: Block, size: int) -> float:
    """The factor at which a block of this size takes its next step."""
    return (block.stored + size * block.step) / block.share


def totals(blocks, sizes) -> tuple[int, int]:
    stored = sum(n * (b.stored + (sizes[b] - 1) * b.step) for b, n in blocks.items())
    return stored, sum(n * (b.trained + (sizes[b] - 1) * b.trained_step) for b, n in blocks.items())


@settings(deadline=None, max_examples=300)
@given(blocks_of_layers, st.integers(0, 20_000), st.none() | st.integers(0, 20_000))
def test_sizes_have_the_largest_factor_that_fits(blocks, stored, trained):
    sizes = fill_sizes(blocks, stored, trained)
    most = (stored, float("inf") if trained is None else trained)
    fits = all(total <= limit for total, limit in zip(totals(blocks, sizes), most, strict=True))
    if not fits:
        assert set(sizes.values()) == {1}
        return
    coming = min(grows_at(b, sizes[b]) for b in blocks)
    assert all(grows_at(b, sizes[b] - 1) < coming for b in blocks if sizes[b] > 1)  # one factor explains all sizes
    larger = {b: size + (grows_at(b, size) == coming) for b, size in sizes.items()}
    assert any(total > limit for total, limit in zip(totals(blocks, larger), most, strict=True))


@settings(deadline=None, max_examples=50)
@given(blocks_of_layers, st.integers(0, 20_000))
def test_the_order_of_blocks_is_without_effect(blocks, stored):
    assert fill_sizes(blocks, stored) == fill_sizes(dict(reversed(blocks.items())), stored)


MIXED = {
    "layers": {"groups": 2, "allocation": ["uniform", "increasing", "decreasing"]},
    "modules": {
        "lora": {"per": "model", "size": ["fill", 0], "roles": ["q,v", "in"], "depth": {"last": [1, 2, 3]}},
        "serial": {"size": [0, 1, "fill"], "roles": ["ffn", "attn,ffn"], "gate": ["none", "token"]},
        "prefix": {"per": "layer", "size": [0, "fill"], "reparameterisation": ["none", 3]},
    },
}


@pytest.mark.parametrize("max_trained", [None, 6_000, 20_000])
def test_filled_points_are_counted_as_they_are_built(max_trained):
    spec = SpaceSpec.model_validate({"version": 1, **MIXED}, strict=False)
    anatomy = bert_like(3, 16, 20_000)
    space = SearchSpace(spec, anatomy, 8_000, max_trained)
    rng = np.random.default_rng(0)
    for _ in range(150):
        point = space.sample(rng)
        count = count_parameters(point.architecture, anatomy)
        assert (point.stored, point.trained) == (count.stored, count.trained)
        assert count.stored <= 8_000
        assert max_trained is None or count.trained <= max_trained


def test_filled_points_of_s4_are_counted_as_they_are_built():
    anatomy = bert_like()
    space = SearchSpace(load_space("s4"), anatomy, 547_411)
    points = [space.sample(np.random.default_rng(seed)) for seed in range(60)]
    built = [count_parameters(point.architecture, anatomy).stored for point in points]
    assert space.count_many([dict(point.params) for point in points]) == built
