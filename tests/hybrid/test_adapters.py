"""Several adapters in one model, merging, and the trials that share one base model."""

import copy
import gc
import time
import weakref

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

from autopeft.errors import ModelError
from autopeft.hybrid import HybridConfig, anatomy_of
from autopeft.space.architecture import Architecture, place
from tests.hybrid.adapted import adapt, batch_of, classifier, distance, everywhere, logits, mixed, shake
from tests.models import TINY_FAMILIES

every_family = pytest.mark.parametrize("family", TINY_FAMILIES)


def two_adapters(family):
    """A model with the mixture as `default`, active, and with other modules, partly at other places, as `two`."""
    model = classifier(family)
    anatomy = anatomy_of(model.config)
    stack = anatomy.stacks[0].name
    rows = [(0, "attn", "prefix", 2), (0, "ffn", "parallel", 2), (1, "attn", "serial", 2), (1, "ffn.in", "lora", 2)]
    adapted = adapt(model, mixed(anatomy))
    adapted.add_adapter("two", HybridConfig(architecture=Architecture.of(place(stack, *row) for row in rows)))
    return shake(adapted).eval()


def adapters_that_train(model):
    return {
        name for name in model.peft_config for key, p in model.named_parameters() if p.requires_grad and name in key
    }


@every_family
def test_two_adapters_are_switched_and_added_up(family):
    model = two_adapters(family)
    first = logits(model)
    assert adapters_that_train(model) == {"default"}
    model.set_adapter("two")
    second = logits(model)
    assert adapters_that_train(model) == {"two"}
    model.base_model.set_adapter(["default", "two"])
    both = logits(model)
    assert adapters_that_train(model) == {"default", "two"}
    assert min(distance(first, second), distance(first, both), distance(second, both)) > 1e-6
    model.set_adapter("default")
    assert distance(logits(model), first) == 0.0


def test_two_active_lora_adapters_add_their_updates():
    model = classifier("llama")
    anatomy = anatomy_of(model.config)
    adapted = adapt(model, everywhere("lora", anatomy))
    adapted.add_adapter("two", adapted.peft_config["default"])
    shake(adapted)
    adapted.base_model.set_adapter(["default", "two"])
    expected = logits(adapted)
    merged = adapted.merge_and_unload()
    assert distance(logits(merged), expected) <= 1e-6


@every_family
def test_a_deleted_adapter_leaves_nothing_and_the_other_works(family):
    model = two_adapters(family)
    first = logits(model)
    model.set_adapter("two")
    second = logits(model)
    model.set_adapter("default")
    model.delete_adapter("two")
    assert not any(".two" in key for key in model.state_dict())
    assert distance(logits(model), first) == 0.0

    model = two_adapters(family)
    model.delete_adapter("default")
    assert model.active_adapters == ["two"]
    assert distance(logits(model), second) == 0.0


@every_family
def test_two_adapters_are_saved_apart(family, tmp_path):
    model = two_adapters(family)
    model.save_pretrained(tmp_path)
    loaded = adapt(classifier(family), Architecture())
    for name, folder in (("a", tmp_path), ("b", tmp_path / "two")):
        loaded.load_adapter(folder, name)
    loaded.eval()
    for name, saved in (("a", "default"), ("b", "two")):
        model.set_adapter(saved)
        loaded.set_adapter(name)
        assert distance(logits(loaded), logits(model)) == 0.0


@every_family
def test_merging_lora_and_bitfit_keeps_the_logits(family):
    model = classifier(family)
    anatomy = anatomy_of(model.config)
    lora, bitfit = everywhere("lora", anatomy), everywhere("bitfit", anatomy)
    base = logits(model)
    adapted = shake(adapt(model, Architecture.of([*lora.placements, *bitfit.placements])), std=0.1)
    expected = logits(adapted)
    adapted.merge_adapter(safe_merge=True)
    assert distance(logits(adapted), expected) <= 1e-6
    adapted.unmerge_adapter()
    assert distance(logits(adapted), expected) <= 1e-6
    adapted.merge_adapter()
    with adapted.disable_adapter():
        assert distance(logits(adapted), base) <= 1e-6
    merged = adapted.merge_and_unload()
    assert distance(logits(merged), expected) <= 1e-6
    assert not any("autopeft" in key for key in merged.state_dict())


@pytest.mark.parametrize("kind", ["serial", "parallel", "prefix", "gated lora"])
def test_what_cannot_be_merged_is_refused_by_name_and_nothing_changes(kind):
    model = classifier("bert")
    anatomy = anatomy_of(model.config)
    other = everywhere("lora", anatomy, gate="token") if kind == "gated lora" else everywhere(kind, anatomy)
    adapted = shake(adapt(model, Architecture.of([*other.placements, place("encoder", 0, "layer", "bitfit", 1)])))
    before = logits(adapted)
    for merge in (adapted.merge_adapter, adapted.merge_and_unload):
        with pytest.raises(ModelError, match=f"cannot merge adapter default: {kind} at"):
            merge()
    assert distance(logits(adapted), before) == 0.0


def test_nan_is_not_merged_when_safety_is_asked_for():
    model = classifier("bert")
    adapted = shake(adapt(model, everywhere("lora", anatomy_of(model.config))))
    next(p for key, p in adapted.named_parameters() if "lora_B" in key).data.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN or infinity"):
        adapted.merge_adapter(safe_merge=True)


@pytest.mark.parametrize(("family", "targets"), [("bert", ["query", "value"]), ("gpt2", ["c_attn"])])
def test_a_lora_architecture_is_the_lora_of_peft(family, targets):
    model, theirs = classifier(family), classifier(family)
    anatomy = anatomy_of(model.config)
    roles = ("attn.q", "attn.v") if family == "bert" else ("attn.qkv",)
    ours = adapt(
        model,
        Architecture.of(place(s, i, role, "lora", 4, {"alpha": 8}) for s, i, _ in anatomy.layers for role in roles),
    )
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, fan_in_fan_out=family == "gpt2")
    theirs = get_peft_model(theirs, config).eval()
    shake(ours)
    with torch.no_grad():
        for key, p in ours.named_parameters():
            if "autopeft_" in key:
                theirs.get_parameter(key.replace("autopeft_", "")).copy_(p)
    assert distance(logits(ours), logits(theirs)) <= 1e-6


def test_unloading_does_not_leave_the_trained_head_behind():
    base = classifier("bert")
    head = base.classifier
    model = adapt(base, mixed(anatomy_of(base.config)), task_type="SEQ_CLS")
    base.classifier.modules_to_save["default"].weight.data.fill_(5.0)
    assert model.unload().classifier is head
    assert not bool((head.weight == 5.0).any())


@every_family
def test_twenty_trials_on_one_base_leave_it_as_it_was_and_nothing_in_memory(family):
    base = classifier(family)
    anatomy = anatomy_of(base.config)
    before, weights = logits(base), copy.deepcopy(base.state_dict())
    gone, tensors, seconds = [], [], []
    for trial in range(20):
        start = time.process_time()
        model = get_peft_model(base, HybridConfig(architecture=mixed(anatomy), task_type="SEQ_CLS"))
        seconds.append(time.process_time() - start)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        model.train()
        model(**batch_of(model), labels=torch.tensor([0, trial % 3])).loss.backward()
        optimizer.step()
        saved = get_peft_model_state_dict(model, save_embedding_layers=False)
        gone += [weakref.ref(module) for module in model.modules() if hasattr(module, "adapter_layer_names")]
        start = time.process_time()
        assert model.unload() is base
        seconds[-1] += time.process_time() - start
        del model, optimizer, saved
        if trial in {4, 19}:
            gc.collect()
            tensors.append(sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects()))
    assert tensors[0] == tensors[1]
    assert all(ref() is None for ref in gone)
    assert sorted(seconds)[10] < 0.25  # of the processor, which others may keep busy; a few milliseconds
    base.eval()
    assert all(torch.equal(value, weights[key]) for key, value in base.state_dict().items())
    assert distance(logits(base), before) == 0.0


def test_a_failed_forward_pass_does_not_disturb_the_next():
    model = shake(adapt(classifier("bert"), mixed(anatomy_of(classifier("bert").config))))
    expected = logits(model)
    with pytest.raises((RuntimeError, IndexError)):
        model(input_ids=torch.full((2, 6), 10_000))
    end = model.base_model.model.bert.encoder.layer[1].output.dense
    handle = end.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        model(**batch_of(model))
    handle.remove()
    assert distance(logits(copy.deepcopy(model)), expected) == 0.0
    assert distance(logits(model), expected) == 0.0
