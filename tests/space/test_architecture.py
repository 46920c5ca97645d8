import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import ConfigError, UnknownSiteError
from autopeft.space.anatomy import Anatomy
from autopeft.space.architecture import Architecture, place
from autopeft.space.counting import count_parameters
from autopeft.space.layer_map import layer_map
from tests.anatomies import ANATOMIES, bert_like, gpt2_like

PLACEMENTS = [
    place("encoder", 0, "attn.q", "lora", 8),
    place("encoder", 0, "attn.v", "lora", 8, {"gate": "token"}),
    place("encoder", 1, "ffn", "parallel", 16, {"scale": 4}),
    place("encoder", 1, "attn", "prefix", 4),
    place("encoder", 2, "layer", "bitfit", 1),
    place("encoder", 2, "ffn", "serial", 3, {"scale": "learned", "activation": "gelu"}),
]


@given(st.lists(st.sampled_from(PLACEMENTS)), st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_matter(placements, shuffle: random.Random):
    shuffled = placements + placements[:2]
    shuffle.shuffle(shuffled)
    assert Architecture.of(shuffled) == Architecture.of(placements)
    assert Architecture.of(shuffled).id == Architecture.of(placements).id


@given(st.lists(st.sampled_from(PLACEMENTS)))
def test_an_architecture_survives_json(placements):
    architecture = Architecture.of(placements)
    assert Architecture.from_json(json.loads(json.dumps(architecture.to_json()))) == architecture


def test_defaults_are_left_out():
    assert place("encoder", 0, "attn.q", "lora", 8, {"alpha": 16, "gate": "none"}) == PLACEMENTS[0]


def test_alpha_is_without_effect_under_a_gate():
    assert place("encoder", 0, "attn.v", "lora", 8, {"gate": "token", "alpha": 3}) == PLACEMENTS[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"module": "lorra"}, "Did you mean 'lora'"),
        ({"role": "ffn"}, "role must be one of"),
        ({"size": 0}, "size must be >= 1"),
        ({"size": True}, "'size' must be a whole number"),
        ({"layer": -1}, "layer must be >= 0"),
        ({"options": {"alhpa": 3.0}}, "Did you mean 'alpha'"),
        ({"options": {"gate": "maybe"}}, "must be none or mean or token"),
        ({"options": {"alpha": float("nan")}}, "alpha must be"),
        ({"code": "x"}, "unknown key 'code'"),
    ],
)
def test_foreign_json_is_checked(change, message):
    row = PLACEMENTS[0].to_json() | change
    with pytest.raises(ConfigError, match=message):
        Architecture.from_json({"version": 1, "placements": [row]})


def test_two_modules_of_a_kind_at_one_site_are_refused():
    with pytest.raises(ConfigError, match="two lora"):
        Architecture.of([place("encoder", 0, "attn.q", "lora", 4), place("encoder", 0, "attn.q", "lora", 8)])


def lora_qv(anatomy: Anatomy, rank: int) -> Architecture:
    return Architecture.of(
        place(stack, i, role, "lora", rank) for stack, i, _ in anatomy.layers for role in ("attn.q", "attn.v")
    )


def test_lora_of_bert_base_has_the_published_count():
    # Hu et al. 2022 / GLUE practice: r=8 on q and v of BERT-base is 294,912 parameters, 0.27 % of the model.
    count = count_parameters(lora_qv(bert_like(), 8), bert_like(), head=1538)
    assert count.stored == count.trained == 294_912
    assert count.head == 1538
    assert round(100 * count.fraction_of(bert_like()), 2) == 0.27


def test_counts_add_up_by_layer_and_by_module():
    count = count_parameters(Architecture.of(PLACEMENTS), bert_like())
    assert sum(n for _, n in count.by_layer) == sum(n for _, n in count.by_module) == count.stored


def test_a_site_that_the_model_does_not_have_is_named():
    with pytest.raises(UnknownSiteError, match=r"lora at attn\.q"):
        count_parameters(Architecture.of([place("decoder", 0, "attn.q", "lora", 8)]), gpt2_like())


@pytest.mark.parametrize("anatomy", ANATOMIES.values(), ids=ANATOMIES)
def test_an_anatomy_survives_json(anatomy):
    again = Anatomy.from_json(json.loads(json.dumps(anatomy.to_json())))
    assert again == anatomy
    assert again.fingerprint == anatomy.fingerprint


def test_the_layer_map_reads_like_a_sentence():
    architecture = Architecture.of(
        [*PLACEMENTS[:1], place("encoder", 0, "attn.v", "lora", 8), *PLACEMENTS[2:4], PLACEMENTS[4]]
    )
    assert layer_map(architecture) == (
        "L00 | attention: lora q,v r=8",
        "L01 | attention: prefix l=4 | ffn: parallel b=16 s=4",
        "L02 | bitfit",
    )


def test_equal_layers_share_a_row_of_the_map():
    assert layer_map(lora_qv(bert_like(), 8)) == ("L00-L11 | attention: lora q,v r=8",)
    assert len(layer_map(lora_qv(bert_like(), 8), merge=False)) == 12
