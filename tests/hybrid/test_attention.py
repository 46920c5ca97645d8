"""Prefixes and gates: against an independent reference, with padding, causality and generation."""

import copy

import pytest
import torch
from transformers import AutoModel, AutoModelForSeq2SeqLM, DynamicCache, T5Config

from autopeft.errors import ModelError
from autopeft.hybrid import anatomy_of
from autopeft.hybrid.attention import CHILD
from autopeft.space.architecture import Architecture, place
from autopeft.space.modules import MODULES
from tests.hybrid.adapted import adapt, distance, everywhere, logits, mixed, shake
from tests.models import TINY_FAMILIES, tiny_batch, tiny_bert, tiny_gpt2, tiny_llama

every_family = pytest.mark.parametrize("family", TINY_FAMILIES)
every_implementation = pytest.mark.parametrize("implementation", ["sdpa", "eager"])


def with_prefix(family, implementation="sdpa", gate="none"):
    model = TINY_FAMILIES[family](attn_implementation=implementation)
    return shake(adapt(model, everywhere("prefix", anatomy_of(model.config), gate=gate)))


@every_implementation
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_a_prefix_is_a_cache_before_the_sequence_without_a_shift_of_positions(family, implementation):
    reference = TINY_FAMILIES[family](attn_implementation=implementation)
    adapted = with_prefix(family, implementation)
    ids, mask = tiny_batch().values()
    hosts = [module for name, module in adapted.named_modules() if name.endswith(CHILD)]
    cache = DynamicCache(
        [
            tuple(p["default"].detach().expand(2, -1, -1, -1) for p in (h.autopeft_prefix_k, h.autopeft_prefix_v))
            for h in hosts
        ]
    )
    wide = torch.cat([torch.ones(2, 3, dtype=mask.dtype), mask], dim=1)
    positions = torch.arange(6).expand(2, -1)
    expected = logits(reference, input_ids=ids, attention_mask=wide, position_ids=positions, past_key_values=cache)
    given = logits(adapted, input_ids=ids, attention_mask=mask)
    assert distance(given[mask.bool()], expected[mask.bool()]) <= 1e-6


@every_family
def test_eager_and_sdpa_agree(family):
    def outputs(implementation):
        torch.manual_seed(0)
        model = TINY_FAMILIES[family](attn_implementation=implementation)
        return logits(shake(adapt(model, mixed(anatomy_of(model.config)))))

    mask = tiny_batch()["attention_mask"].bool()
    assert distance(outputs("eager")[mask], outputs("sdpa")[mask]) <= 1e-5


@every_family
@every_implementation
def test_a_closed_token_gate_gives_the_base_models_attention_back(family, implementation):
    base = logits(TINY_FAMILIES[family](attn_implementation=implementation))
    adapted = with_prefix(family, implementation, gate="token")
    mask = tiny_batch()["attention_mask"].bool()
    assert distance(logits(adapted)[mask], base[mask]) > 1e-6
    for name, parameter in adapted.named_parameters():
        if "prefix_gate" in name:
            parameter.data.fill_(0.0 if name.endswith("weight") else -80.0)
    assert distance(logits(adapted)[mask], base[mask]) <= 1e-6


@pytest.mark.parametrize("gate", ["none", "token", "mean"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
@every_implementation
def test_padding_does_not_change_a_sentence(family, gate, implementation):
    model = TINY_FAMILIES[family](attn_implementation=implementation)
    anatomy = anatomy_of(model.config)
    architecture = mixed(anatomy, gate) if gate != "none" else everywhere("prefix", anatomy)
    adapted = shake(adapt(model, architecture))
    pad = model.config.pad_token_id
    ids, mask = tiny_batch(pad).values()
    padded = logits(adapted, input_ids=ids, attention_mask=mask)[1, :4]
    alone = logits(adapted, input_ids=ids[1:, :4], attention_mask=mask[1:, :4])[0]
    without_mask = logits(adapted, input_ids=ids[1:, :4])[0]
    assert distance(padded, alone) <= 1e-6
    assert distance(without_mask, alone) <= 1e-6


def test_a_mean_gate_is_the_mean_over_the_true_tokens():
    model = tiny_bert(layers=1)
    adapted = shake(adapt(model, Architecture.of([place("encoder", 0, "attn.q", "lora", 2, {"gate": "mean"})])))
    ids, mask = tiny_batch().values()
    query = model.encoder.layer[0].attention.self.query
    caught = []
    query.register_forward_hook(lambda module, args, output: caught.append((args[0], output.detach())))
    logits(adapted, input_ids=ids, attention_mask=mask)
    (x, y), A, B = caught[0], query.autopeft_lora_A["default"], query.autopeft_lora_B["default"]
    gate = torch.sigmoid(query.autopeft_lora_gate["default"](x)).squeeze(-1)  # (B, T)
    mean = torch.stack([gate[0].mean(), gate[1, :4].mean()])[:, None, None]
    assert distance(y, (query.base_layer(x) + mean * B(A(x))).detach()) <= 1e-6


def test_a_mean_gate_survives_checkpointing():
    def gradients(checkpointing):
        torch.manual_seed(0)
        model = tiny_bert(num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        adapted = shake(adapt(model, mixed(anatomy_of(model.config), "mean")))
        if checkpointing:
            adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        adapted.train()
        adapted(**tiny_batch(), labels=torch.tensor([0, 1])).loss.backward()
        return {key: p.grad for key, p in adapted.named_parameters() if p.requires_grad}

    expected, again = gradients(False), gradients(True)
    assert all(grad.abs().sum() > 0 for grad in expected.values())
    assert max(distance(again[key], expected[key]) for key in expected) <= 1e-6


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
def test_a_later_token_does_not_change_earlier_ones(build):
    model = build()
    adapted = shake(adapt(model, mixed(anatomy_of(model.config), "token")))
    ids = tiny_batch()["input_ids"][:1]
    changed = ids.clone()
    changed[0, -1] = 50
    one, other = logits(adapted, input_ids=ids), logits(adapted, input_ids=changed)
    assert distance(one[:, :-1], other[:, :-1]) <= 1e-7
    assert distance(one[:, -1], other[:, -1]) > 1e-3


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama])
@every_implementation
def test_generation_with_any_cache_is_generation_without(build, implementation):
    model = build(attn_implementation=implementation)
    adapted = shake(adapt(model, mixed(anatomy_of(model.config), "token"), task_type="CAUSAL_LM"))
    ids = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 5, 6, 7]])
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def generate(ids=ids, **more):
        return adapted.generate(input_ids=ids, attention_mask=(ids > 0).long(), **options, **more)

    expected = generate(use_cache=False)
    assert torch.equal(generate(), expected)
    assert torch.equal(generate(cache_implementation="static"), expected)
    assert torch.equal(generate(ids[:1, 2:])[0], expected[0, 2:])
    assert torch.equal(generate(num_beams=2), generate(num_beams=2, use_cache=False))


def test_an_encoder_decoder_holds_modules_in_both_stacks():
    torch.manual_seed(0)
    config = T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
    model = AutoModelForSeq2SeqLM.from_config(config).eval()
    anatomy = anatomy_of(config)
    everything = Architecture.of(p for kind in MODULES for p in everywhere(kind, anatomy).placements)
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "labels": torch.tensor([[7, 8, 9]])}
    with torch.no_grad():
        base = model(**inputs).logits
    adapted = shake(adapt(model, everything))
    adapted(**inputs).loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in adapted.parameters() if p.requires_grad)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ids = inputs["input_ids"]
    cached = adapted.generate(input_ids=ids, **options)
    assert torch.equal(cached, adapted.generate(input_ids=ids, use_cache=False, **options))
    with torch.no_grad():
        assert distance(adapted.unload()(**inputs).logits, base) == 0.0


def test_attention_weights_leave_the_prefix_out():
    adapted = with_prefix("bert", "eager")
    weights = adapted(**tiny_batch(), output_attentions=True).attentions
    assert [w.shape for w in weights] == [(2, 4, 6, 6)] * 2
    assert bool((weights[0].sum(-1) < 1).all())


def test_only_modules_with_a_prefix_get_another_attention():
    model = tiny_bert(num_labels=2)
    adapted = adapt(model, Architecture.of([place("encoder", 1, "attn", "prefix", 2)]))
    attention = [layer.attention.self for layer in model.bert.encoder.layer]
    assert attention[0].config is model.config
    assert attention[1].config._attn_implementation == "autopeft_prefix"
    assert model.config._attn_implementation == "sdpa"
    twin = copy.deepcopy(adapted)
    twin.unload()
    assert attention[1].config._attn_implementation == "autopeft_prefix"


def test_an_implementation_that_cannot_hold_a_prefix_is_refused():
    adapted = with_prefix("bert", gate="token")
    host = next(module for name, module in adapted.named_modules() if name.endswith(CHILD))
    host.base_config = copy.copy(host.base_config)
    object.__setattr__(host.base_config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ModelError, match="Load the model with attn_implementation='sdpa'"):
        logits(adapted)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_compiled_model_is_one_graph_with_the_same_output(family):
    model = TINY_FAMILIES[family]()
    adapted = shake(adapt(model, mixed(anatomy_of(model.config), "token")))
    expected = logits(adapted)
    torch._dynamo.reset()
    compiled = torch.compile(adapted, backend="eager", fullgraph=True)
    assert distance(logits(compiled), expected) <= 1e-6
    torch._dynamo.reset()


def test_the_prefix_needs_no_room_in_the_position_embeddings():
    model = tiny_bert()
    ids = torch.full((1, model.config.max_position_embeddings), 5)
    adapted = adapt(AutoModel.from_config(model.config), everywhere("prefix", anatomy_of(model.config)))
    assert logits(adapted, input_ids=ids).shape[1] == model.config.max_position_embeddings
