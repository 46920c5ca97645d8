"""The same numbers as HF PEFT's own methods: logits and gradients, with the weights copied over."""

import re

import pytest
import torch
from peft import IA3Config, LoKrConfig, LoraConfig, PromptTuningConfig, VeraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from autopeft.hybrid import find_sites
from autopeft.space.architecture import Architecture, place
from tests.hybrid.adapted import adapt, batch_of, classifier, distance, shake
from tests.models import CONFIGS

FAMILIES = ("bert", "roberta", "gpt2", "llama")
TOLERANCE = 1e-6


def lora_placements(sites, **options):
    """Rank and alpha differ from site to site."""
    linears = [(at, role) for at, found in sites.layers.items() for role in found.linears]
    return [
        place(*at, role, "lora", 1 + i % 4, {"alpha": 2.0 + i % 3, **options}) for i, (at, role) in enumerate(linears)
    ]


def name_of(placement, sites):
    return sites.layers[placement.stack, placement.layer].linears[placement.role]


def same(ours, theirs, family, rename):
    """Copies our adapter into theirs by `rename`, then compares logits and gradients."""
    pairs = {}
    with torch.no_grad():
        for key, p in ours.named_parameters():
            if p.requires_grad:
                pairs[key] = rename(key)
                target = theirs.get_parameter(pairs[key])
                target.copy_(p.view(target.shape))
    assert len(pairs) == sum(p.requires_grad for p in theirs.parameters())
    outputs = []
    for model in (ours, theirs):
        model.zero_grad()
        out = model(**batch_of(model), labels=torch.tensor([0, 2]))
        out.loss.backward()
        outputs.append(out.logits)
    assert distance(*outputs) <= TOLERANCE
    for mine, other in pairs.items():
        a, b = ours.get_parameter(mine).grad, theirs.get_parameter(other).grad
        assert distance(a.view(b.shape), b) <= TOLERANCE, mine


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", ["plain", "dora", "rslora"])
def test_lora_with_ranks_of_its_own_at_every_site_is_pefts(family, variant):
    options = {"variant": "dora"} if variant == "dora" else {"scaling": "rslora"} if variant == "rslora" else {}
    model = classifier(family)
    sites = find_sites(model)
    placements = lora_placements(sites, **options)
    names = {name_of(p, sites): p for p in placements}
    ours = shake(adapt(model, Architecture.of(placements)), std=0.1)
    config = LoraConfig(
        r=8,
        target_modules=list(names),
        rank_pattern={rf"^(.*\.)?{re.escape(name)}": p.size for name, p in names.items()},
        alpha_pattern={rf"^(.*\.)?{re.escape(name)}": p.option("alpha") for name, p in names.items()},
        use_dora=variant == "dora",
        use_rslora=variant == "rslora",
        fan_in_fan_out=family == "gpt2",
    )
    theirs = get_peft_model(classifier(family), config).eval()

    def rename(key):
        key = key.replace("autopeft_", "")
        return key.replace("lora_magnitude.default", "lora_magnitude_vector.default.weight")

    same(ours, theirs, family, rename)


@pytest.mark.parametrize("family", FAMILIES)
def test_ia3_is_pefts(family):
    model = classifier(family)
    sites = find_sites(model)
    roles = ("attn.qkv", "ffn.out") if family == "gpt2" else ("attn.k", "attn.v", "ffn.out")
    placements = [place(*at, role, "ia3", 1) for at in sites.layers for role in roles]
    ours = shake(adapt(model, Architecture.of(placements)))
    names = [name_of(p, sites) for p in placements]
    feedforward = [name_of(p, sites) for p in placements if p.role == "ffn.out"]
    config = IA3Config(target_modules=names, feedforward_modules=feedforward, fan_in_fan_out=family == "gpt2")
    theirs = get_peft_model(classifier(family), config).eval()
    same(ours, theirs, family, lambda key: key.replace("autopeft_ia3", "ia3_l"))


@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_vera_on_maps_of_one_shape_is_pefts(family):
    model = classifier(family)
    sites = find_sites(model)
    placements = [place(*at, role, "vera", 5, {"seed": 7}) for at in sites.layers for role in ("attn.q", "attn.o")]
    ours = shake(adapt(model, Architecture.of(placements)))
    config = VeraConfig(r=5, target_modules=[name_of(p, sites) for p in placements], projection_prng_key=7)
    theirs = get_peft_model(classifier(family), config).eval()
    same(ours, theirs, family, lambda key: key.replace("autopeft_vera_", "vera_lambda_"))


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("rank", [2, 8])
def test_kronecker_is_pefts_lokr(family, rank):
    model = classifier(family)
    sites = find_sites(model)
    roles = ("attn.q", "attn.v", "ffn.in", "ffn.out")
    placements = [place(*at, role, "kronecker", rank, {"alpha": 6}) for at in sites.layers for role in roles]
    ours = shake(adapt(model, Architecture.of(placements)), std=0.2)
    config = LoKrConfig(r=rank, alpha=6, target_modules=[name_of(p, sites) for p in placements])
    theirs = get_peft_model(classifier(family), config).eval()
    same(
        ours,
        theirs,
        family,
        lambda key: re.sub(r"autopeft_kronecker_(\d)([ab]?)", r"lokr_w\1_\2", key).replace("_.", "."),
    )


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "gpt_neox", "qwen3", "gemma"])
def test_a_prompt_of_a_causal_model_is_pefts(family):
    def build():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(CONFIGS[family]()).eval()

    ours = shake(adapt(build(), Architecture.of([place("decoder", 0, "embeddings", "prompt", 4)])))
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    theirs = get_peft_model(build(), config).eval()
    prompt = next(p for key, p in ours.named_parameters() if "autopeft_prompt" in key)
    with torch.no_grad():
        next(theirs.prompt_encoder.parameters()).copy_(prompt)
    ids = torch.tensor([[5, 6, 7, 8, 9], [0, 0, 5, 6, 7]])
    mask = torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])
    with torch.no_grad():
        a, b = ours(ids, attention_mask=mask).logits, theirs(ids, attention_mask=mask).logits[:, 4:]
    assert distance(a[mask.bool()], b[mask.bool()]) <= TOLERANCE
