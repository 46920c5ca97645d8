"""The Python API gives what the command line gives."""

import os

import pytest

import autopeft
from autopeft.errors import BudgetError, ConfigError


@pytest.fixture
def inside(searched, monkeypatch):
    """In the folder of a finished search, without the user's environment."""
    place, _ = searched
    monkeypatch.chdir(place.folder)
    for name in [name for name in os.environ if name.startswith("AUTOPEFT_")]:
        monkeypatch.delenv(name)
    return place


def test_search_in_python_goes_on_with_the_study_of_the_command_line(inside):
    events = []
    result = autopeft.search("20%", config="runs/r/config.yaml", listener=events.append)
    best = inside.json("show", "best", "--run", "runs/r")
    assert result.best is not None
    assert (result.best.number, result.best.score) == (best["number"], best["score"])
    assert result.spec.architecture == best["architecture"]
    assert result.spec.evidence.held_out.metrics == best["held_out"]["metrics"]
    assert len(events[0].trials) == 4


def test_errors_are_the_command_lines(inside):
    with pytest.raises(BudgetError, match="Give at least --budget"):
        autopeft.search("3", model="model", data="data/train.jsonl")
    with pytest.raises(ConfigError, match="Did you mean 'trials'"):
        autopeft.search("1%", trails=3)


def test_find_model_gives_the_folder(inside):
    assert (autopeft.find_model("model") / "config.json").is_file()
