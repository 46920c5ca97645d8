"""Other trainers read what we write for them with their own parsers; `tests/peers.py` installs them."""

import importlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml

from autopeft.export.targets import write_target
from tests import peers
from tests.export.adapters import trained_adapter
from tests.export.test_targets import base_of, n_trained
from tests.hybrid.adapted import distance, logits

pytestmark = pytest.mark.peers


@pytest.fixture
def exported(tmp_path, monkeypatch):
    def write(target: str, kind: str):
        adapter = trained_adapter(tmp_path, "llama", kind, "CAUSAL_LM")
        write_target(target, adapter.source, adapter.spec, tmp_path / "out")
        monkeypatch.chdir(tmp_path / "out")
        return adapter

    return write


@pytest.mark.parametrize("kind", ["lora", "mixed"])
def test_axolotl_validates_the_yaml_and_builds_the_architecture(kind, exported):
    from axolotl.integrations.base import PluginManager
    from axolotl.loaders.adapter import load_adapter
    from axolotl.utils import config
    from axolotl.utils.dict import DictDefault

    adapter = exported("axolotl", kind)
    with open("axolotl.yaml", encoding="utf-8") as file:  # noqa: PTH123 - as axolotl does
        cfg = DictDefault(yaml.safe_load(file))
    if cfg.plugins:
        PluginManager.get_instance().register(cfg.plugins[0])
    cfg = config.validate_config(cfg)
    model, _ = load_adapter(base_of(adapter, "CAUSAL_LM"), cfg, cfg.adapter)
    assert n_trained(model) == n_trained(adapter.model)
    if kind == "mixed":
        ours = model.peft_config["default"].parsed_architecture()
        assert ours == adapter.spec.parsed_architecture


def test_llama_factory_parses_the_yaml_and_trains_the_ranks(exported, monkeypatch):
    os.environ["DISABLE_VERSION_CHECK"] = "1"  # it names the versions that it was tested with, and refuses others
    import llamafactory
    from llamafactory import hparams

    adapter = exported("llama-factory", "lora")
    with open("llama_factory.yaml", encoding="utf-8") as file:  # noqa: PTH123
        given = yaml.safe_load(file)
    model_args, _, _, finetuning_args, _ = hparams.get_train_args(given)
    base = base_of(adapter, "CAUSAL_LM")
    before = logits(base)
    assert finetuning_args.finetuning_type == "lora"
    # Its package `model` asks for a class that TRL has dropped; the module that makes adapters does not.
    package = types.ModuleType("llamafactory.model")
    package.__path__ = [str(Path(llamafactory.__file__).parent / "model")]
    monkeypatch.setitem(sys.modules, "llamafactory.model", package)
    make = importlib.import_module("llamafactory.model.adapter").init_adapter
    model = make(base.config, base, model_args, finetuning_args, is_trainable=True)
    assert n_trained(model) == n_trained(adapter.model)
    assert distance(logits(model.eval()), before) == 0.0


@pytest.mark.parametrize("kind", ["lora", "mixed"])
def test_ms_swift_takes_the_plugin_and_builds_the_architecture(kind, exported, tmp_path):
    import importlib.util

    import swift.tuner_plugin as plugins

    adapter = exported("ms-swift", kind)
    spec = importlib.util.spec_from_file_location("plugin", tmp_path / "out" / "plugin.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    tuner = plugins.tuners_map["autopeft"]
    model = tuner.prepare_model(None, base_of(adapter, "CAUSAL_LM"))
    assert n_trained(model) == n_trained(adapter.model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "autopeft_" in name:
                p.add_(0.1)
    tuner.save_pretrained(model, str(tmp_path / "saved"))
    again = tuner.from_pretrained(base_of(adapter, "CAUSAL_LM"), str(tmp_path / "saved"))
    assert distance(logits(again.eval()), logits(model.eval())) == 0.0


LOADS_WITH_ADAPTERS = """
import json, sys, torch
import adapters
from transformers import BertForSequenceClassification
model = BertForSequenceClassification.from_pretrained(sys.argv[1], num_labels=2).eval()
adapters.init(model)
model.load_adapter_setup(sys.argv[2], set_active=True, use_safetensors=True)
model.eval()
ids = torch.tensor([[5, 6, 7, 8, 9, 10], [5, 6, 7, 11, 0, 0]])
mask = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])
with torch.no_grad():
    print(json.dumps(model(input_ids=ids, attention_mask=mask).logits.double().tolist()))
"""


def test_adapters_loads_the_stack_and_computes_the_same(tmp_path):
    adapter = trained_adapter(tmp_path, "bert", "adapters")
    write_target("adapters", adapter.source, adapter.spec, tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-c", LOADS_WITH_ADAPTERS, str(adapter.base), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(peers.ROOT / "adapters"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = torch.tensor(json.loads(done.stdout.splitlines()[-1]))
    assert distance(theirs, logits(adapter.model)) <= 1e-5
