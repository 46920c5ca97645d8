"""A site map on the command line: what is counted, searched, kept and loaded follows it."""

import json

import pytest
from peft import PeftModel
from safetensors import safe_open

import autopeft
from autopeft.cli import run
from autopeft.hybrid import HybridConfig
from autopeft.space.site_map import load_site_map
from tests.conftest import QUICK, SEARCH, Finished
from tests.hybrid.adapted import distance, logits

SITES = """\
version: 1
attention: attention.self
roles:
  attn.q: attention.self.key
  attn.o: attention.output.dense
"""
"""A BERT without an FFN, whose keys play the queries."""

SITE_MAP = ("--site-map", "sites.yaml")
ON_MODEL = ("--model", "model", "--site-map", "sites.yaml")


@pytest.fixture(scope="module")
def mapped(place):
    """A search in `runs/mapped` with `sites.yaml`."""
    (place.folder / "sites.yaml").write_text(SITES)
    options = ("--space", "lora", "--no-baselines", "--run", "runs/mapped", "--trials", "2")
    return place, place(*SEARCH, *QUICK, *options, *SITE_MAP)


@pytest.fixture
def here(mapped, monkeypatch, capsys):
    """Commands in this process, which need not start anew."""
    place, _ = mapped
    monkeypatch.chdir(place.folder)

    def call(*arguments: str) -> Finished:
        capsys.readouterr()
        code = run(list(arguments))
        return Finished(code, *capsys.readouterr())

    return call


def linears_of(file) -> set[str]:
    """Names of the linear maps in the first layer that the adapter file has LoRA for."""
    with safe_open(file, "pt") as weights:
        keys = [key for key in weights.keys() if ".layer." in key and "lora" in key]  # noqa: SIM118 - not a mapping
    return {key.partition(".layer.")[2].partition(".")[2].rpartition(".")[0].rpartition(".")[0] for key in keys}


def test_counts_and_spaces_follow_the_map(here, monkeypatch):
    asked = ("count", "--model", "model", "--space", "lora", "--json")
    by_flag, without = json.loads(here(*asked, *SITE_MAP).out), json.loads(here(*asked).out)
    assert {p["role"] for p in by_flag["largest"]["architecture"]["placements"]} == {"attn.q", "attn.o"}
    # By hand: in 2 layers 2 maps, 32 wide at both ends, rank 64 at most.
    assert by_flag["largest"]["stored"] == 2 * 2 * 64 * (32 + 32)
    assert without["largest"] != by_flag["largest"]
    monkeypatch.setenv("AUTOPEFT_SITE_MAP", "sites.yaml")
    assert json.loads(here(*asked).out) == by_flag
    shown = here("show", "lora", "--model", "model", "--budget", "20%")
    assert shown.code == 0, shown.err
    assert "in,gate,out" not in shown.out.partition("dimension ")[2]


def test_a_search_says_where_its_sites_are_and_trains_there(mapped):
    place, done = mapped
    assert done.code == 0, done.err
    assert "sites    attn.q, attn.o; by sites.yaml" in done.err
    best = place.folder / "runs/mapped/best"
    spec = json.loads((best / "autopeft_spec.json").read_text())
    assert {p["role"] for p in spec["architecture"]["placements"]} <= {"attn.q", "attn.o"}
    assert linears_of(best / "adapter_model.safetensors") <= {"attention.self.key", "attention.output.dense"}
    assert spec["base_model"]["site_map"]["roles"]["attn.q"] == "attention.self.key"
    assert HybridConfig.from_pretrained(best).parsed_site_map() == load_site_map(place.folder / "sites.yaml")


def test_the_written_config_needs_the_file_no_more(mapped, here):
    place, _ = mapped
    run = place.folder / "runs/mapped"
    assert load_site_map(run / "site_map.yaml") == load_site_map(place.folder / "sites.yaml")
    (place.folder / "sites.yaml").rename(place.folder / "moved.yaml")
    try:
        again = here("search", "--config", "runs/mapped/config.yaml")
    finally:
        (place.folder / "moved.yaml").rename(place.folder / "sites.yaml")
    assert again.code == 0, again.err
    assert "resumed with 2 complete" in again.err


def test_another_map_is_another_study(mapped, here):
    place, _ = mapped
    (place.folder / "others.yaml").write_text(SITES.replace("self.key", "self.query"))
    other = here("search", "--config", "runs/mapped/config.yaml", "--site-map", "others.yaml")
    assert other.code == 4
    assert "now model with site map others.yaml" in other.err
    none = here(*SEARCH, *QUICK, "--space", "lora", "--no-baselines", "--run", "runs/mapped", "--trials", "2")
    assert none.code == 4
    assert "now model\n" in none.err


def test_what_is_exported_finds_its_sites_again(here):
    for target in ("peft", "autopeft"):
        done = here("export", "--run", "runs/mapped", "--target", target, "--out", f"out/{target}")
        assert done.code == 0, done.err
    counted = json.loads(here("count", "--spec", "out/autopeft", "--json").out)
    assert counted == json.loads(here("count", "--spec", "out/autopeft", "--json", *SITE_MAP).out)
    loaded = autopeft.load("out/autopeft")
    ours = sorted(name for name, _ in loaded.named_parameters() if "autopeft_" in name)
    expected = logits(loaded)
    base = loaded.unload()
    assert distance(logits(PeftModel.from_pretrained(base, "out/peft").eval()), expected) <= 1e-6
    base = autopeft.load("out/autopeft").unload()
    applied = autopeft.apply(base, "out/autopeft", task_type="SEQ_CLS")
    assert sorted(name for name, _ in applied.named_parameters() if "autopeft_" in name) == ours
    refused = here("export", "--run", "runs/mapped", "--target", "adapters", "--out", "out/adapters")
    assert refused.code == 2
    assert "not by a site map" in refused.err


def test_train_takes_the_map_of_the_spec(mapped, here):
    place, _ = mapped
    given = ("train", "--spec", "runs/mapped/best", "--data", "data/train.jsonl", *QUICK, "--out", "runs/mapped-train")
    done = here(*given)
    assert done.code == 0, done.err
    best = place.folder / "runs/mapped-train/best"
    assert linears_of(best / "adapter_model.safetensors") == linears_of(
        place.folder / "runs/mapped/best/adapter_model.safetensors"
    )
    assert "site_map" in json.loads((best / "autopeft_spec.json").read_text())["base_model"]
    (place.folder / "others.yaml").write_text(SITES.replace("self.key", "self.query"))
    other = here(*given, "--site-map", "others.yaml")
    assert other.code == 4
    assert "now model with site map others.yaml" in other.err


def test_init_writes_the_map_and_check_says_it(here):
    done = here("init", *ON_MODEL, "--data", "data/train.jsonl", "--budget", "20%", "--out", "mapped.yaml")
    assert done.code == 0, done.err
    checked = here("check", "--config", "mapped.yaml")
    assert checked.code == 0, checked.err
    assert "sites    attn.q, attn.o; by sites.yaml" in checked.out
