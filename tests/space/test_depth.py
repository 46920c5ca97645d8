"""Layers of one depth onto another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import ModelError
from autopeft.space.architecture import Architecture, place
from autopeft.space.depth import map_layers, source_layer


def stairs(n: int, stack: str = "encoder") -> Architecture:
    """Layer i holds a LoRA of rank i + 1."""
    return Architecture.of(place(stack, i, "attn.q", "lora", i + 1) for i in range(n))


def ranks(architecture: Architecture) -> list[int]:
    return [p.size for p in architecture.placements]


@given(st.integers(1, 48))
def test_the_same_depth_changes_nothing_and_says_nothing(n):
    assert map_layers(stairs(n), {"encoder": n}, {"encoder": n}) == (stairs(n), ())


@given(st.integers(1, 48), st.integers(1, 48))
def test_layers_keep_their_order_and_every_one_has_a_source(n_source, n_target):
    taken = [source_layer(j, n_source, n_target) for j in range(n_target)]
    assert taken == sorted(taken)
    assert taken[0] >= 0
    assert taken[-1] < n_source
    if n_target >= n_source:
        assert set(taken) == set(range(n_source))


def test_twice_as_deep_doubles_and_half_as_deep_leaves_out_with_a_word():
    deeper, notes = map_layers(stairs(2), {"encoder": 2}, {"encoder": 4})
    assert ranks(deeper) == [1, 1, 2, 2]
    assert "2 layers mapped proportionally onto 4: 0→0, 0→1, 1→2, 1→3" in notes[0]
    flatter, notes = map_layers(stairs(4), {"encoder": 4}, {"encoder": 2})
    assert ranks(flatter) == [2, 4]
    assert notes[1] == "encoder: the modules of layer 0, 2 are left out"


def test_the_only_stack_stands_for_the_only_stack():
    moved, notes = map_layers(stairs(2), {"encoder": 2}, {"decoder": 2})
    assert moved == stairs(2, "decoder")
    assert notes == ("stack encoder is taken as decoder",)


def test_a_stack_that_is_not_there_is_refused():
    with pytest.raises(ModelError, match="stack decoder, the model has encoder 2"):
        map_layers(stairs(2, "decoder"), {"encoder": 2, "decoder": 2}, {"encoder": 2})


def test_an_architecture_of_which_nothing_is_left_is_refused():
    first_only = Architecture.of([place("encoder", 0, "attn.q", "lora", 1)])
    with pytest.raises(ModelError, match="no module is left"):
        map_layers(first_only, {"encoder": 4}, {"encoder": 1})
