"""What is read as which problem, and what each of them refuses, with its place."""

import json
from pathlib import Path
from typing import Any

import pytest

from autopeft.engine.data import load_data
from autopeft.engine.recipe import TaskSpec
from autopeft.errors import DataError
from tests.engine.tasks import TASKS, image_folder, write

UNSET = TaskSpec()


def rows(name: str, line: int, **changes: Any) -> list[dict[str, Any]]:
    """The task's rows, with changes in the one at `line`; None takes a key away."""
    made = TASKS[name][0](40)
    made[line - 1] = {key: value for key, value in {**made[line - 1], **changes}.items() if value is not None}
    return made


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("multi_label", {"labels": "class 0"}, "line 3: 'labels' must be a list of labels, found str class 0"),
        ("multi_label", {"labels": None}, "line 3: no label in 'labels'"),
        ("multi_label", {"labels": [["x"]]}, "line 3: a label must be one value, found list"),
        ("multi_label", {"labels": [1]}, "labels in 'labels' are of several kinds"),
        ("token_classification", {"tags": ["O"]}, "but 1 tags in 'tags'"),
        ("token_classification", {"tags": []}, "line 3: 'tags' is an empty list"),
        ("token_classification", {"tokens": "w5 w20"}, "line 3: 'tokens' must be a list of words, found w5 w20"),
        ("token_classification", {"tokens": [1, 2]}, "line 3: 'tokens' must be a list of words"),
        ("multiple_choice", {"choices": ["a", "b"]}, "line 3: 2 choices in 'choices', the first train row has 3"),
        ("multiple_choice", {"choices": ["a"]}, "line 3: 1 choice in 'choices'; at least 2 are needed"),
        ("multiple_choice", {"choices": "a"}, "line 3: 'choices' must be a list of choices, found a"),
        ("multiple_choice", {"choices": ["a", " ", "b"]}, "line 3: question and choices must be texts"),
        ("multiple_choice", {"label": 3}, "line 3: label 3 in 'label' is none of the 3 choices (0 to 2, A to C"),
        ("multiple_choice", {"label": None}, "is none of the 3 choices"),
        ("causal_lm", {"completion": ""}, "line 3: 'completion' is empty: there is nothing to learn"),
        ("causal_lm", {"completion": None}, "line 3: no text in 'completion'"),
        ("causal_lm", {"prompt": 4}, "line 3: 'prompt' is not text but int"),
        ("seq2seq", {"target": " "}, "line 3: 'target' is empty"),
        ("seq2seq", {"target": ["a"]}, "line 3: not text but list in 'target'"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path, name, changes, problem):
    path = write(tmp_path / "a.jsonl", rows(name, 3, **changes))
    with pytest.raises(DataError) as error:
        load_data(UNSET, path)
    assert problem in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", TASKS)
def test_a_metric_of_another_problem_is_refused_with_those_that_fit(tmp_path, name):
    path = write(tmp_path / "a.jsonl", rows(name, 1))
    with pytest.raises(DataError, match=r"metric mcc is not for .*; choose "):
        load_data(TaskSpec(metric="mcc"), path)


def test_tags_of_no_entities_need_another_metric(tmp_path):
    made = [{"tokens": ["a", "b"], "tags": ["NOUN", "VERB"] if i % 2 else ["VERB", "NOUN"]} for i in range(30)]
    path = write(tmp_path / "a.jsonl", [{**row, "tokens": [f"a{i}", "b"]} for i, row in enumerate(made)])
    with pytest.raises(DataError, match=r"\(NOUN, VERB, …\) are not those of entities .* set task.metric=token_accura"):
        load_data(UNSET, path)
    assert load_data(TaskSpec(metric="token_accuracy"), path).label_names == ("NOUN", "VERB")


@pytest.mark.parametrize(
    ("choices", "label", "expected"),
    [
        ({"choices": ["yes", "no"]}, "no", 1),
        ({"choices": ["yes", "no"]}, "B", 1),
        ({"choice1": "yes", "choice2": "no"}, 1, 1),
        ({"ending0": "yes", "ending1": "no"}, 1, 1),
    ],
)
def test_choices_and_answers_are_read_as_data_sets_have_them(tmp_path, choices, label, expected):
    path = write(tmp_path / "a.jsonl", [{"question": f"q{i}", **choices, "label": label} for i in range(10)] + [
        {"question": f"p{i}", **choices, "label": 0 if isinstance(label, int) else "yes"} for i in range(10)
    ])  # fmt: skip
    data = load_data(TaskSpec(problem="multiple_choice"), path)
    assert data.splits["train"].texts[0][1:] == ("yes", "no")
    assert data.splits["train"].labels[0] == expected


def test_answers_may_be_counted_from_one(tmp_path):
    made = [{"question": f"q{i}", "choices": ["yes", "no"], "label": 1 + i % 2} for i in range(30)]
    data = load_data(UNSET, write(tmp_path / "a.jsonl", made))
    assert set(data.splits["train"].labels) == {0, 1}
    assert "the labels 1 to 2 are numbered 0 to 1" in data.notes


def test_columns_that_could_mean_two_problems_are_asked_about(tmp_path):
    made = [{"prompt": f"p {i}", "completion": "c", "source": f"s {i}", "target": "t"} for i in range(30)]
    path = write(tmp_path / "a.jsonl", made)
    with pytest.raises(DataError, match=r"could mean causal_lm and seq2seq; say which with task.problem"):
        load_data(UNSET, path)
    assert load_data(TaskSpec(problem="seq2seq", text=("source",), label="target"), path).problem_name == "seq2seq"


def test_plain_texts_have_no_completions_to_compare(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": f"word {i}"} for i in range(30)])
    assert load_data(UNSET, path).problem_name == "causal_lm"
    with pytest.raises(DataError, match="the metric bleu compares completions, but no column holds any"):
        load_data(TaskSpec(problem="causal_lm", metric="bleu"), path)


def test_lists_of_a_parquet_file_are_read_with_their_class_names(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        tokens=datasets.Sequence(datasets.Value("string")),
        ner_tags=datasets.Sequence(datasets.ClassLabel(names=["O", "B-X", "I-X"])),
    )
    content = {"tokens": [[f"a{i}", "b"] for i in range(30)], "ner_tags": [[0, i % 3] for i in range(30)]}
    datasets.Dataset.from_dict(content, features=features).to_parquet(tmp_path / "a.parquet")
    data = load_data(UNSET, tmp_path / "a.parquet")
    assert data.label_names == ("O", "B-X", "I-X")


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    folder = image_folder(tmp_path / "images", 24)
    (folder / "dark" / "torn.png").write_bytes((folder / "dark" / "1.png").read_bytes()[:100])
    with pytest.raises(DataError, match=r"image 13: .*dark/torn.png: not an image that can be read"):
        load_data(UNSET, folder)


def test_images_are_known_by_their_content_and_not_by_their_names(tmp_path):
    first = load_data(UNSET, image_folder(tmp_path / "a", 24))
    folder = image_folder(tmp_path / "b", 24)
    (folder / "dark" / "1.png").rename(folder / "dark" / "another.png")
    second = load_data(UNSET, folder)
    assert set(first.splits["train"].texts) == set(second.splits["train"].texts)


def test_an_image_beside_the_class_folders_is_refused(tmp_path):
    folder = image_folder(tmp_path / "a", 24)
    (folder / "dark" / "1.png").rename(folder / "1.png")
    with pytest.raises(DataError, match=r"1.png lies in no class folder"):
        load_data(UNSET, folder)


def test_splits_of_images_are_folders(tmp_path):
    image_folder(tmp_path / "train", 20)
    folder = image_folder(tmp_path / "more", 24)
    folder.rename(tmp_path / "test")
    data = load_data(UNSET, tmp_path)
    assert len(data.splits["test"]) == 24
    assert any("are also in" in note for note in data.notes)
    assert json.dumps(data.columns.text) == '["image"]'


def test_a_folder_without_rows_or_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no train split"):
        load_data(UNSET, tmp_path)
