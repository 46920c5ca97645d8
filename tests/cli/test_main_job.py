"""The main job on the command line: search, resume, look, export, load in another process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from autopeft.space.architecture import Architecture
from tests.conftest import QUICK, ROOT, SEARCH

LOADS = """
import json, sys, torch
{first}
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
base = AutoModelForSequenceClassification.from_pretrained("model", num_labels=2)
model = PeftModel.from_pretrained(base, sys.argv[1]).eval()
ids = torch.tensor([[2, 4, 5, 6, 14, 3], [2, 4, 18, 3, 0, 0]])
mask = (ids != 0).long()
with torch.no_grad():
    print(json.dumps(model(input_ids=ids, attention_mask=mask).logits.double().tolist()))
"""


def logits(folder: Path, adapter: str, first: str = "import autopeft"):
    done = subprocess.run(
        [sys.executable, "-c", LOADS.format(first=first), adapter],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_search_says_what_it_does_and_ends_with_the_best_in_five_lines(searched):
    _, done = searched
    assert done.code == 0, done.err
    told = done.err.splitlines()
    assert told[0].startswith("run folder runs/r (new): 4 trials")
    for word in ("model", "data", "space", "budget"):
        assert any(line.startswith(word) for line in told)
    assert sum(line.startswith("trial ") and "parameters" in line for line in told) == 4
    best = done.out.splitlines()
    assert len(best) == 7
    assert "on validation" in best[0]
    assert "the search never saw" in best[1]
    assert best[-1].startswith("next        autopeft export --run runs/r")
    assert "\x1b" not in done.out + done.err


def test_the_run_folder_holds_everything(searched):
    place, _ = searched
    run = place.folder / "runs" / "r"
    names = {path.name for path in run.iterdir()}
    assert {"study.db", "config.yaml", "recipe.yaml", "space.yaml", "events.jsonl", "autopeft.log", "best"} <= names
    assert {"adapter_config.json", "adapter_model.safetensors", "autopeft_spec.json", "README.md"} == {
        path.name for path in (run / "best").iterdir()
    }


def test_the_first_trials_are_published_configurations_by_name(searched):
    place, done = searched
    assert "note     first trials: LoRA, Pfeiffer, parallel adapter, MAM" in done.err
    names = [trial["baseline"] for trial in place.json("show", "trials", "--run", "runs/r")]
    assert names == ["LoRA", "Pfeiffer", "parallel adapter", "MAM"]
    assert "Pfeiffer" in place("show", "trials", "--run", "runs/r").out


def test_a_search_for_the_front_with_another_sampler_goes_without_them_if_told(place):
    options = ("--objective", "pareto", "--sampler", "optuna:QMCSampler", "--no-baselines", "--run", "runs/front")
    done = place(*SEARCH, *QUICK, *options, "--trials", "2")
    assert done.code == 0, done.err
    assert "sampler optuna:QMCSampler, score and stored parameters" in done.err
    assert "autopeft show pareto --run runs/front" in done.out
    assert {trial["baseline"] for trial in place.json("show", "trials", "--run", "runs/front")} == {None}
    other = place(*SEARCH, *QUICK, "--no-baselines", "--run", "runs/front")
    assert other.code == 4
    assert "objective: was pareto, now score" in other.err


def test_a_search_from_an_earlier_one_says_what_it_takes_and_what_the_sampler_leaves(searched):
    place, _ = searched
    options = ("--sampler", "tpe", "--from", "runs/r", "--cost-aware", "--trials", "1", "--run", "runs/from")
    done = place(*SEARCH, *QUICK, *options)
    assert done.code == 0, done.err
    assert "note     from runs/r: 4 of 4 complete trials are in this space" in done.err
    assert "sampler tpe does not look at the trials of --from; bo" in done.err
    assert "does not weigh seconds as --cost-aware asks" in done.err
    none = place(*SEARCH, *QUICK, "--from", "runs/none", "--run", "runs/other")
    assert none.code == 2
    assert "runs/none" in none.err


def test_trials_is_a_total_and_the_same_command_trains_nothing_twice(searched):
    place, _ = searched
    before = place.json("show", "trials", "--run", "runs/r")
    again = place(*SEARCH, *QUICK, "--run", "runs/r")
    assert again.code == 0
    assert "resumed with 4 complete" in again.err
    assert place.json("show", "trials", "--run", "runs/r") == before


def test_the_written_config_repeats_the_search(searched):
    place, _ = searched
    again = place("search", "--config", "runs/r/config.yaml")
    assert again.code == 0, again.err
    assert "resumed with 4 complete" in again.err


def test_no_architecture_is_trained_twice_and_none_exceeds_the_budget(searched):
    place, _ = searched
    trials = place.json("show", "trials", "--run", "runs/r")
    assert len({trial["architecture_id"] for trial in trials}) == len(trials)
    spec = json.loads((place.folder / "runs/r/best/autopeft_spec.json").read_text())
    assert all(trial["stored"] <= spec["parameters"]["budget_parameters"] for trial in trials)


def test_changed_data_are_refused_with_the_difference(searched):
    place, _ = searched
    other = place(*SEARCH, *QUICK, "--run", "runs/r", "--set", "training.epochs=3")
    assert other.code == 4
    assert "training: was 2 epochs" in other.err
    assert "now 3 epochs" in other.err
    assert other.out == ""


def test_status_and_show_agree(searched):
    place, _ = searched
    status = place.json("status", "--run", "runs/r")
    assert (status["complete"], status["failed"], status["running"]) == (4, 0, 0)
    best = place.json("show", "best", "--run", "runs/r")
    assert status["best"] == best
    assert best["score"] == max(t["score"] for t in place.json("show", "trials", "--run", "runs/r"))
    number = best["number"]
    assert place.json("show", "trial", str(number), "--run", "runs/r") == best
    assert f"trial {number}" in place("show", "best", "--run", "runs/r").out
    assert best["number"] in {t["number"] for t in place.json("show", "pareto", "--run", "runs/r")}


def test_an_exported_adapter_loads_with_peft_in_another_process(searched):
    place, _ = searched
    done = place("export", "--run", "runs/r", "--out", "out")
    assert done.code == 0, done.err
    assert logits(place.folder, "out") == logits(place.folder, "runs/r/best")
    spec = json.loads((place.folder / "out" / "autopeft_spec.json").read_text())
    assert Architecture.from_json(spec["architecture"])
    assert place("export", "--run", "runs/r", "--out", "out").code == 2
    assert place("export", "--run", "runs/r", "--out", "out", "--force").code == 0


def test_without_the_import_peft_names_the_missing_type(searched):
    place, _ = searched
    with pytest.raises(AssertionError, match="AUTOPEFT"):
        logits(place.folder, "runs/r/best", first="")


def test_a_lora_only_architecture_exports_as_plain_lora(place):
    done = place(*SEARCH, *QUICK, "--run", "runs/lora", "--space", "lora", "--trials", "2")
    assert done.code == 0, done.err
    assert place("export", "--run", "runs/lora", "--target", "peft", "--out", "lora").code == 0
    assert json.loads((place.folder / "lora" / "adapter_config.json").read_text())["peft_type"] == "LORA"
    plain, ours = logits(place.folder, "lora", first=""), logits(place.folder, "runs/lora/best")
    assert max(abs(a - b) for x, y in zip(plain, ours, strict=True) for a, b in zip(x, y, strict=True)) <= 1e-6


def test_count_of_a_spec_is_what_was_stored(searched):
    place, _ = searched
    best = place.json("show", "best", "--run", "runs/r")
    counted = place.json("count", "--spec", "runs/r/best/autopeft_spec.json")
    assert counted["stored"] == best["stored"]
    assert sum(counted["by_module"].values()) == counted["stored"]


def test_check_shows_samples_and_labels_and_writes_nothing(place):
    before = sorted(place.folder.rglob("*"))
    done = place("check", "--model", "model", "--data", "data/train.jsonl", "--budget", "20%")
    assert done.code == 0, done.err
    assert done.out.count("sample   [") == 3
    assert "good" in done.out
    assert sorted(place.folder.rglob("*")) == before
