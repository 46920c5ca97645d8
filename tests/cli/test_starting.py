"""`init`, `estimate` and `show SPACE --model`: what a user does before a search."""

import json

import pytest

from autopeft.config import load
from autopeft.study.settings import SearchSettings
from tests.conftest import QUICK

MODEL_AND_DATA = ("--model", "model", "--data", "data/train.jsonl")


def test_init_writes_a_commented_config_that_check_and_search_take(place):
    done = place("init", *MODEL_AND_DATA, "--budget", "20%", "--space", "lora", "--out", "mine.yaml")
    assert done.code == 0, done.err
    assert "autopeft search --config mine.yaml" in done.out
    text = (place.folder / "mine.yaml").read_text()
    assert text.startswith("# autopeft search --config mine.yaml")
    assert "# classification: labels " in text
    settings = load(place.folder / "mine.yaml", SearchSettings)
    assert (settings.budget, settings.space, settings.model) == ("20%", "lora", "model")
    checked = place("check", "--config", "mine.yaml")
    assert checked.code == 0, checked.err


def test_init_overwrites_nothing_and_writes_nothing_wrong(place):
    (place.folder / "there.yaml").write_text("mine")
    assert place("init", *MODEL_AND_DATA, "--out", "there.yaml").code == 2
    assert (place.folder / "there.yaml").read_text() == "mine"
    before = sorted(place.folder.iterdir())
    for wrong in (["--data", "nowhere.jsonl"], ["--budget", "3"], ["--space", "hybird"]):
        given = {"--model": "model", "--data": "data/train.jsonl", wrong[0]: wrong[1]}
        done = place("init", *(part for pair in given.items() for part in pair), "--out", "other.yaml")
        assert done.code == 2, done.err
    assert place("init").code == 2
    assert sorted(place.folder.iterdir()) == before


def test_estimate_times_a_probe_and_leaves_nothing(place):
    before = sorted(place.folder.rglob("*"))
    found = place.json("estimate", *MODEL_AND_DATA, "--budget", "20%", "--trials", "7", *QUICK)
    assert found["trials"] == 7
    assert 0 < found["seconds_per_trial"] < found["total_seconds"] < 600
    assert found["probed_stored"] <= found["budget_parameters"]
    assert found["disk_bytes"] > found["bytes_per_trial"] > 0
    assert 0 < found["within_budget"]["fraction"] < 1
    assert sorted(place.folder.rglob("*")) == before
    assert found["expected_share"] == 1


def test_estimate_says_that_batches_are_gone_through_in_parts(place):
    given = ("--budget", "20%", "--trials", "7", "--workers", "1", *QUICK)
    done = place("estimate", *MODEL_AND_DATA, *given, "--set", "training.micro_batch_size=4")
    assert done.code == 0, done.err
    (line,) = [line for line in done.out.splitlines() if line.startswith("trial ")]
    assert line.endswith("; batches in parts of 4")


def test_estimate_expects_halving_to_stop_trials(place):
    halved = ("--pruner", "halving", "--workers", "1", "--trials", "40", *QUICK, "--set", "training.epochs=4")
    found = place.json("estimate", *MODEL_AND_DATA, "--budget", "20%", *halved)
    assert 0.3 < found["expected_share"] < 0.6
    trained = 40 * found["expected_share"] * found["seconds_per_trial"]
    assert found["total_seconds"] == pytest.approx(found["seconds_to_open"] + trained)


def test_show_gives_a_spaces_size_share_and_named_points(place):
    done = place("show", "lora", "--model", "model", "--budget", "20%")
    assert done.code == 0, done.err
    for word in ("points   ", "budget   20% = ", "point    query and value, r=8: ", "g1.lora.size"):
        assert word in done.out
    found = place.json("show", "autopeft", "--model", "model", "--budget", "20%")
    assert found["cardinality"] == (2**2 - 1) * (len(found["dimensions"][2]["values"].split(", ")) ** 3 - 1)
    assert "5,451,776" in found["published_size"]
    impossible = place("show", "hybrid", "--model", "model", "--budget", "3")
    assert "Give at least --budget" in impossible.out


def test_the_schema_of_spaces_has_two_names(place):
    assert json.loads(place("ls", "spaces", "--schema").out) == json.loads(place("schema", "space").out)
    assert place("ls", "samplers", "--schema").code == 2
