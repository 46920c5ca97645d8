"""One mistake, one line: what was given, what is allowed."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError

from autopeft.config import Frozen, json_schema, load
from autopeft.errors import ConfigError

from .examples import GOOD, Recipe, Training, problems


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nmae: x", "nmae: unknown key. Did you mean 'name'?"),
        ("zzz: x", "zzz: unknown key. Allowed: name, rank, sites, text, training, version, weights"),
        ("'a b\\n': x", "'a b\\\\n': unknown key. Allowed: name, rank, sites, text, training, version, weights"),
        ("name: 5", "name: must be text, got 5"),
        ("name: [a]", "name: must be text, got the list ['a']"),
        ("version: '1'", "version: must be 1, got '1'"),
        ("text: a", "text: must be a list, got 'a'"),
        ("text: {a: b}", "text: must be a list, got a mapping with a"),
        ("text: [a, {}]", "text[1]: must be text, got an empty mapping"),
        ("rank: x", "rank: must be a whole number or a list or a mapping (key: value), got 'x'"),
        ("rank: 2.5", "rank: must be a whole number or a list or a mapping (key: value), got 2.5"),
        ("rank: true", "rank: must be a whole number or a list or a mapping (key: value), got true"),
        ("rank:", "rank: must be a whole number or a list or a mapping (key: value), got null"),
        ("rank: [1, x]", "rank[1]: must be a whole number, got 'x'"),
        ("rank: {low: 1}", "rank.high: required key is missing"),
        ("rank: {low: 1, hgh: 2}", "rank.hgh: unknown key. Did you mean 'high'?"),
        ("rank: {low: 1, high: x}", "rank.high: must be a whole number, got 'x'"),
        ("rank: {low: 64, high: 8}", "rank: low <= high must hold, got low=64, high=8."),
        ("sites: {attn.q: 3}", "sites.'attn.q': must be a mapping (key: value), got 3"),
        ("weights: {a: 1}", "weights.a: the key must be a whole number, got 'a'"),
        ("weights: {1: x}", "weights.1: must be a number, got 'x'"),
    ],
)
def test_a_wrong_value_is_one_line(tmp_path: Path, line: str, message: str) -> None:
    assert problems(tmp_path, GOOD + line + "\n") == [f"recipe.yaml:2: {message}"]


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ("{learning_rte: 1e-4}", ".learning_rte: unknown key. Did you mean 'learning_rate'?"),
        ("{}", ".learning_rate: required key is missing"),
        ("5", ": must be a mapping (key: value), got 5"),
        ("{learning_rate: '1e-4'}", ".learning_rate: must be a number, got '1e-4'"),
        ("{learning_rate: true}", ".learning_rate: must be a number, got true"),
        ("{learning_rate: 0}", ".learning_rate: must be above 0, got 0"),
        ("{learning_rate: 1, epochs: 5.0}", ".epochs: must be a whole number, got 5.0"),
        ("{learning_rate: 1, epochs: 1001}", ".epochs: must be at most 1000, got 1001"),
        ("{learning_rate: 1, shuffle: yes}", ".shuffle: must be true or false, got 'yes'"),
        ("{learning_rate: 1, direction: maximise}",
         ".direction: must be 'maximize' or 'minimize', got 'maximise'. Did you mean 'maximize'?"),
        ("{learning_rate: 1, precision: bf61}",
         ".precision: must be 'fp32' or 'bf16', got 'bf61'. Did you mean 'bf16'?"),
        ("{learning_rate: 1, schedule: {kind: cosin}}",
         ".schedule.kind: must be 'steps' or 'cosine', got 'cosin'. Did you mean 'cosine'?"),
        ("{learning_rate: 1, schedule: {kind: steps, cycles: 2}}",
         ".schedule.cycles: unknown key. Allowed: kind, milestones"),
        ("{learning_rate: 1, schedule: 3}", ".schedule: must be a mapping (key: value), got 3"),
        ("{learning_rate: 1, decay: {kind: cosin}}",
         ".decay.kind: must be 'steps' or 'cosine', got 'cosin'. Did you mean 'cosine'?"),
        ("{learning_rate: 1, decay: {kind: cosine, cycle: 2}}", ".decay.cycle: unknown key. Did you mean 'cycles'?"),
        ("{learning_rate: 1, decay: {cycles: 2}}",
         ".decay: must be a mapping with the key 'kind', got a mapping with cycles"),
    ],
)  # fmt: skip
def test_a_wrong_training_key_is_one_line(tmp_path: Path, training: str, message: str) -> None:
    assert problems(tmp_path, f"version: 1\ntraining: {training}\n") == [f"recipe.yaml:2: training{message}"]


def test_everything_wrong_in_a_file_is_reported_at_once_in_the_order_of_its_lines(tmp_path: Path) -> None:
    text = "nme: x\ntraining:\n  learning_rate: -1\n  epochs: 010\n  epochs: 3\ntext: &t [1]\nrank: {low: 2, high: 1}\n"
    assert problems(tmp_path, text) == [
        "recipe.yaml:1: nme: unknown key. Did you mean 'name'?",
        "recipe.yaml:3: training.learning_rate: must be above 0, got -1",
        "recipe.yaml:4: training.epochs: a number must not start with a zero, got 010. For text write '010' in quotes",
        "recipe.yaml:5: training.epochs: key given twice, first on line 4. Keep one of them",
        "recipe.yaml:6: text: anchors (&t) are not allowed. Write the value out, or use include",
        "recipe.yaml:7: rank: low <= high must hold, got low=2, high=1.",
    ]


def test_a_flood_of_problems_is_cut_and_counted(tmp_path: Path) -> None:
    found = problems(tmp_path, GOOD + f"text: {list(range(1000))}\n")
    assert len(found) == 51
    assert found[-1] == "… and 950 more problems"


def test_a_long_value_is_shortened(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, GOOD + f"rank: {'x' * 100_000}\n{'k' * 900}: 1\n")[:1]
    assert len(problem) < 200
    assert all(len(problem) < 300 for problem in problems(tmp_path, GOOD + f"{'k' * 900}: 1\n"))


def test_a_mistake_without_a_sentence_of_its_own_still_says_what_was_given(tmp_path: Path) -> None:
    class Dated(Frozen):
        tags: frozenset[str] = Field(default=frozenset(), min_length=2)
        day: date | None = None
        anything: dict[str, Any] = Field(default={})

    path = tmp_path / "x.yaml"
    path.write_text("tags: [a]\nday: soon\nanything: {a: [1, {b: null}]}\n")
    with pytest.raises(ConfigError) as caught:
        load(path, Dated)
    assert [problem.rpartition("x.yaml:")[2] for problem in caught.value.problems] == [
        "1: tags: must have at least 2 entries, got 1",
        "2: day: must be a valid date in the format YYYY-MM-DD, input is too short, got 'soon'",
    ]


@pytest.mark.parametrize(
    "wrong",
    [{"learning_rate": True}, {"learning_rate": "1"}, {"learning_rate": float("nan")}, {"epochs": 2.0}, {"x": 1}],
)
def test_a_frozen_model_converts_nothing_in_python_either(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Training(**{"learning_rate": 1.0, **wrong})


def test_a_whole_number_is_good_for_a_float() -> None:
    assert type(Training(learning_rate=1).learning_rate) is float


def test_the_schema_describes_fields_by_their_docstrings() -> None:
    schema = json_schema(Recipe)
    field = schema["$defs"]["Training"]["properties"]["learning_rate"]
    assert field["description"] == "Peak learning rate, reached after the warm-up."
    assert schema["additionalProperties"] is False
    assert schema["$schema"].startswith("https://json-schema.org/")
