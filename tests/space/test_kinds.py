"""Spaces and texts with every kind of module and every option."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.space.anatomy import Anatomy, Stack
from autopeft.space.architecture import Architecture, place
from autopeft.space.counting import count_parameters
from autopeft.space.formulas import factors, phm_dimension
from autopeft.space.layer_map import layer_map
from autopeft.space.modules import MODULES
from autopeft.space.search_space import SearchSpace
from autopeft.space.spec import SpaceSpec
from tests.anatomies import bert_like, gpt2_like, llama_like

MODULE_SPECS = {
    "lora": {
        "size": (0, 2, 8),
        "roles": ("q,v", "all"),
        "alpha": (8.0, 16.0),
        "variant": ("plain", "dora", "fa"),
        "scaling": ("lora", "rslora"),
        "gate": ("none", "token", "scalar"),
    },
    "prefix": {"size": (0, 4), "reparameterisation": ("none", 16)},
    "ia3": {"size": (0, 1), "roles": ("k,v", "k,v,out")},
    "layernorm": {"size": (0, 1), "trains": ("weights", "all")},
    "vera": {"size": (0, 16), "roles": ("q,v",), "d_initial": (0.1, 1.0)},
    "kronecker": {"size": (0, 2), "roles": ("o",), "alpha": 4.0},
    "compacter": {"size": (0, 4, 8), "roles": ("ffn",), "gate": ("none", "mean")},
    "multihead": {"size": (0, 2, 4), "scale": (1.0, "learned")},
    "prompt": {"size": (0, 4, 8), "per": "model"},
}


def with_all_facts(anatomy: Anatomy) -> Anatomy:
    layers = [
        replace(layer, norm_weights=(layer.hidden,) * 2, n_heads=4, embeddings=0 if i else layer.hidden)
        for i, layer in enumerate(anatomy.stacks[0].layers)
    ]
    return replace(anatomy, stacks=(Stack(anatomy.stacks[0].name, tuple(layers)),))


ANATOMIES = [with_all_facts(a) for a in (bert_like(4, 64, 1_000_000), llama_like(), gpt2_like())]


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(ANATOMIES), st.integers(0, 2**32 - 1))
def test_architectures_of_all_kinds_survive_encoding(anatomy, seed):
    spec = SpaceSpec.model_validate({"version": 1, "layers": {"groups": 2}, "modules": MODULE_SPECS})
    space = SearchSpace(spec, anatomy, 200_000)
    candidate = space.sample(np.random.default_rng(seed))
    assert space.decode(space.encode(candidate.architecture, dict(candidate.training))) == candidate.architecture
    assert Architecture.from_json(candidate.architecture.to_json()) == candidate.architecture
    assert layer_map(candidate.architecture)
    assert candidate.stored == count_parameters(candidate.architecture, anatomy).stored


def test_every_kind_is_in_that_space():
    assert set(MODULE_SPECS) | {"serial", "parallel", "bitfit"} == set(MODULES)


@pytest.mark.parametrize("kind", ["kronecker", "compacter"])
def test_what_grows_in_leaps_cannot_fill_a_budget(kind):
    with pytest.raises(ValueError, match=f"{kind} cannot fill a budget"):
        SpaceSpec.model_validate({"version": 1, "modules": {kind: {"size": "fill"}}})


def test_an_architecture_of_the_first_version_keeps_its_id():
    rows = [
        ("attn.q", "lora", 8, {"alpha": 8.0}),
        ("attn.v", "lora", 4, {"gate": "token"}),
        ("ffn", "parallel", 16, {"scale": 4.0}),
        ("attn", "prefix", 4, {}),
        ("layer", "bitfit", 1, {}),
    ]
    assert Architecture.of(place("encoder", 0, *row) for row in rows).id == "311fcf31a9fb"
    assert bert_like().fingerprint == "4b0b1f6d48a4"


def test_options_that_a_gate_makes_idle_leave_no_trace():
    gated = place("encoder", 0, "attn.q", "lora", 4, {"gate": "scalar", "alpha": 3, "scaling": "rslora"})
    assert gated.options == (("gate", "scalar"),)


def test_stored_and_trained_parameters_differ_where_something_is_dropped_or_frozen():
    anatomy = with_all_facts(bert_like())
    prefix = Architecture.of([place("encoder", 0, "attn", "prefix", 10, {"reparameterisation": 512})])
    count = count_parameters(prefix, anatomy)
    assert count.stored == 2 * 10 * 768
    assert count.trained == 10 * 768 + 768 * 512 + 512 + 512 * 1536 + 1536
    frozen = Architecture.of([place("encoder", 0, "attn.q", "lora", 8, {"variant": "fa"})])
    count = count_parameters(frozen, anatomy)
    assert (count.stored, count.trained) == (8 * 1536, 8 * 768)


def test_widths_are_split_as_evenly_as_they_can_be():
    assert [factors(n) for n in (256, 128, 127, 768)] == [(16, 16), (8, 16), (1, 127), (24, 32)]
    assert [phm_dimension(768, b) for b in (8, 6, 3, 1)] == [4, 3, 3, 1]


def test_the_layer_map_tells_the_new_options():
    rows = [
        ("embeddings", "prompt", 8, {}),
        ("attn.q", "lora", 8, {"variant": "dora", "scaling": "rslora"}),
        ("attn.k", "ia3", 1, {}),
        ("attn.v", "ia3", 1, {}),
        ("attn", "prefix", 4, {"reparameterisation": 512}),
        ("layer", "layernorm", 1, {"trains": "all"}),
    ]
    assert layer_map(Architecture.of(place("encoder", 0, *row) for row in rows)) == (
        "L00 | embeddings: prompt l=8 | attention: lora q r=8 rslora dora + prefix l=4 mlp=512 + ia3 k,v"
        " | layernorm trains=all",
    )
