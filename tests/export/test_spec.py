"""The spec, the model card and the folders they are written into."""

import json

import pytest

from autopeft.errors import ExportError
from autopeft.export.card import model_card
from autopeft.export.folders import whole_folder
from autopeft.export.plain_lora import is_plain_lora
from autopeft.export.spec import AdapterSpec
from autopeft.space.architecture import Architecture, place

ARCHITECTURE = Architecture.of([place("encoder", 0, "attn.q", "lora", 8), place("encoder", 1, "ffn", "parallel", 16)])


def spec(**change: object) -> AdapterSpec:
    data = {
        "version": 2,
        "kind": "autopeft adapter spec",
        "architecture": ARCHITECTURE.to_json(),
        "base_model": {"name": "org/model", "model_type": "bert", "anatomy": "0", "n_parameters": 1_000_000},
        "parameters": {"stored": 900, "trained": 900, "head": 66, "budget": "0.1%", "budget_parameters": 1000},
        "training": {"learning_rate": 1e-3},
        "recipe": {"version": 1},
        "task": {"name": "reviews", "hash": "0", "rows": {"train": 10}, "labels": ["good", "bad"]},
        "evidence": {
            "metric": "accuracy",
            "validation": 0.75,
            "held_out": {"split": "test", "rows": 40, "metrics": {"accuracy": 0.7}, "interval": [0.6, 0.8]},
            "trial": 3,
            "trials": 20,
            "seed": 0,
        },
        "provenance": {"autopeft": "0.1.0"},
    }
    return AdapterSpec.model_validate_json(json.dumps(data | change))


def test_a_spec_survives_its_file():
    assert AdapterSpec.model_validate_json(spec().to_text()) == spec()
    assert spec().parsed_architecture == ARCHITECTURE


@pytest.mark.parametrize("change", [{"version": 1}, {"kind": "x"}, {"architecture": {"version": 1}}, {"code": "x"}])
def test_a_spec_that_is_none_is_refused(change):
    with pytest.raises(Exception, match=r"version|kind|placements|code"):
        spec(**change)


def test_the_card_tells_what_was_measured_and_how_to_load():
    card = model_card(spec(), is_plain_lora=False)
    assert "0.7000 (95 % interval over rows 0.6000 to 0.8000; one seed)" in card
    assert "optimistic" in card
    assert "import autopeft" in card
    assert "num_labels=2" in card
    assert 'base_model: "org/model"' in card


def test_names_cannot_break_out_of_the_card():
    task = {"name": "<script>alert(1)</script>", "hash": "0", "rows": {}, "labels": ["a|b", "[x](http://evil)", "`c`"]}
    card = model_card(spec(task=task), is_plain_lora=False)
    assert "<script>" not in card
    assert "](http://evil)" not in card


def test_plain_lora_is_lora_without_gates_and_nothing_else():
    lora = place("encoder", 0, "attn.q", "lora", 8)
    assert is_plain_lora(Architecture.of([lora]))
    assert not is_plain_lora(ARCHITECTURE)
    assert not is_plain_lora(Architecture.of([place("encoder", 0, "attn.q", "lora", 8, {"gate": "token"})]))


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(RuntimeError, match="half-way"), whole_folder(target, force=False) as folder:
        (folder / "a").write_text("1")
        raise RuntimeError("half-way")
    assert list(tmp_path.iterdir()) == []
    with whole_folder(target, force=False) as folder:
        (folder / "a").write_text("1")
    assert (target / "a").read_text() == "1"
    with whole_folder(target, force=True) as folder:
        (folder / "b").write_text("2")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_there_is_not_replaced_without_force(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("1")
    with pytest.raises(ExportError, match="--force"), whole_folder(tmp_path / "out", force=False):
        pass
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(ExportError, match="not a folder"), whole_folder(tmp_path / "link", force=True):
        pass
    assert (tmp_path / "out" / "precious").read_text() == "1"
