"""The config: what it accepts, what it refuses, and that it survives its file."""

import dataclasses
import json
import pickle

import pytest
from peft import PeftConfig
from peft.utils.peft_types import PeftType

from autopeft.errors import ConfigError, ModelError
from autopeft.hybrid import HybridConfig, anatomy_of, register
from autopeft.space.architecture import Architecture
from tests.hybrid.adapted import adapt, anatomy_of_family, classifier, mixed


def test_an_architecture_and_its_json_make_the_same_config():
    architecture = mixed(anatomy_of_family("bert"))
    config = HybridConfig(architecture=architecture)
    assert config == HybridConfig(architecture=architecture.to_json())
    assert config.parsed_architecture() == architecture


def test_the_config_survives_its_file(tmp_path):
    architecture = mixed(anatomy_of_family("bert"))
    config = HybridConfig(architecture=architecture, dropout=0.1, base_fingerprint="abc", task_type="SEQ_CLS")
    config.save_pretrained(tmp_path)
    again = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(again, HybridConfig)
    assert again == dataclasses.replace(config, is_stored=True)
    assert again.peft_type is PeftType["AUTOPEFT"]
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "AUTOPEFT"
    assert Architecture.from_json(saved["architecture"]) == architecture


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "architecture: is missing"),
        ({"architecture": {"version": 9}}, "version must be 1, got 9"),
        ({"architecture": 3}, "version must be 1"),
        ({"architecture": {"version": 1, "placements": [{"stack": 1}]}}, r"placements\[0\]: 'stack' must be text"),
        ({"architecture": Architecture(), "dropout": 1.0}, "dropout: must be >= 0 and < 1"),
        ({"architecture": Architecture(), "target_modules": ["query"]}, "target_modules: must not be set"),
    ],
)
def test_a_malformed_config_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        HybridConfig(**fields)


def test_all_problems_of_a_config_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        HybridConfig(architecture={"version": 2}, dropout=-1, exclude_modules=["x"])
    assert len(error.value.problems) == 3


def test_a_fingerprint_binds_an_adapter_to_its_model():
    model = classifier("bert")
    anatomy = anatomy_of(model.config)
    config = {"architecture": mixed(anatomy), "base_fingerprint": anatomy.fingerprint}
    adapt(model, **config)
    with pytest.raises(ModelError, match=f"{anatomy.fingerprint}, but this bert model .3 layers"):
        adapt(classifier("bert", layers=3), **config)


def test_registering_twice_changes_nothing():
    member = PeftType["AUTOPEFT"]
    register()
    assert PeftType["AUTOPEFT"] is member
    assert PeftType("AUTOPEFT") is member
    assert pickle.loads(pickle.dumps(member)) is member
    assert list(PeftType).count(member) == 1


def test_a_mean_gate_in_a_causal_stack_is_refused():
    anatomy = anatomy_of_family("llama")
    with pytest.raises(
        ConfigError, match="decoder layer 0, serial at ffn: gate 'mean' would let a token see later ones"
    ):
        adapt(classifier("llama"), mixed(anatomy, gate="mean"))
