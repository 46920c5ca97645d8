"""A found spec trained on another task and another model, on the command line."""

import json

import pytest

from tests.cli.test_main_job import logits
from tests.conftest import QUICK, write_rows

SPEC = ("train", "--spec", "runs/r/best")


@pytest.fixture(scope="module")
def trained(searched):
    """Two seeds on other rows, in `runs/t`."""
    place, _ = searched
    write_rows(place.folder / "other" / "train.jsonl", 120, 7)
    return place, place(*SPEC, "--data", "other/train.jsonl", "--seeds", "2", "--out", "runs/t")


def test_it_tells_what_it_does_and_ends_with_the_figures_over_seeds(trained):
    _, done = trained
    assert done.code == 0, done.err
    told = done.err.splitlines()
    assert told[0] == "folder   runs/t (new): 2 seeds from 0"
    assert sum(line.startswith("seed ") and "held out" in line for line in told) == 2
    lines = done.out.splitlines()
    assert "mean of 2 seeds (95% t-interval over seeds" in lines[0]
    assert lines[-1].startswith("saved in    runs/t/best")


def test_the_spec_holds_the_evidence_over_seeds_and_where_it_was_found(trained):
    place, _ = trained
    found = json.loads((place.folder / "runs/r/best/autopeft_spec.json").read_text())
    spec = json.loads((place.folder / "runs/t/best/autopeft_spec.json").read_text())
    assert spec["architecture"] == found["architecture"]
    assert spec["training"] == found["training"]
    assert spec["origin"]["task"] == found["task"]["name"]
    assert spec["origin"]["validation"] == found["evidence"]["validation"]
    assert spec["recipe"]["training"] == found["recipe"]["training"]
    seeds = spec["evidence"]["seeds"]
    figures = [figure["held_out"] for figure in seeds["figures"]]
    assert [figure["seed"] for figure in seeds["figures"]] == [0, 1]
    assert seeds["mean"] == pytest.approx(sum(figures) / 2)
    assert seeds["interval"][0] <= seeds["mean"] <= seeds["interval"][1]
    card = (place.folder / "runs/t/best/README.md").read_text()
    assert "mean of 2 seeds" in card
    assert "found on" in card


def test_the_weights_are_those_of_the_best_seed_on_validation(trained):
    place, _ = trained
    seeds = json.loads((place.folder / "runs/t/best/autopeft_spec.json").read_text())["evidence"]["seeds"]
    best = max(seeds["figures"], key=lambda figure: figure["validation"])
    assert seeds["saved_seed"] == best["seed"]
    assert logits(place.folder, "runs/t/best") == logits(place.folder, f"runs/t/seeds/{best['seed']}")


def test_finished_seeds_are_kept_and_further_ones_added(trained):
    place, _ = trained
    kept = (place.folder / "runs/t/seeds/1/result.json").stat().st_mtime_ns
    command = (*SPEC, "--data", "other/train.jsonl", "--seeds", "3", "--out", "runs/t")
    (place.folder / "runs/t/seeds/0/held_out.json").unlink()  # as if killed before the seed was scored
    again = place(*command)
    assert again.code == 0, again.err
    assert "resumed with 1 finished" in again.err
    assert (place.folder / "runs/t/seeds/1/result.json").stat().st_mtime_ns == kept
    data = place.json(*command)
    assert len(data["evidence"]["seeds"]["figures"]) == 3


def test_what_was_trained_is_exported_like_what_was_found(trained):
    place, _ = trained
    done = place("export", "--adapter", "runs/t/best", "--target", "init", "--out", "initial")
    assert done.code == 0, done.err
    assert (place.folder / "initial" / "adapter_model.safetensors").is_file()
    assert place("export", "--adapter", "runs/t", "--out", "x").code == 2


def test_a_folder_of_something_else_is_refused_with_the_difference(trained):
    place, _ = trained
    other = place(*SPEC, "--data", "other/train.jsonl", "--out", "runs/t", "--set", "training.epochs=1")
    assert other.code == 4
    assert "training: was" in other.err


def test_on_a_deeper_model_layers_are_mapped_and_it_says_how(searched):
    place, _ = searched
    from tests.models import tiny_bert

    deep = place.folder / "deep"
    tiny_bert(layers=3).save_pretrained(deep)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (deep / name).write_bytes((place.folder / "model" / name).read_bytes())
    done = place(
        *SPEC, "--model", "deep", "--data", "data/train.jsonl", "--out", "runs/deep", *QUICK[:1], "training.epochs=1"
    )
    assert done.code == 0, done.err
    assert "2 layers mapped proportionally onto 3: 0→0, 1→1, 1→2" in done.err
    spec = json.loads((place.folder / "runs/deep/best/autopeft_spec.json").read_text())
    assert spec["base_model"]["layers"] == {"encoder": 3}
    assert spec["origin"]["layers"]
    assert "one seed: no interval over seeds" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--spec", "nowhere.json"), "no such file"),
        (("--spec", "runs/r/best", "--model", "a/b/c", "--data", "data/train.jsonl"), "no such folder"),
        (("--spec", "runs/r/best"), "Give them with --data"),
        (("--spec", "runs/r/best", "--data", "data/train.jsonl", "--set", "training.epoch=3"), "Did you mean 'epochs'"),
        (("--spec", "runs/r/best", "--data", "data/train.jsonl", "--seeds", "0"), "seeds"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(searched, arguments, message):
    place, _ = searched
    before = sorted(place.folder.rglob("*"))
    done = place("train", *arguments)
    assert done.code == 2
    assert message in done.err
    assert done.out == ""
    assert sorted(place.folder.rglob("*")) == before
