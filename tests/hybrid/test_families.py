"""Every kind of module on every family of models, and all kinds together on each."""

import copy

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict

from autopeft.hybrid import anatomy_of, find_sites, load_strict, read_anatomy
from autopeft.space.architecture import Architecture, place
from autopeft.space.counting import count_parameters
from tests.hybrid.adapted import ARCHITECTURES, NOT_IDENTITY, adapt, distance, mixed, shake
from tests.models import CONFIGS, TINY_FAMILIES, tiny, tiny_inputs

every_family = pytest.mark.parametrize("family", CONFIGS)

ANATOMIES = {family: anatomy_of(tiny(family).config) for family in CONFIGS}
CASES = [
    (name, family)
    for name, architecture in ARCHITECTURES.items()
    for family in CONFIGS
    if family not in TINY_FAMILIES and architecture(ANATOMIES[family])
]
"""(architecture, family), without the families of the contract tests."""


def smooth(architecture):
    """The architecture with gelu for relu: a tiny bottleneck of dead units has no gradient."""
    rows = [(p, {"activation": "gelu"} if "activation" in p.all_options else {}) for p in architecture.placements]
    return Architecture.of(
        place(p.stack, p.layer, p.role, p.module, p.size, {**p.all_options, **more}) for p, more in rows
    )


def output(model, family):
    with torch.no_grad():
        return model(**tiny_inputs(family))[0]


def gradients(model, family):
    """Gradients of the adapter by name; of the base none may have one. A plain sum of a norm's output has none."""
    model.zero_grad()
    (model(**tiny_inputs(family))[0] ** 3).sum().backward()
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    return {key: p.grad for key, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("name", "family"), CASES, ids=["-".join(case) for case in CASES])
def test_every_kind_works_on_every_family(name, family):
    model = tiny(family)
    base, architecture = output(model, family), smooth(ARCHITECTURES[name](ANATOMIES[family]))
    adapted = adapt(model, architecture)
    is_identity = not architecture.modules & NOT_IDENTITY
    if is_identity:
        assert distance(output(adapted, family), base) <= 1e-6
    count = count_parameters(architecture, ANATOMIES[family])
    saved = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    assert count.stored == sum(tensor.numel() for tensor in saved.values())
    assert count.trained == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    without = [key for key, g in gradients(shake(adapted), family).items() if g is None or not g.abs().sum() > 0]
    assert without == []
    assert distance(output(adapted, family), base) > 1e-6
    with adapted.disable_adapter():
        assert distance(output(adapted, family), base) == 0.0
    assert distance(output(adapted.unload(), family), base) == 0.0


@every_family
def test_a_mixture_is_saved_loaded_copied_and_switched(family, tmp_path):
    architecture = mixed(ANATOMIES[family])
    model = shake(adapt(tiny(family), architecture))
    expected = output(model, family)
    model.save_pretrained(tmp_path)
    assert distance(output(PeftModel.from_pretrained(tiny(family), tmp_path, "other").eval(), family), expected) == 0.0
    assert distance(output(load_strict(tiny(family), tmp_path).eval(), family), expected) == 0.0
    assert distance(output(copy.deepcopy(model), family), expected) == 0.0
    model.add_adapter("two", model.peft_config["default"])
    assert distance(output(model, family), expected) == 0.0
    shake(model, seed=9)
    first = output(model, family)
    model.base_model.set_adapter(["default", "two"])
    assert distance(output(model, family), first) > 1e-6
    model.delete_adapter("two")
    assert distance(output(model, family), first) == 0.0


@every_family
def test_a_model_and_its_config_have_one_anatomy(family):
    assert read_anatomy(tiny(family)) == ANATOMIES[family]


def test_what_a_family_cannot_hold_is_said():
    notes = {family: " ".join(anatomy.notes) for family, anatomy in ANATOMIES.items() if anatomy.notes}
    assert set(notes) == {"albert", "deberta_v2", "mpnet", "mixtral"}
    assert "runs 2 times through each layer" in notes["albert"]
    assert "attention only" in notes["mixtral"]
    assert "prefix would have no effect" in notes["deberta_v2"]


def test_a_shared_layer_is_counted_once():
    assert ANATOMIES["albert"].n_layers == 1
    assert find_sites(tiny("albert")).layers[("encoder", 0)].layer.repeats == 2
