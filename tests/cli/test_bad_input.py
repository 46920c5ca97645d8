"""Bad input: one line that says where, what, why and what to do; exit code 2; nothing written."""

import json

import pytest

from tests.conftest import write_rows

ROWS = [{"text": f"the film was {word}", "label": label} for word, label in (("fine", "good"), ("grim", "bad"))] * 20


@pytest.fixture
def bad(place):
    """The files that the cases name."""
    folder = place.folder / "bad"
    folder.mkdir(exist_ok=True)
    (folder / "malformed.jsonl").write_text("\n".join([*map(json.dumps, ROWS), '{"text": "x", "label"']) + "\n")
    (folder / "no_label.jsonl").write_text("\n".join(map(json.dumps, [*ROWS, {"text": "x"}])) + "\n")
    (folder / "one_class.jsonl").write_text("\n".join(json.dumps({**row, "label": "good"}) for row in ROWS) + "\n")
    (folder / "empty.jsonl").write_text("")
    (folder / "wrong.yaml").write_text("version: 1\nmodules:\n  lora: {sise: 4}\n  parallel: {size: -1}\n")
    (folder / "not.yaml").write_text("version: [1\n")
    (folder / "pickle.yaml").write_text("version: !!python/object/apply:os.system [touch pwned]\n")
    write_rows(folder / "good.jsonl", 60, 1)
    return place


CASES = {
    "unknown model": (["--model", "no/such-model"], ["no/such-model"]),
    "missing model folder": (["--model", "./nowhere"], ["./nowhere"]),
    "missing file": (["--data", "bad/nowhere.jsonl"], ["bad/nowhere.jsonl"]),
    "malformed row": (["--data", "bad/malformed.jsonl"], ["bad/malformed.jsonl", "41"]),
    "missing label": (["--data", "bad/no_label.jsonl"], ["bad/no_label.jsonl", "41", "label"]),
    "one class only": (["--data", "bad/one_class.jsonl"], ["one", "good"]),
    "empty file": (["--data", "bad/empty.jsonl"], ["bad/empty.jsonl", "empty"]),
    "hub data offline": (["--data", "nyu-mll/glue:rte"], ["nyu-mll/glue"]),
    "impossible budget": (["--budget", "3"], ["Give at least --budget"]),
    "no budget": (["--budget", "0,5%"], ["0.5%", "500k"]),
    "budget over the model": (["--budget", "9M"], ["100 %"]),
    "unknown space": (["--space", "hybird"], ["Did you mean 'hybrid'"]),
    "unknown recipe": (["--recipe", "glue/mprc"], ["Did you mean 'glue/mrpc'"]),
    "unknown sampler": (["--sampler", "tpee"], ["Did you mean 'tpe'"]),
    "wrong yaml": (["--space", "bad/wrong.yaml"], ["bad/wrong.yaml:3", "Did you mean 'size'", "bad/wrong.yaml:4"]),
    "broken yaml": (["--space", "bad/not.yaml"], ["bad/not.yaml:"]),
    "yaml with code": (["--space", "bad/pickle.yaml"], ["bad/pickle.yaml:1"]),
    "unknown setting": (["--set", "training.epoch=3"], ["--set training.epoch", "Did you mean 'epochs'"]),
    "wrong setting": (["--set", "training.epochs=many"], ["--set training.epochs"]),
    "no trials": (["--trials", "0"], ["--trials", "at least 1"]),
    "wrong time": (["--time", "soon"], ["--time", "2h"]),
}


@pytest.mark.parametrize(("arguments", "words"), CASES.values(), ids=CASES)
def test_bad_input_is_refused_in_words(bad, arguments, words):
    before = sorted(bad.folder.rglob("*"))
    given = {"--model": "model", "--data": "bad/good.jsonl", "--budget": "20%"}
    given |= dict(zip(arguments[::2], arguments[1::2], strict=True))
    done = bad("search", *(part for pair in given.items() for part in pair))
    assert done.code == 2, done.err
    assert done.out == ""
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err
    assert sorted(bad.folder.rglob("*")) == before


def test_check_names_all_problems_at_once(bad):
    done = bad(
        "check", "--model", "no/such", "--data", "bad/one_class.jsonl", "--budget", "x", "--space", "bad/wrong.yaml"
    )
    assert done.code == 2
    assert "--budget" in done.err
    assert "bad/wrong.yaml:3" in done.err
    assert "bad/wrong.yaml:4" in done.err


def test_a_missing_budget_is_named(place):
    done = place("search")
    assert done.code == 2
    assert "budget" in done.err


def test_settings_come_from_the_environment_too(bad):
    done = bad("search", "--model", "model", "--data", "bad/good.jsonl", AUTOPEFT_BUDGET="0,5%")
    assert done.code == 2
    assert "0,5%" in done.err


def test_an_unknown_run_folder_is_named(place):
    for command in (["status"], ["show", "best"], ["export"]):
        done = place(*command, "--run", "nowhere")
        assert done.code == 2
        assert "nowhere" in done.err
