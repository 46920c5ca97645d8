"""A whole search for every kind of problem on the command line, resumed, shown, exported and loaded."""

import json
from functools import partial

import pytest

import autopeft
from autopeft.engine.data import load_data
from autopeft.engine.problem_names import METRICS_OF
from autopeft.engine.recipe import TrialRecipe
from autopeft.engine.scoring import judge
from autopeft.engine.transformer_backend import TransformerBackend
from tests.conftest import Place
from tests.engine.checkpoints import checkpoint
from tests.engine.tasks import TASKS, image_folder, write
from tests.models import tiny

SMALL = ("--set", "training.epochs=1", "--set", "training.batch_size=8", "--set", "training.max_length=16")
SEARCH = ("--budget", "5%", "--workers", "1", "--sampler", "random", "--no-baselines", "--run", "r", *SMALL)


def score_of(model, data, split):
    """The first metric of a loaded adapter on the rows that a search over `data` has in this split."""
    recipe = TrialRecipe.model_validate({"version": 1, "training": {"max_length": 16, "eval_batch_size": 7}})
    read = load_data(recipe.task, data)
    trainer = TransformerBackend("model", None, recipe, read).open()
    (_, value), *_ = judge(trainer._problem, trainer._splits[split], 7, partial(trainer._forward, model)).scores(
        trainer._metrics
    )
    return value


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TASKS, "image_classification"])
def test_a_search_for_any_kind_of_problem(tmp_path, monkeypatch, name):
    place = Place(tmp_path)
    if name == "image_classification":
        tiny("vit").save_pretrained(tmp_path / "model")
        data = image_folder(tmp_path / "images", 40)
    else:
        rows, family = TASKS[name]
        checkpoint(tmp_path / "model", family)
        data = write(tmp_path / "rows.jsonl", rows(40))
    arguments = ("search", "--model", "model", "--data", data.name, *SEARCH)
    checked = place("check", "--model", "model", "--data", data.name)
    assert checked.code == 0, checked.err
    first = place(*arguments, "--trials", "1", timeout=600)
    assert first.code == 0, first.err
    done = place(*arguments, "--trials", "2", timeout=600)
    assert done.code == 0, done.err
    metric = METRICS_OF["causal_lm" if name == "plain_text" else name][0]
    assert f"{'minimises' if metric == 'loss' else 'maximises'} {metric} on validation" in done.err
    assert f"{metric} " in done.out
    assert f"-{metric}" not in done.out + done.err
    shown = place.json("show", "best", "--run", "r")
    best = shown.get("best", shown)
    assert best["metric"] == metric
    assert best["score"] >= 0
    assert best["score"] == best["result"]["score"]
    exported = place("export", "--run", "r", "--out", "adapter")
    assert exported.code == 0, exported.err
    spec = json.loads((tmp_path / "adapter" / "autopeft_spec.json").read_text())
    assert spec["evidence"]["metric"] == metric
    assert spec["evidence"]["validation"] == best["score"]
    assert next(iter(spec["evidence"]["held_out"]["metrics"])) == metric
    monkeypatch.chdir(tmp_path)  # the base model is named as the user named it
    model = autopeft.load(tmp_path / "adapter")
    assert model.peft_config["default"].peft_type == "AUTOPEFT"
    assert score_of(model, data, "validation") == pytest.approx(best["score"], abs=1e-5)
    held_out = spec["evidence"]["held_out"]["metrics"][metric]
    assert score_of(model, data, "test") == pytest.approx(held_out, abs=1e-5)
    assert "from transformers import AutoModel" in (tmp_path / "adapter" / "README.md").read_text()
