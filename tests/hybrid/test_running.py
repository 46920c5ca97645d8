"""All kinds together in the ways in which models are run, and merging; for kinds one by one see `test_matrix`."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from autopeft.errors import ModelError
from autopeft.hybrid import anatomy_of
from autopeft.space.architecture import Architecture
from autopeft.space.modules import MODULES
from tests.hybrid.adapted import ARCHITECTURES, adapt, distance, everywhere, logits, mixed, shake
from tests.models import BIDIRECTIONAL, CAUSAL, CONFIGS, TINY_FAMILIES, tiny, tiny_batch, tiny_bert

every_name = pytest.mark.parametrize("name", ARCHITECTURES)


def causal(family):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()


def generations(model, **more):
    """Greedy generation from left-padded prompts."""
    ids = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 5, 6, 7]])
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **more}
    return model.generate(input_ids=ids, attention_mask=(ids > 0).long(), **options)


@pytest.mark.parametrize("family", CAUSAL)
def test_a_cache_does_not_change_what_a_mixture_generates(family):
    model = causal(family)
    architecture = mixed(anatomy_of(model.config))
    prompts = everywhere("prompt", anatomy_of(model.config))
    adapted = shake(adapt(model, Architecture.of([*architecture.placements, *prompts.placements])), std=0.2)
    expected = generations(adapted, use_cache=False)
    assert torch.equal(generations(adapted), expected)
    assert torch.equal(generations(adapted, num_beams=2), generations(adapted, num_beams=2, use_cache=False))
    ids = torch.tensor([[5, 6, 7]])
    alone = adapted.generate(input_ids=ids, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(alone[0], expected[0, 2:])


def test_an_encoder_decoder_generates_with_a_prompt():
    torch.manual_seed(0)
    for family in ("t5", "bart"):
        model = AutoModelForSeq2SeqLM.from_config(CONFIGS[family]()).eval()
        adapted = shake(adapt(model, everywhere("prompt", anatomy_of(model.config))))
        assert torch.equal(generations(adapted), generations(adapted, use_cache=False))


@pytest.mark.parametrize("family", BIDIRECTIONAL)
def test_padding_does_not_change_a_sentence_in_any_family(family):
    model = tiny(family)
    anatomy = anatomy_of(model.config)
    prompts = everywhere("prompt", anatomy)
    adapted = shake(adapt(model, Architecture.of([*mixed(anatomy, "mean").placements, *prompts.placements])), std=0.1)
    ids, mask = tiny_batch().values()
    padded = logits(adapted, input_ids=ids, attention_mask=mask)[1, :4]
    alone = logits(adapted, input_ids=ids[1:, :4], attention_mask=mask[1:, :4])[0]
    assert distance(padded, alone) <= 5e-6


@pytest.mark.parametrize("family", CAUSAL)
def test_left_padding_does_not_change_a_sentence(family):
    model = tiny(family)
    anatomy = anatomy_of(model.config)
    prompts = everywhere("prompt", anatomy)
    adapted = shake(adapt(model, Architecture.of([*mixed(anatomy).placements, *prompts.placements])), std=0.1)
    ids, mask = torch.tensor([[0, 0, 5, 6, 7]]), torch.tensor([[0, 0, 1, 1, 1]])
    positions = torch.tensor([[0, 0, 0, 1, 2]])
    padded = logits(adapted, input_ids=ids, attention_mask=mask, position_ids=positions)[0, 2:]
    alone = logits(adapted, input_ids=ids[:, 2:])[0]
    assert distance(padded, alone) <= 5e-6


@pytest.mark.slow
@every_name
def test_any_kind_alone_compiles_to_one_graph(name):
    model = tiny_bert(layers=1)
    adapted = shake(adapt(model, ARCHITECTURES[name](anatomy_of(model.config))), std=0.2)
    expected = logits(adapted)
    torch._dynamo.reset()
    assert distance(logits(torch.compile(adapted, backend="eager", fullgraph=True)), expected) <= 1e-6
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", [kind for kind in MODULES if kind not in ("lora", "bitfit")])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_kind_merges_or_is_refused_by_name(kind, family):
    model = TINY_FAMILIES[family]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    base = logits(model)
    adapted = shake(adapt(model, everywhere(kind, anatomy_of(model.config))), std=0.1)
    expected = logits(adapted)
    if kind not in ("vera", "kronecker", "ia3", "layernorm"):
        with pytest.raises(ModelError, match=f"cannot merge adapter default: {kind} at"):
            adapted.merge_and_unload()
        assert distance(logits(adapted), expected) == 0.0
        return
    adapted.merge_adapter(safe_merge=True)
    assert distance(logits(adapted), expected) <= 1e-6
    adapted.unmerge_adapter()
    assert distance(logits(adapted), expected) <= 1e-6
    merged = adapted.merge_and_unload()
    assert distance(logits(merged), expected) <= 1e-6
    assert distance(expected, base) > 1e-6
    assert before.keys() == merged.state_dict().keys()


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_merging_everything_that_merges_at_one_place(family):
    model = TINY_FAMILIES[family]()
    anatomy = anatomy_of(model.config)
    dora = everywhere("lora", anatomy, variant="dora", scaling="rslora")
    others = [everywhere(kind, anatomy) for kind in ("bitfit", "ia3", "vera", "kronecker", "layernorm")]
    everything = Architecture.of(p for architecture in (dora, *others) for p in architecture.placements)
    adapted = shake(adapt(model, everything), std=0.1)
    expected, before = logits(adapted), {key: value.clone() for key, value in model.state_dict().items()}
    scale = max(1.0, float(expected.abs().max()))
    adapted.merge_adapter()
    assert distance(logits(adapted), expected) <= 2e-6 * scale
    adapted.unmerge_adapter()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items() if "dense.base" in key)
    assert distance(logits(adapted), expected) <= 2e-6 * scale
    adapted.add_adapter("two", adapted.peft_config["default"])
    with pytest.raises(ModelError, match="dora together with another adapter"):
        adapted.merge_adapter(adapter_names=["default", "two"])
    assert distance(logits(adapted.merge_and_unload()), expected) <= 2e-6 * scale


def test_two_adapters_with_factors_merge_one_after_the_other():
    model = tiny_bert()
    anatomy = anatomy_of(model.config)
    parts = [everywhere(kind, anatomy) for kind in ("ia3", "lora", "bitfit", "layernorm")]
    adapted = adapt(model, Architecture.of(p for part in parts for p in part.placements))
    adapted.add_adapter("two", adapted.peft_config["default"])
    shake(adapted)
    adapted.base_model.set_adapter(["default", "two"])
    expected = logits(adapted)
    assert distance(logits(adapted.merge_and_unload()), expected) <= 2e-6 * max(1.0, float(expected.abs().max()))
