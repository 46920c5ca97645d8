"""What every kind of module, alone and mixed with the others, must do on every family of models."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict

import autopeft.hybrid.modules as hybrid_modules
from autopeft.hybrid import HybridConfig, anatomy_of, load_strict
from autopeft.hybrid.layers import kinds_of_parameters
from autopeft.space.counting import count_parameters
from autopeft.space.modules import GATES, MODULES
from tests.hybrid.adapted import (
    CASES,
    NOT_IDENTITY,
    adapt,
    architecture_for,
    batch_of,
    classifier,
    distance,
    everywhere,
    logits,
    mixed,
    shake,
)
from tests.models import TINY_FAMILIES

every_case = pytest.mark.parametrize(("name", "family"), CASES, ids=["-".join(case) for case in CASES])
GATED = [
    (kind, family, gate)
    for kind, family in CASES
    if kind in set(MODULES) - NOT_IDENTITY
    for gate in (GATES if "gate" in MODULES[kind].options else ("none",))
    if gate != "mean" or family in ("bert", "roberta")
]
every_family = pytest.mark.parametrize("family", TINY_FAMILIES)


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def test_every_kind_of_the_space_can_be_built_and_no_other():
    assert set(hybrid_modules.MODULES) == set(MODULES)


@pytest.mark.parametrize(("kind", "family", "gate"), GATED, ids=["-".join(case) for case in GATED])
def test_a_fresh_adapter_changes_nothing(kind, family, gate):
    model = classifier(family)
    base = logits(model)
    options = {} if gate == "none" else {"gate": gate}
    assert distance(logits(adapt(model, everywhere(kind, anatomy_of(model.config), **options))), base) <= 1e-6


@every_family
def test_a_fresh_mixture_without_prefix_changes_nothing(family):
    model = classifier(family)
    base = logits(model)
    assert distance(logits(adapt(model, mixed(anatomy_of(model.config), prefix=False))), base) <= 1e-6


@every_case
def test_counted_parameters_are_those_that_train_and_those_that_are_saved(name, family):
    model = classifier(family)
    anatomy, architecture = anatomy_of(model.config), architecture_for(name, family)
    adapted, count = adapt(model, architecture), count_parameters(architecture, anatomy)
    assert count.trained == sum(p.numel() for p in trainable(adapted).values())
    saved = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    assert count.stored == sum(tensor.numel() for tensor in saved.values())


@pytest.mark.parametrize("kind", MODULES)
def test_every_adapter_parameter_is_known_by_its_kind(kind):
    model = classifier("bert")
    adapted = adapt(model, everywhere(kind, anatomy_of(model.config)))
    assert {name for name, _ in trainable(adapted).items()} == {
        name for name, p in adapted.named_parameters() if p.requires_grad and kinds_of_parameters(adapted)[p] == kind
    }


@every_case
def test_only_adapter_parameters_train_and_all_of_them_do(name, family):
    model = shake(adapt(classifier(family), architecture_for(name, family))).train()
    assert all("autopeft_" in key for key in trainable(model))
    model(**batch_of(model), labels=torch.tensor([0, 2])).loss.backward()
    without = [key for key, p in trainable(model).items() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@every_case
def test_a_saved_adapter_gives_the_same_logits_under_any_name(name, family, tmp_path):
    model = shake(adapt(classifier(family), architecture_for(name, family), task_type="SEQ_CLS"))
    expected = logits(model)
    model.save_pretrained(tmp_path)
    for adapter_name in ("default", "another"):
        plain = PeftModel.from_pretrained(classifier(family), tmp_path, adapter_name=adapter_name).eval()
        strict = load_strict(classifier(family), tmp_path, adapter_name).eval()
        assert distance(logits(plain), expected) == 0.0
        assert distance(logits(strict), expected) == 0.0


@every_case
def test_a_disabled_adapter_leaves_the_base_model(name, family):
    model = classifier(family)
    base = logits(model)
    adapted = shake(adapt(model, architecture_for(name, family)))
    with adapted.disable_adapter():
        assert distance(logits(adapted), base) == 0.0
    assert distance(logits(adapted), base) > 1e-6


@every_case
def test_unloading_gives_the_base_model_back(name, family):
    model = classifier(family)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modules = [(key, type(module)) for key, module in model.named_modules()]
    configs = [id(module.config) for module in model.modules() if hasattr(module, "config")]
    base = logits(model)

    unloaded = shake(adapt(model, architecture_for(name, family), task_type="SEQ_CLS")).unload()

    assert unloaded is model
    assert [(key, type(module)) for key, module in model.named_modules()] == modules
    assert [id(module.config) for module in model.modules() if hasattr(module, "config")] == configs
    assert {key: torch.equal(value, before[key]) for key, value in model.state_dict().items()} == dict.fromkeys(
        before, True
    )
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert not hasattr(model, "peft_config")
    assert distance(logits(model), base) == 0.0


@every_case
def test_a_copy_is_the_same_and_independent(name, family):
    model = shake(adapt(classifier(family), architecture_for(name, family)))
    model(**batch_of(model))
    expected = logits(model)
    twin = copy.deepcopy(model)
    assert distance(logits(twin), expected) == 0.0
    shake(twin, seed=8)
    assert distance(logits(twin), expected) > 1e-6
    assert distance(logits(model), expected) == 0.0


@every_case
def test_gradient_checkpointing_gives_the_same_gradients(name, family):
    architecture = architecture_for(name, family)

    def gradients(**checkpointing):
        torch.manual_seed(0)
        model = shake(adapt(classifier(family, **no_dropout(family)), architecture))
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
        model.train()
        model(**batch_of(model), labels=torch.tensor([0, 2])).loss.backward()
        return {key: p.grad for key, p in trainable(model).items()}

    expected = gradients()
    for reentrant in (True, False):
        again = gradients(use_reentrant=reentrant)
        assert again.keys() == expected.keys()
        assert max(distance(again[key], expected[key]) for key in expected) <= 1e-6


def no_dropout(family):
    names = {
        "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
        "llama": ("attention_dropout",),
    }.get(family, ("hidden_dropout_prob", "attention_probs_dropout_prob"))
    return dict.fromkeys(names, 0.0)


@every_case
def test_saved_keys_hold_neither_adapter_name_nor_base_weights(name, family):
    model = adapt(classifier(family), architecture_for(name, family))
    keys = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert keys
    assert all(key.count("autopeft_") == 1 and "default" not in key and "base_layer" not in key for key in keys)


def test_dropout_acts_on_adapters_in_training_only():
    model = classifier("bert", **no_dropout("bert"))
    adapted = shake(adapt(model, everywhere("serial", anatomy_of(model.config)), dropout=0.5))
    assert distance(logits(adapted), logits(adapted)) == 0.0
    adapted.train()
    assert distance(logits(adapted), logits(adapted)) > 0.0


def test_a_half_precision_base_keeps_its_precision():
    model = classifier("llama").to(torch.bfloat16)
    adapted = shake(adapt(model, mixed(anatomy_of(model.config))))
    assert {p.dtype for p in trainable(adapted).values()} == {torch.float32}
    assert logits(adapted).dtype == torch.bfloat16


def test_an_empty_architecture_trains_the_head_alone():
    model = adapt(classifier("bert"), architecture_for("lora", "bert").__class__(), task_type="SEQ_CLS")
    assert all("modules_to_save" in key for key in trainable(model))
    assert isinstance(model.peft_config["default"], HybridConfig)
