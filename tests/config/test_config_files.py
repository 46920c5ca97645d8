"""Files, what they include, and `--set`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import model_validator

from autopeft.config import Frozen, load
from autopeft.errors import BudgetError, ConfigError

from .examples import GOOD, Range, Recipe, Training, problems, recipe


def test_a_file_becomes_a_model(tmp_path: Path) -> None:
    text = "training:\n  learning_rate: 1\n  precision: bf16\ntext: [a, no]\nrank: {low: 1, high: 2}\nweights: {1: 2}\n"
    read = recipe(tmp_path, text)
    assert (read.training.learning_rate, read.text, read.rank, read.weights) == (
        1.0, ("a", "no"), Range(low=1, high=2), {1: 2.0}
    )  # fmt: skip
    assert read.training.precision.value == "bf16"


def test_a_loaded_model_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        recipe(tmp_path, GOOD).name = "x"  # type: ignore[misc]


def test_json_is_yaml(tmp_path: Path) -> None:
    assert recipe(tmp_path, '{"training": {"learning_rate": 1e-4},\n "name": "a\\u00e9"}').name == "aé"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: \xff", ":1: not UTF-8 text (byte 0xff). Save the file as UTF-8"),
        (b"a: 1\nb: \xe9t\xe9\n", ":2: not UTF-8 text (byte 0xe9). Save the file as UTF-8"),
        ("a: 1".encode("utf-16"), ":1: not UTF-8 text (byte 0xff). Save the file as UTF-8"),
        (b"a: \x00", ":1: character U+0000 is not allowed. In double quotes it can be written \\uXXXX"),
        (b"a: \xc3\xa9" * 200_000, ":1: over 256 KB. A config file is smaller"),
        (b"- a", ":1: must be a mapping (key: value). A file is not a single value or a list"),
        (b"just text", ":1: must be a mapping (key: value). A file is not a single value or a list"),
    ],
)
def test_a_file_that_is_no_mapping_in_utf_8_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path, Recipe)
    assert caught.value.problems == (f"{path}{message}",)


def test_a_path_is_named_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("glue").mkdir()
    Path("glue/mrpc.yaml").write_text("include: ../base.yaml\ntrainig: 1\n")
    Path("base.yaml").write_text("name: 1\n")
    with pytest.raises(ConfigError) as caught:
        load("glue/mrpc.yaml", Recipe)
    assert caught.value.problems == (
        "glue/mrpc.yaml:2: trainig: unknown key. Did you mean 'training'?",
        "glue/../base.yaml:1: name: must be text, got 1",
    )


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(ConfigError, match=r"recpe\.yaml: no such file\. Did you mean 'recipe'\?$"):
        load(tmp_path / "recpe.yaml", Recipe)


@pytest.mark.parametrize("name", ["", "a\0b.yaml", "x" * 300 + ".yaml", "fifo", "loop.yaml"])
def test_what_is_not_a_file_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(ConfigError):
        load(tmp_path / name, Recipe)


def test_an_including_file_wins_mappings_merge_and_lists_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "_base.yaml").write_text("name: base\ntraining: {learning_rate: 1, epochs: 7}\ntext: [a, b]\n")
    read = recipe(tmp_path, "include: _base.yaml\ntraining: {epochs: 9}\ntext: [c]\n")
    assert (read.name, read.text) == ("base", ("c",))
    assert read.training == Training(learning_rate=1, epochs=9)


def test_of_several_included_files_the_last_wins(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\ntraining: {learning_rate: 1, epochs: 7}\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.yaml").write_text("include: c.yaml\nname: b\n")
    (tmp_path / "sub/c.yaml").write_text("name: c\ntraining: {epochs: 8}\n")
    read = recipe(tmp_path, "include: [a.yaml, sub/b.yaml]\n")
    assert (read.name, read.training.learning_rate, read.training.epochs) == ("b", 1.0, 8)


def test_a_problem_points_to_the_file_in_which_the_value_stands(tmp_path: Path) -> None:
    (tmp_path / "_base.yaml").write_text("# base\ntraining:\n  epochs: x\n  shuffle: 1\nrank: {low: 1, high: 2}\n")
    assert problems(tmp_path, "include: _base.yaml\ntraining:\n  shuffle: maybe\nrank: {low: 3}\n") == [
        "recipe.yaml:2: training.learning_rate: required key is missing",
        "recipe.yaml:3: training.shuffle: must be true or false, got 'maybe'",
        "recipe.yaml:4: rank: low <= high must hold, got low=3, high=2.",
        "_base.yaml:3: training.epochs: must be a whole number, got 'x'",
    ]


def test_a_cycle_of_includes_is_shown(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("name: x\ninclude: recipe.yaml\n")
    assert problems(tmp_path, "include: b.yaml\n") == [
        "b.yaml:2: include: a file cannot include itself: recipe.yaml → b.yaml → recipe.yaml"
    ]


@pytest.mark.parametrize(
    ("include", "message"),
    [
        ("bse.yaml", "no such file: bse.yaml. Did you mean 'base'?"),
        ("folder.yaml", "is not a file: folder.yaml"),
        ("/etc/x.yaml", "must be a .yaml file relative to the folder of this one, got '/etc/x.yaml'"),
        ("../../etc/passwd", "must be a .yaml file relative to the folder of this one, got '../../etc/passwd'"),
        ("3", "must be a file name or a list of file names"),
        ("[]", "must be a file name or a list of file names"),
        ("{a: b}", "must be a file name or a list of file names"),
        ("[base.yaml, 3]", "must be a file name or a list of file names"),
    ],
)
def test_an_include_that_cannot_be_read_is_refused_and_nothing_else_is_guessed(
    tmp_path: Path, include: str, message: str
) -> None:
    (tmp_path / "base.yaml").write_text("name: x\n")
    (tmp_path / "folder.yaml").mkdir()
    assert problems(tmp_path, f"name: y\ninclude: {include}\n") == [f"recipe.yaml:2: include: {message}"]


def test_includes_that_multiply_are_stopped(tmp_path: Path) -> None:
    for level in range(20):
        (tmp_path / f"{level}.yaml").write_text(f"include: [{level + 1}.yaml, {level + 1}.yaml]\n")
    (tmp_path / "20.yaml").write_text("name: x\n")
    assert any("over 32 files are included" in problem for problem in problems(tmp_path, "include: 0.yaml\n"))


def test_an_option_wins_over_the_file(tmp_path: Path) -> None:
    read = recipe(
        tmp_path, GOOD, "training.epochs=9", "training.learning_rate=1e-5", "text=[a, b]", "name=x=y: z"[:8],
        "sites.'attn.q'={low: 1, high: 2}", 'sites."ffn".low=1', "sites.ffn.high=3", "training.epochs=10",
    )  # fmt: skip
    assert (read.training.epochs, read.training.learning_rate, read.text, read.name) == (10, 1e-5, ("a", "b"), "x=y")
    assert read.sites == {"attn.q": Range(low=1, high=2), "ffn": Range(low=1, high=3)}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("training.epochs=x", "--set training.epochs: must be a whole number, got 'x'"),
        ("training.epohs=3", "--set training.epohs: unknown key. Did you mean 'epochs'?"),
        ("trainng.epochs=3", "--set trainng.epochs: trainng: unknown key. Did you mean 'training'?"),
        ("training={epochs: 0}", "--set training: training.epochs: must be at least 1, got 0"),
        ("text=[a, 3]", "--set text: text[1]: must be text, got 3"),
        ("text.0=a", "--set text.0: text: must be a list, got a mapping with 0"),
        ("name=010", "--set name: a number must not start with a zero, got 010. For text write '010' in quotes"),
        ("name=", "--set name: has no value. Write null for nothing, '' for empty text"),
        ("name=[a", "--set name: not valid YAML at column 3: expected ',' or ']', but got '<stream end>'"),
        ("name=a\nb", "--set name: the value must stand on one line, as text, [a, b] or {a: b}"),
        ("name=a #1", "--set name: what follows a # is a comment. Put the text in quotes"),
        ("text=- a", "--set text: a list is written [a, b], a mapping {a: b}, "
                     "text with ': ' or a leading '- ' in quotes"),
        ("include=x.yaml", "--set include: include can stand only in a file"),
        ("name", "--set 'name': must have the form key=value, such as training.epochs=3"),
        ("=1", "--set '=1': must have the form key=value, such as training.epochs=3"),
        ("a..b=1", "--set 'a..b=1': must have the form key=value, such as training.epochs=3"),
        ("a[0]=1", "--set 'a[0]': unknown key. Allowed: name, rank, sites, text, training, version, weights"),
        ("\x1b[31m=1", "--set '\\x1b[31m': unknown key. Allowed: name, rank, sites, text, training, version, weights"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named(tmp_path: Path, option: str, message: str) -> None:
    assert problems(tmp_path, GOOD, option) == [message]


def test_problems_of_the_file_and_of_all_options_come_together(tmp_path: Path) -> None:
    assert problems(tmp_path, GOOD + "nme: x\n", "version=2", "rank=x") == [
        "recipe.yaml:2: nme: unknown key. Did you mean 'name'?",
        "--set rank: must be a whole number or a list or a mapping (key: value), got 'x'",
        "--set version: must be 1, got 2",
    ]


def test_an_option_within_a_mapping_does_not_move_what_the_file_lacks(tmp_path: Path) -> None:
    assert problems(tmp_path, "name: x\ntraining: {shuffle: true}\nrank: {low: 1, high: 8}\n", "training.epochs=9") == [
        "recipe.yaml:2: training.learning_rate: required key is missing"
    ]
    assert problems(tmp_path, "name: x\n", "training.epochs=9") == [
        "--set training.epochs: training.learning_rate: required key is missing"
    ]


def test_an_error_of_the_package_in_a_validator_keeps_the_file(tmp_path: Path) -> None:
    class Limited(Frozen):
        budget: str

        @model_validator(mode="after")
        def _parsed(self) -> "Limited":
            raise BudgetError(f"{self.budget} is not a budget")

    path = tmp_path / "x.yaml"
    path.write_text("budget: many\n")
    with pytest.raises(ConfigError, match=r"x\.yaml:1: many is not a budget$"):
        load(path, Limited)


def test_the_import_is_light() -> None:
    heavy = "{'torch', 'transformers', 'optuna', 'numpy'}"
    code = f"import sys, autopeft.config; sys.exit(bool({heavy} & set(sys.modules)))"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
