"""What is found in models of many families, and that heads and adapters do not change it."""

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AutoModel,
    BartConfig,
    BloomConfig,
    DistilBertConfig,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    MixtralConfig,
    ModernBertConfig,
    MPNetConfig,
    Phi3Config,
    Qwen3Config,
    T5Config,
    ViTConfig,
)

from autopeft.errors import ModelError, UnknownSiteError
from autopeft.hybrid import anatomy_of, find_sites, read_anatomy
from autopeft.space.architecture import Architecture, place
from autopeft.space.counting import count_parameters
from autopeft.space.modules import MODULES
from tests.hybrid.adapted import adapt, anatomy_of_family, classifier, distance, everywhere, logits, mixed, shake
from tests.models import TINY_FAMILIES, tiny_batch

SMALL = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_model_its_classifier_and_its_config_have_one_anatomy(family):
    plain, with_head = TINY_FAMILIES[family](), classifier(family)
    assert read_anatomy(plain) == read_anatomy(with_head) == anatomy_of(plain.config)
    assert read_anatomy(with_head).fingerprint == anatomy_of(with_head.config).fingerprint


@pytest.mark.parametrize("family", TINY_FAMILIES)
@pytest.mark.parametrize("adapter", ["default", "query", "c_fc"])
def test_adapters_do_not_change_what_is_found(family, adapter):
    model = classifier(family)
    sites, anatomy = find_sites(model), read_anatomy(model)
    adapted = adapt(model, mixed(anatomy))
    adapted.add_adapter(adapter + "_", adapted.peft_config["default"])
    adapted.add_adapter("q", adapted.peft_config["default"])
    assert find_sites(model) == sites
    assert read_anatomy(adapted) == anatomy


@pytest.mark.parametrize(
    ("family", "stack", "roles"),
    [
        ("bert", "encoder", ("attn.q", "attn.k", "attn.v", "attn.o", "ffn.in", "ffn.out")),
        ("gpt2", "decoder", ("attn.qkv", "attn.o", "ffn.in", "ffn.out")),
        ("llama", "decoder", ("attn.q", "attn.k", "attn.v", "attn.o", "ffn.in", "ffn.gate", "ffn.out")),
    ],
)
def test_stacks_and_roles(family, stack, roles):
    anatomy = anatomy_of_family(family, layers=3)
    assert [s.name for s in anatomy.stacks] == [stack]
    assert anatomy.n_layers == 3
    assert all(layer.roles == roles and layer.hidden == 32 and layer.prefix for _, _, layer in anatomy.layers)


def test_grouped_queries_have_fewer_key_value_heads():
    layer = anatomy_of_family("llama").layers[0][2]
    assert (layer.n_kv_heads, layer.head_dim) == (2, 8)


ZOO = {
    "distilbert": (DistilBertConfig(vocab_size=50, dim=32, n_layers=2, n_heads=4, hidden_dim=64), "encoder", True),
    "modernbert": (ModernBertConfig(**SMALL, pad_token_id=0), "encoder", True),
    "albert": (AlbertConfig(**SMALL, embedding_size=16), "encoder", True),
    "mpnet": (MPNetConfig(**SMALL), "encoder", False),
    "vit": (
        ViTConfig(**{k: v for k, v in SMALL.items() if k != "vocab_size"}, image_size=16, patch_size=4),
        "encoder",
        True,
    ),
    "qwen3": (Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8), "decoder", True),
    "phi3": (Phi3Config(**SMALL, num_key_value_heads=2, pad_token_id=0), "decoder", True),
    "gpt_neox": (GPTNeoXConfig(**SMALL), "decoder", True),
    "gpt_neo": (
        GPTNeoConfig(vocab_size=50, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global"], 2]]),
        "decoder",
        False,
    ),
    "gptj": (GPTJConfig(vocab_size=50, n_embd=32, n_layer=2, n_head=4, rotary_dim=4), "decoder", False),
    "bloom": (BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4), "decoder", False),
}


@pytest.mark.parametrize("name", ZOO)
def test_models_of_many_families_are_read(name):
    config, stack, prefix = ZOO[name]
    anatomy = anatomy_of(config)
    assert [s.name for s in anatomy.stacks] == [stack]
    for _, _, layer in anatomy.layers:
        assert layer.hidden == 32
        assert {"attn.o", "ffn.in", "ffn.out"} <= set(layer.roles)
        assert layer.prefix is prefix  # where attention is computed without the registry, a prefix has no effect
        if prefix:
            assert layer.n_kv_heads * layer.head_dim in {16, 32}


@pytest.mark.parametrize("name", ZOO)
def test_models_of_many_families_are_adapted(name):
    torch.manual_seed(0)
    config = ZOO[name][0]
    model = AutoModel.from_config(config).eval()
    inputs = (
        {"pixel_values": torch.ones(1, 3, 16, 16)} if name == "vit" else {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    )
    base = logits(model, **inputs)
    anatomy = anatomy_of(config)
    options = {kind: {"activation": "gelu"} if "activation" in MODULES[kind].options else {} for kind in MODULES}
    architecture = Architecture.of(p for kind in MODULES for p in everywhere(kind, anatomy, **options[kind]).placements)
    adapted = shake(adapt(model, architecture))
    parameters = {key: p for key, p in adapted.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in parameters.values()) == count_parameters(architecture, anatomy).stored
    (adapted(**inputs)[0] ** 3).sum().backward()  # the plain sum of a norm's output has no gradient
    assert [key for key, p in parameters.items() if p.grad is None or not (p.grad != 0).any()] == []
    assert distance(logits(adapted, **inputs), base) > 1e-6
    assert distance(logits(adapted.unload(), **inputs), base) == 0.0


@pytest.mark.parametrize("name", ["distilbert", "modernbert", "albert", "mpnet", "t5"])
def test_mean_gates_find_the_mask_in_every_family(name):
    torch.manual_seed(0)
    config = (
        ZOO[name][0] if name in ZOO else T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    )
    model = AutoModel.from_config(config).eval()
    model = model.encoder if name == "t5" else model
    rows = [("attn.o", "lora"), ("ffn", "serial"), ("attn", "serial")]
    architecture = Architecture.of(
        place(*at, *row, 2, {"gate": "mean"}) for at in find_sites(model).layers for row in rows
    )
    adapted = shake(adapt(model, architecture))
    ids, mask = tiny_batch().values()
    padded = logits(adapted, input_ids=ids, attention_mask=mask)[1, :4]
    alone = logits(adapted, input_ids=ids[1:, :4], attention_mask=mask[1:, :4])[0]
    assert distance(padded, alone) <= 2e-6


def test_an_encoder_decoder_has_two_stacks_and_cross_attention_is_left_out():
    configs = [
        T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
        BartConfig(vocab_size=50, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                   decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, pad_token_id=0),
    ]  # fmt: skip
    for config in configs:
        anatomy = anatomy_of(config)
        assert [(s.name, len(s.layers)) for s in anatomy.stacks] == [("encoder", 2), ("decoder", 2)]
        names = [name for sites in find_sites_of(config).layers.values() for name in sites.linears.values()]
        assert not any("EncDec" in name or "encoder_attn" in name for name in names)


def find_sites_of(config):
    with torch.device("meta"):
        return find_sites(AutoModel.from_config(config))


def test_fused_experts_leave_no_ffn_site():
    anatomy = anatomy_of(MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=2))
    assert anatomy.layers[0][2].roles == ("attn.q", "attn.k", "attn.v", "attn.o")


def test_reading_a_config_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    anatomy_of(ZOO["qwen3"][0])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_model_without_layers_is_refused():
    with pytest.raises(ModelError, match="no stack of transformer layers"):
        find_sites(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ModelError, match="not a transformers model"):
        read_anatomy(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("encoder", 5, "attn.q", "lora", 2), "no encoder layer 5 for lora. Layers: encoder 0-1"),
        (("decoder", 0, "attn.q", "lora", 2), "no decoder layer 0"),
        (("encoder", 1, "attn.qkv", "lora", 2), "encoder layer 1 has no place for lora at attn.qkv"),
        (("encoder", 1, "ffn.gate", "lora", 2), "It can stand at: attn.q, attn.k"),
    ],
)
def test_a_placement_without_a_site_is_named_and_the_model_stays_as_it_was(row, message):
    model = classifier("bert")
    before = [type(m) for m in model.modules()]
    with pytest.raises(UnknownSiteError, match=message):
        adapt(model, Architecture.of([place("encoder", 0, "attn.q", "lora", 2), place(*row)]))
    assert [type(m) for m in model.modules()] == before
