"""What every target writes, what it refuses, and that the result computes what the adapter computed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import autopeft
from autopeft.errors import ExportError
from autopeft.export.targets import TARGETS, write_target
from tests.conftest import write_rows
from tests.export.adapters import trained_adapter
from tests.hybrid.adapted import distance, logits

ROOT = Path(__file__).parents[2]
AUTO = {"SEQ_CLS": AutoModelForSequenceClassification, "CAUSAL_LM": AutoModelForCausalLM}


def base_of(adapter, task_type: str):
    labels = {"num_labels": 2} if task_type == "SEQ_CLS" else {}
    model = AUTO[task_type].from_pretrained(adapter.base, **labels).eval()
    model.config.pad_token_id = model.config.pad_token_id or 0
    return model


def n_trained(model) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and "modules_to_save" not in name)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


FAMILIES = {"bert": "SEQ_CLS", "roberta": "SEQ_CLS", "gpt2": "CAUSAL_LM", "llama": "CAUSAL_LM"}


@pytest.mark.parametrize("kind", ["lora", "mixed"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_untrained_folder_trains_exactly_the_architecture(family, kind, tmp_path):
    task_type = FAMILIES[family]
    adapter = trained_adapter(tmp_path, family, kind, task_type)
    write_target("init", adapter.source, adapter.spec, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["peft_type"] == ("LORA" if kind == "lora" else "AUTOPEFT")
    assert config["task_type"] == task_type
    model = PeftModel.from_pretrained(base_of(adapter, task_type), tmp_path / "out", is_trainable=True)
    assert n_trained(model) == n_trained(adapter.model)
    if kind == "lora":
        before = base_of(adapter, task_type)
        if task_type == "CAUSAL_LM":  # a classifier's head is drawn anew
            assert distance(logits(model.eval()), logits(before)) == 0.0
    loaded = autopeft.load(tmp_path / "out", base_of(adapter, task_type))
    assert n_trained(loaded) == 0


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_plain_lora_computes_the_same(family, tmp_path):
    adapter = trained_adapter(tmp_path, family, "lora", FAMILIES[family])
    write_target("peft", adapter.source, adapter.spec, tmp_path / "out")
    loaded = PeftModel.from_pretrained(base_of(adapter, FAMILIES[family]), tmp_path / "out").eval()
    assert distance(logits(loaded), logits(adapter.model)) <= 1e-6


@pytest.mark.parametrize(("family", "kind"), [("bert", "lora"), ("bert", "bitfit"), ("llama", "lora")])
def test_a_merged_model_computes_the_same_without_peft(family, kind, tmp_path):
    task_type = FAMILIES[family]
    adapter = trained_adapter(tmp_path, family, kind, task_type)
    write_target("merged", adapter.source, adapter.spec, tmp_path / "out")
    model = AUTO[task_type].from_pretrained(tmp_path / "out").eval()
    model.config.pad_token_id = model.config.pad_token_id or 0
    expected = logits(adapter.model)
    assert distance(logits(model), expected) <= 1e-5 * max(1.0, float(expected.abs().max()))
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) > 50
    if task_type == "SEQ_CLS":
        assert model.config.id2label == {0: "good", 1: "bad"}


REFUSALS = [
    ("init", "bert", "dora", r"cannot hold dora \(1 places\).*autopeft train"),
    ("llama-factory", "llama", "dora", r"LLaMA-Factory cannot hold dora \(1 places\)"),
    ("merged", "bert", "mixed", r"merged cannot hold .*gated lora.*parallel.*prefix.*--space lora"),
    ("llama-factory", "llama", "mixed", r"LLaMA-Factory cannot hold .*gated lora \(1 places\).*axolotl"),
    ("llama-factory", "bert", "lora", r"trains causal language models.*is a bert.*trainer"),
    ("axolotl", "bert", "lora", "causal"),
    ("ms-swift", "bert", "mixed", "causal"),
    ("trl", "bert", "mixed", "causal"),
    ("adapters", "llama", "lora", "not for llama"),
    ("adapters", "bert", "lora", r"cannot hold lora at attn\.o"),
    ("adapters", "bert", "mixed", r"parallel adapters at attn.*bitfit.*gate 'token'.*serial and parallel"),
]


@pytest.mark.parametrize(("target", "family", "kind", "message"), REFUSALS)
def test_what_a_target_cannot_hold_is_refused_by_name_and_nothing_is_written(target, family, kind, message, tmp_path):
    adapter = trained_adapter(tmp_path, family, kind, FAMILIES[family])
    with pytest.raises(ExportError, match=message):
        write_target(target, adapter.source, adapter.spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_has_a_title_and_writes_the_spec(target, tmp_path):
    family = "bert" if target == "adapters" else "llama"
    adapter = trained_adapter(tmp_path, family, "lora" if family == "llama" else "adapters", FAMILIES[family])
    write_target(target, adapter.source, adapter.spec, tmp_path / "out")
    assert TARGETS[target].title
    assert "autopeft_spec.json" in files(tmp_path / "out")


def test_axolotl_gets_rank_and_alpha_of_every_module(tmp_path):
    adapter = trained_adapter(tmp_path, "llama", "lora", "CAUSAL_LM")
    write_target("axolotl", adapter.source, adapter.spec, tmp_path / "out")
    content = yaml.safe_load((tmp_path / "out" / "axolotl.yaml").read_text())
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=content["lora_r"],
        lora_alpha=content["lora_alpha"],
        target_modules=content["lora_target_modules"],
        rank_pattern=content["lora_rank_pattern"],
        alpha_pattern=content["lora_alpha_pattern"],
    )
    assert n_trained(get_peft_model(base_of(adapter, "CAUSAL_LM"), config)) == n_trained(adapter.model)


def run_script(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "train.py", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_trainer_script_runs_as_written(tmp_path):
    adapter = trained_adapter(tmp_path, "bert", "mixed")
    write_target("trainer", adapter.source, adapter.spec, tmp_path / "out")
    write_rows(tmp_path / "data.jsonl", 60, 0)
    told = run_script(tmp_path / "out", "--data", "../data.jsonl", "--epochs", "1")
    assert "test_accuracy" in told
    loaded = autopeft.load(tmp_path / "out" / "out" / "adapter")
    assert loaded.peft_config["default"].parsed_architecture() == adapter.spec.parsed_architecture


@pytest.mark.slow
def test_the_trl_script_runs_as_written(tmp_path):
    adapter = trained_adapter(tmp_path, "llama", "mixed", "CAUSAL_LM")
    write_target("trl", adapter.source, adapter.spec, tmp_path / "out")
    rows = [json.dumps({"text": " ".join(f"w{(i * k) % 90}" for k in range(3, 12))}) for i in range(24)]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    run_script(tmp_path / "out", "--data", "../data.jsonl", "--epochs", "1")
    loaded = autopeft.load(tmp_path / "out" / "out" / "adapter")
    assert loaded.peft_config["default"].parsed_architecture() == adapter.spec.parsed_architecture
