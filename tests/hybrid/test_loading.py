"""Loading is strict: what is missing, left over or of another shape is an error, and the base stays clean."""

import json

import pytest
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from autopeft.errors import AutopeftError, ConfigError, ModelError
from autopeft.hybrid import anatomy_of, load_strict
from tests.hybrid.adapted import adapt, classifier, distance, logits, mixed, shake
from tests.models import tiny_bert


@pytest.fixture
def folder(tmp_path):
    model = classifier("bert")
    shake(adapt(model, mixed(anatomy_of(model.config)), task_type="SEQ_CLS")).save_pretrained(tmp_path)
    return tmp_path


def change(folder, edit):
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    edit(weights)
    save_file(weights, file)


def rename_first(weights):
    key = sorted(weights)[0]
    weights[key.replace("autopeft_", "autopeft_old_")] = weights.pop(key)


def cut(weights):
    key = next(key for key in weights if "lora_A" in key)
    weights[key] = weights[key][:1].contiguous()


def as_saved_once(weights):
    """Scalar gates as they were named when they were parameters."""
    gates = [key for key in weights if key.endswith("_gate.weight") and weights[key].shape == (1,)]
    assert gates
    for key in gates:
        weights[key.removesuffix(".weight")] = weights.pop(key)


def test_scalar_gates_under_their_former_name_are_loaded(folder):
    expected = logits(load_strict(classifier("bert"), folder).eval())
    change(folder, as_saved_once)
    for load in (load_strict, PeftModel.from_pretrained):
        assert distance(logits(load(classifier("bert"), folder).eval()), expected) == 0.0


EDITS = {
    "missing": (lambda weights: weights.pop(next(k for k in weights if "lora_A" in k)), "1 missing"),
    "unexpected": (
        lambda weights: weights.update({"base_model.model.x.autopeft_lora_A.weight": next(iter(weights.values())) + 0}),
        "1 unexpected",
    ),
    "renamed": (rename_first, "1 missing.*1 unexpected"),
    "another shape": (cut, "1 of another shape"),
    "no head": (
        lambda weights: [weights.pop(key) for key in list(weights) if "classifier" in key],
        "does not fit the model",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_weights_that_do_not_fit_are_refused_and_the_base_stays_clean(edit, folder):
    change_weights, message = EDITS[edit]
    change(folder, change_weights)
    model = classifier("bert")
    base, modules = logits(model), [type(m) for m in model.modules()]
    with pytest.raises(ModelError, match=message):
        load_strict(model, folder)
    assert distance(logits(model), base) == 0.0
    assert [type(m) for m in model.modules()] == modules


@pytest.mark.parametrize("edit", [edit for edit in EDITS if edit != "no head"])
def test_peft_itself_is_strict_with_our_adapters(edit, folder):
    change_weights, message = EDITS[edit]
    change(folder, change_weights)
    with pytest.raises(ModelError, match=message):
        PeftModel.from_pretrained(classifier("bert"), folder)


def test_an_adapter_for_a_larger_model_is_refused(folder):
    with pytest.raises(AutopeftError, match="encoder layer 1"):
        load_strict(tiny_bert(num_labels=3, layers=1), folder)


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no adapter here"):
        load_strict(classifier("bert"), tmp_path)


def test_a_broken_config_is_refused(folder):
    file = folder / "adapter_config.json"
    data = json.loads(file.read_text())
    data["architecture"]["placements"][0]["module"] = "lorra"
    file.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="Did you mean 'lora'"):
        load_strict(classifier("bert"), folder)


def test_weights_can_be_loaded_without_a_first_copy_in_memory(folder):
    expected = logits(load_strict(classifier("bert"), folder))
    loaded = PeftModel.from_pretrained(classifier("bert"), folder, low_cpu_mem_usage=True).eval()
    assert distance(logits(loaded), expected) == 0.0


def test_a_second_adapter_is_loaded_beside_the_first(folder):
    expected = logits(load_strict(classifier("bert"), folder))
    model = classifier("bert")
    adapted = shake(adapt(model, mixed(anatomy_of(model.config)), task_type="SEQ_CLS"), seed=9)
    adapted.load_adapter(folder, "second")
    adapted.set_adapter("second")
    assert distance(logits(adapted), expected) == 0.0


def test_transformers_loads_and_deletes_our_adapters(folder, tmp_path):
    base = tmp_path / "base"
    classifier("bert").save_pretrained(base)
    expected = logits(load_strict(classifier("bert"), folder))
    model = AutoModelForSequenceClassification.from_pretrained(base).eval()
    model.load_adapter(str(folder), adapter_name="mine")
    assert distance(logits(model), expected) <= 1e-6
    model.delete_adapter("mine")
    assert not any("mine" in key for key in model.state_dict())
