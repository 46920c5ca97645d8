"""An architecture on other models, and trained adapters brought back."""

import json

import pytest
import torch

import autopeft
from autopeft.errors import ExportError, ModelError, UnknownSiteError
from autopeft.export.spec import AdapterSpec
from autopeft.hybrid import anatomy_of
from autopeft.space.architecture import Architecture, place
from autopeft.space.counting import count_parameters
from autopeft.space.depth import depth_of
from tests.export.test_spec import spec as any_spec
from tests.hybrid.adapted import adapt, classifier, distance, logits, mixed, shake
from tests.models import tiny_bert, tiny_gpt2, tiny_roberta


def spec_for(model, architecture: Architecture) -> AdapterSpec:
    anatomy = anatomy_of(model.config)
    base = {
        "name": "org/model",
        "model_type": anatomy.model_type,
        "anatomy": anatomy.fingerprint,
        "n_parameters": anatomy.n_parameters,
        "layers": depth_of(anatomy),
    }
    return any_spec(architecture=architecture.to_json(), base_model=base)


@pytest.fixture
def spec() -> AdapterSpec:
    model = tiny_bert()
    return spec_for(model, mixed(anatomy_of(model.config), prefix=False))


def n_trained(model) -> int:
    return sum(p.numel() for n, p in model.named_parameters() if p.requires_grad and "autopeft_" in n)


FORMS = {
    "spec": lambda spec, folder: spec,
    "json": lambda spec, folder: json.loads(spec.to_text()),
    "architecture": lambda spec, folder: spec.parsed_architecture,
    "architecture json": lambda spec, folder: spec.parsed_architecture.to_json(),
    "file": lambda spec, folder: folder / "autopeft_spec.json",
    "folder as text": lambda spec, folder: str(folder),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_spec_in_any_form_makes_untrained_adapters_of_its_size(form, spec, tmp_path):
    (tmp_path / "autopeft_spec.json").write_text(spec.to_text())
    model = tiny_roberta(num_labels=3)
    anatomy = anatomy_of(model.config)
    before = logits(model)
    adapted = autopeft.apply(model, FORMS[form](spec, tmp_path), task_type="SEQ_CLS").eval()
    assert n_trained(adapted) == count_parameters(spec.parsed_architecture, anatomy).trained
    assert distance(logits(adapted), before) <= 1e-6


def test_another_depth_is_refused_unless_layers_may_be_mapped(spec):
    with pytest.raises(ModelError, match=r"found on a model of 2 encoder layers, this bert has 4.*map_layers=True"):
        autopeft.apply(tiny_bert(layers=4), spec)
    adapted = autopeft.apply(tiny_bert(layers=4), spec, map_layers=True)
    twice = 2 * count_parameters(spec.parsed_architecture, anatomy_of(tiny_bert().config)).trained
    assert n_trained(adapted) == twice


def test_places_that_a_model_lacks_are_all_named(spec):
    with pytest.raises(UnknownSiteError, match=r"lora at decoder attn\.q in layer 0, 1.*attn\.qkv"):
        autopeft.apply(tiny_gpt2(), spec)


def test_the_only_stack_of_another_model_takes_the_modules():
    model = tiny_bert()
    parallel = Architecture.of([place("encoder", 1, "ffn", "parallel", 3)])
    adapted = autopeft.apply(tiny_gpt2(), spec_for(model, parallel))
    assert adapted.peft_config["default"].architecture["placements"][0]["stack"] == "decoder"


def test_a_second_adapter_stands_beside_the_first(spec):
    adapted = autopeft.apply(autopeft.apply(tiny_bert(), spec), spec, "second")
    assert set(adapted.peft_config) == {"default", "second"}
    with pytest.raises(ModelError, match="an adapter 'second' already"):
        autopeft.apply(adapted, spec, "second")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere.json", "no such file"),
        ({"version": 2}, "kind"),
        ({"version": 9, "kind": "autopeft adapter spec"}, "newer autopeft"),
        ({"peft_type": "LORA"}, "an adapter of type LORA"),
        (3, "got int"),
    ],
)
def test_what_is_no_spec_is_refused_in_one_line(given, message):
    with pytest.raises(ExportError, match=message) as caught:
        autopeft.apply(tiny_bert(), given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama"])
def test_a_saved_adapter_loads_with_and_without_its_model(family, tmp_path):
    base = tmp_path / "base"
    model = classifier(family)
    model.save_pretrained(base)
    model.name_or_path = str(base)
    adapted = shake(adapt(model, mixed(anatomy_of(model.config)), task_type="SEQ_CLS"))
    adapted.save_pretrained(tmp_path / "adapter")
    expected = logits(adapted)
    assert distance(logits(autopeft.load(tmp_path / "adapter")), expected) == 0.0
    assert distance(logits(autopeft.load(tmp_path / "adapter", classifier(family))), expected) == 0.0


def test_load_refuses_what_does_not_fit(tmp_path):
    with pytest.raises(ModelError, match="no adapter here"):
        autopeft.load(tmp_path)
    model = classifier("bert")
    adapted = adapt(model, mixed(anatomy_of(model.config)), task_type="SEQ_CLS", base_fingerprint=None)
    adapted.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="names no base model"):
        autopeft.load(tmp_path)
    with pytest.raises(ModelError, match=r"layer 1|fit"):
        autopeft.load(tmp_path, tiny_bert(num_labels=3, layers=1))


def test_what_was_applied_trains():
    model = tiny_bert(num_labels=2)
    adapted = autopeft.apply(model, mixed(anatomy_of(model.config)), task_type="SEQ_CLS")
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    adapted(input_ids=ids, labels=torch.tensor([0, 1])).loss.backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
