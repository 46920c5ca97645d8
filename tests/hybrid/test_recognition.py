"""Sites by name agree with what a model does; a probe finds what has no effect; users can name sites themselves."""

import re

import pytest
import torch
from torch import nn
from transformers import GPTJConfig, GPTNeoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaDecoderLayer, LlamaModel

from autopeft.errors import ConfigError, ModelError, UnknownSiteError
from autopeft.hybrid import HybridConfig, SiteMap, anatomy_of, find_sites, load_site_map, read_anatomy
from autopeft.hybrid.probe import TESTED, usable_sites, without_effect
from autopeft.hybrid.trace import trace_roles
from autopeft.space.architecture import Architecture, place
from tests.hybrid.adapted import adapt, distance, everywhere, shake
from tests.models import CONFIGS, tiny

GPT_NEO = GPTNeoConfig(vocab_size=50, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global"], 2]])
GPTJ = GPTJConfig(vocab_size=50, n_embd=32, n_layer=2, n_head=4, rotary_dim=4)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_functional_trace_agrees_with_the_names(family):
    model = tiny(family)
    sites = find_sites(model)
    before = [getattr(module, "config", None) for module in model.modules()]
    traced = trace_roles(model, {position: found.name for position, found in sites.layers.items()})
    for position, found in sites.layers.items():
        named = {role: name.removeprefix(f"{found.name}.") for role, name in found.linears.items()}
        # DeBERTa and MPNet compute attention on their own, so nothing is seen there.
        assert traced[position] == ({} if family in ("deberta_v2", "mpnet") else named)
    assert [getattr(module, "config", None) for module in model.modules()] == before
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("family", CONFIGS)
def test_every_module_has_an_effect_on_the_families_that_are_not_probed(family):
    model = tiny(family)
    assert model.config.model_type in TESTED
    assert without_effect(model) == ()


@pytest.mark.parametrize("config", [GPT_NEO, GPTJ], ids=["gpt_neo", "gptj"])
def test_a_prefix_without_effect_is_found_and_left_out_with_a_message(config):
    claimed = SiteMap(prefix=True)
    anatomy = anatomy_of(config, claimed)
    assert not any(layer.prefix for _, _, layer in anatomy.layers)
    assert any("prefix at attn has no effect in 2 layers; left out" in note for note in anatomy.notes)
    assert anatomy_of(config).layers[0][2].roles == anatomy.layers[0][2].roles

    from transformers import AutoModel

    model = AutoModel.from_config(config)
    with pytest.raises(UnknownSiteError, match="no place for prefix at attn"):
        adapt(model, Architecture.of([place("decoder", 0, "attn", "prefix", 2)]), site_map=claimed)


class OddMLP(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.expand, self.shrink = nn.Linear(hidden, 2 * hidden), nn.Linear(2 * hidden, hidden)
        self.unused = nn.Linear(hidden, hidden)

    def forward(self, x):
        return self.shrink(torch.relu(self.expand(x)))


class OddLayer(LlamaDecoderLayer):
    """A Llama layer whose linear maps have names of their own."""

    def __init__(self, config, index):
        super().__init__(config, index)
        self.mlp = OddMLP(config.hidden_size)


class OddConfig(LlamaConfig):
    model_type = "odd"


class OddModel(LlamaModel):
    config_class = OddConfig

    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.ModuleList([OddLayer(config, i) for i in range(config.num_hidden_layers)])


def odd() -> PreTrainedModel:
    torch.manual_seed(0)
    config: PretrainedConfig = OddConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, pad_token_id=0
    )
    return OddModel(config).eval()


ODD_MAP = """
version: 1
stacks: {decoder: layers}
roles: {attn.q: self_attn.q_proj, attn.k: self_attn.k_proj, attn.v: "*.v_proj", attn.o: self_attn.o_proj,
        ffn.in: mlp.expand, ffn.out: mlp.shrink}
"""


def test_a_site_map_names_what_is_not_recognised(tmp_path):
    file = tmp_path / "odd.yaml"
    file.write_text(ODD_MAP)
    site_map = load_site_map(file)
    model = odd()
    assert "ffn.in" not in find_sites(model).layers["decoder", 0].layer.roles
    anatomy = read_anatomy(model, site_map)
    assert anatomy.layers[0][2].roles == ("attn.q", "attn.k", "attn.v", "attn.o", "ffn.in", "ffn.out")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        base = model(ids)[0]
        adapted = shake(adapt(model, everywhere("parallel", anatomy), site_map=site_map))
        expected = adapted(ids)[0]
    assert distance(expected, base) > 1e-6

    from peft import PeftModel

    adapted.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        assert distance(PeftModel.from_pretrained(odd(), tmp_path / "adapter").eval()(ids)[0], expected) == 0.0
    assert HybridConfig.from_pretrained(tmp_path / "adapter").parsed_site_map() == site_map


def test_a_site_map_with_an_unknown_role_is_refused(tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text("version: 1\nroles: {attn.qq: a, ffn.in: b}\n")
    with pytest.raises(ConfigError, match=r"unknown role 'attn.qq'. Did you mean 'attn.q'"):
        load_site_map(file)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"roles": {"attn.q": "wq"}}, "for attn.q: wq. The first layer has: attention.self.query, "),
        ({"roles": {"attn.q": "*"}}, "not one linear map of a layer for attn.q: *"),
        ({"stacks": {"decoder": "blocks"}}, "no layers under decoder: blocks. Lists of modules are: encoder.layer"),
        ({"attention": "mixer"}, "attention: no 'mixer' in a layer. The first layer has: attention, attention.self"),
    ],
)
def test_a_site_map_of_another_model_is_refused_with_what_there_is(given, told):
    with pytest.raises(ModelError, match=re.escape(told)):
        anatomy_of(tiny("bert").config, SiteMap(**given))


def test_a_linear_map_that_is_never_called_is_left_out():
    site_map = SiteMap(
        stacks={"decoder": "layers"},
        roles={"attn.q": "self_attn.q_proj", "attn.o": "self_attn.o_proj", "ffn.gate": "mlp.unused"},
    )
    from autopeft.hybrid import probe

    dead = probe.without_effect(odd(), site_map)
    assert {(p.module, p.role) for p in dead} >= {("lora", "ffn.gate"), ("vera", "ffn.gate")}
    left = probe._without(find_sites(odd(), site_map), dead)
    assert "ffn.gate" not in left.layers["decoder", 0].layer.roles


def test_names_that_tell_nothing_are_replaced_by_a_trace(monkeypatch):
    import autopeft.hybrid.sites as sites_module

    monkeypatch.setattr(sites_module, "linears_by_role", lambda linears: {})
    for family in ("llama", "gpt2"):
        model = tiny(family)
        found = find_sites(model)
        monkeypatch.undo()
        assert found == find_sites(model)
        monkeypatch.setattr(sites_module, "linears_by_role", lambda linears: {})


def test_tested_families_are_not_probed(monkeypatch):
    monkeypatch.setattr("autopeft.hybrid.probe._probe", lambda *_: pytest.fail("was probed"))
    usable_sites(tiny("bert"))
