"""Loading: where rows come from, how they are split and numbered, and what is refused with which words."""

import json
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autopeft.engine.data import load_data
from autopeft.engine.recipe import SplitNames, TaskSpec
from autopeft.engine.splits import cut, normalised
from autopeft.errors import DataError

TASK = TaskSpec()
REGRESSION = TaskSpec(problem="regression", metric="pearson")


def rows(n, labels=("no", "yes"), start=0):
    return [{"text": f"row {start + i} says {(start + i) % 7}", "label": labels[i % len(labels)]} for i in range(n)]


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8", newline="")
    elif path.suffix == ".json":
        path.write_text(json.dumps(content))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), path)
    elif path.suffix in {".csv", ".tsv"}:
        mark = "," if path.suffix == ".csv" else "\t"
        lines = [mark.join(content[0]), *(mark.join(str(value) for value in row.values()) for row in content)]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def refused(path, task=TASK) -> str:
    with pytest.raises(DataError) as error:
        load_data(task, path)
    message = str(error.value)
    assert "\n" not in message
    return message


def sizes(data):
    return {name: len(split) for name, split in data.splits.items()}


# Where rows come from


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "json", "csv", "tsv", "parquet"])
def test_a_file_of_every_kind_gives_the_same_task(tmp_path, suffix):
    data = load_data(TASK, write(tmp_path / f"a.{suffix}", rows(40)))
    assert sizes(data) == {"train": 28, "validation": 6, "test": 6}
    assert data.label_names == ("no", "yes")
    assert data.n_labels == 2
    assert data.content_hash == load_data(TASK, write(tmp_path / "b.jsonl", rows(40))).content_hash
    assert any("40 rows are cut into train / validation / test" in note for note in data.notes)


def test_a_folder_with_three_splits_is_taken_as_it_is(tmp_path):
    write(tmp_path / "train.jsonl", rows(12))
    write(tmp_path / "dev.csv", rows(5, start=100))
    write(tmp_path / "test.tsv", rows(6, start=200))
    data = load_data(TASK, tmp_path)
    assert sizes(data) == {"train": 12, "validation": 5, "test": 6}
    assert data.splits["train"].texts[:2] == (("row 0 says 0",), ("row 1 says 1",))
    assert data.splits["train"].labels[:3] == (0, 1, 0)
    assert data.notes == ()


@pytest.mark.parametrize("name", ["validation", "dev", "valid", "val"])
def test_without_a_test_the_validation_becomes_it_and_train_gives_a_new_one(tmp_path, name):
    write(tmp_path / "train.jsonl", rows(100))
    write(tmp_path / f"{name}.jsonl", rows(10, start=500))
    data = load_data(TASK, tmp_path)
    assert sizes(data) == {"train": 85, "validation": 15, "test": 10}
    assert data.splits["test"].texts[0] == ("row 500 says 3",)
    assert "the given validation (10 rows) is kept as the test, unseen by the search" in data.notes
    assert any("15 of 100 train rows are cut off as validation" in note for note in data.notes)


@pytest.mark.parametrize("hidden", [-1, None])
def test_a_test_without_labels_is_ignored(tmp_path, hidden):
    write(tmp_path / "train.jsonl", rows(100, (0, 1)))
    write(tmp_path / "validation.jsonl", rows(10, (0, 1), start=500))
    write(tmp_path / "test.jsonl", rows(10, (hidden,), start=700))
    data = load_data(TASK, tmp_path)
    assert data.splits["test"].texts[0] == ("row 500 says 3",)
    assert any("test.jsonl has no labels" in note for note in data.notes)


def test_a_test_without_a_label_column_is_ignored(tmp_path):
    write(tmp_path / "train.csv", rows(100))
    write(tmp_path / "validation.csv", rows(10, start=500))
    write(tmp_path / "test.csv", "text\nwho knows\n")
    assert sizes(load_data(TASK, tmp_path))["test"] == 10


def test_train_and_test_give_a_validation_cut_from_train(tmp_path):
    write(tmp_path / "train.jsonl", rows(100))
    write(tmp_path / "test.jsonl", rows(10, start=500))
    assert sizes(load_data(TASK, tmp_path)) == {"train": 85, "validation": 15, "test": 10}


def test_a_validation_cut_from_train_has_at_most_1000_rows(tmp_path):
    write(tmp_path / "train.jsonl", rows(8000))
    write(tmp_path / "test.jsonl", rows(10, start=9000))
    assert sizes(load_data(TASK, tmp_path))["validation"] == 1000


def test_splits_may_have_other_names(tmp_path):
    write(tmp_path / "a.jsonl", rows(12))
    write(tmp_path / "b.jsonl", rows(5, start=100))
    write(tmp_path / "c.csv", rows(6, start=200))
    task = TaskSpec(dataset=str(tmp_path), splits=SplitNames(train="a", validation="b.jsonl", test="c"))
    assert sizes(load_data(task)) == {"train": 12, "validation": 5, "test": 6}
    wrong = TaskSpec(dataset=str(tmp_path), splits=SplitNames(train="x"))
    with pytest.raises(DataError, match=r"no split 'x' for task.splits.train. Found: a, b, c"):
        load_data(wrong)


def test_other_data_than_the_recipes_leave_its_splits_and_subset_alone(tmp_path):
    task = TaskSpec(dataset="org/name", subset="s", splits=SplitNames(train="a"))
    assert sizes(load_data(task, write(tmp_path / "x.jsonl", rows(40))))["train"] == 28


@pytest.mark.parametrize("name", ["a b", "a'b\"c", "-x", "ä€𝄞", "a:b", "x" * 240])
def test_paths_may_be_called_anything(tmp_path, name):
    assert load_data(TASK, write(tmp_path / f"{name}.jsonl", rows(40))).n_labels == 2


def test_a_path_may_be_relative_or_begin_with_the_home(tmp_path, monkeypatch):
    write(tmp_path / "x.csv", rows(40))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_data(TASK, "x.csv").content_hash == load_data(TASK, "~/x.csv").content_hash


# Columns


@pytest.mark.parametrize(
    ("columns", "text", "label"),
    [
        (["text", "label"], ("text",), "label"),
        (["idx", "sentence1", "sentence2", "Label"], ("sentence1", "sentence2"), "Label"),
        (["premise", "hypothesis", "class"], ("premise", "hypothesis"), "class"),
        (["question", "sentence", "target"], ("question", "sentence"), "target"),
        (["text", "text_pair", "labels"], ("text", "text_pair"), "labels"),
        (["Review", "category"], ("Review",), "category"),
        (["content", "sentiment"], ("content",), "sentiment"),
    ],
)
def test_columns_are_found_by_their_common_names(tmp_path, columns, text, label):
    content = [{column: f"{column} {i}" for column in columns} | {columns[-1]: i % 2} for i in range(40)]
    found = load_data(TASK, write(tmp_path / "a.jsonl", content)).columns
    assert (found.text, found.label) == (text, label)


@pytest.mark.parametrize(
    ("columns", "task", "problem"),
    [
        (["a", "b"], TASK, "no column has a common name for the text; name it with task.text. Columns: a, b."),
        (["text", "b"], TASK, "no column has a common name for the label; name it with task.label. Columns: text, b."),
        (["title", "body", "label"], TASK, "several columns could be the text (body, title); name it with task.text"),
        (["text", "label", "target"], TASK, "several columns could be the label (label, target)"),
        (["text", "label"], TaskSpec(text=("txt",)), "no column 'txt'. Did you mean 'text'? Columns: text, label."),
        (["text", "label"], TaskSpec(label="y"), "no column 'y'. Columns: text, label."),
        (["text", "label"], TaskSpec(text=("label",), label="label"), "'label' cannot be both text and label"),
    ],
)
def test_columns_that_are_not_clear_are_asked_for(tmp_path, columns, task, problem):
    content = [{column: f"{column} {i % 2}" for column in columns} for i in range(40)]
    assert problem in refused(write(tmp_path / "a.jsonl", content), task)


def test_columns_may_be_named(tmp_path):
    content = [{"title": f"t {i}", "body": f"b {i}", "topic": i % 3, "label": 0} for i in range(40)]
    task = TaskSpec(text=("title", "body"), label="topic")
    data = load_data(task, write(tmp_path / "a.jsonl", content))
    assert data.splits["train"].texts[0][0].startswith("t ")
    assert data.label_names == ("0", "1", "2")


# Labels


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_gaps_and_negative_labels_are_renumbered_and_said(tmp_path, suffix):
    data = load_data(TASK, write(tmp_path / f"a.{suffix}", rows(60, (7, -1, 10, 2))))
    assert data.label_names == ("-1", "2", "7", "10")
    assert set(data.splits["train"].labels) == {0, 1, 2, 3}
    assert "the labels -1, 2, 7, 10 are numbered 0 to 3" in data.notes


def test_true_and_false_are_two_classes(tmp_path):
    assert load_data(TASK, write(tmp_path / "a.jsonl", rows(40, (True, False)))).label_names == ("False", "True")


def test_class_names_are_taken_from_a_parquet_file_of_datasets(tmp_path):
    features = {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}, "text": {"dtype": "string"}}
    table = pyarrow.Table.from_pylist(rows(40, (0, 1)))
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert load_data(TASK, tmp_path / "a.parquet").label_names == ("bad", "good")


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ([1], "all 40 rows have the label 1"),
        ([0.0, 1.0], "are decimal numbers (such as 0.0)"),
        ([0.5, 1.0], "are decimal numbers (such as 0.5)"),
        (["1.0", "0.0"], "are decimal numbers"),
        ([0, 1, 0, "one"], "of several kinds (whole number on 30 rows, text on 10 rows); the rarest in lines 4, 8, 12"),
        ([0, 1, True], "of several kinds"),
        ([0, 1, None], "13 rows cannot be read: line 3: no label in 'label'; line 6: no label"),
        ([0, 1, "  "], "line 3: no label"),
        ([0, [1]], "a label must be one value, found list"),
        ([0, {"a": 1}], "a label must be one value, found dict"),
    ],
)
def test_labels_that_are_no_classes_are_refused_with_the_line(tmp_path, labels, problem):
    assert problem in refused(write(tmp_path / "a.jsonl", rows(40, labels)))


def test_more_than_1000_classes_are_refused(tmp_path):
    assert "1,500 different labels" in refused(write(tmp_path / "a.jsonl", rows(3000, range(1500))))


def test_labels_that_train_does_not_have_are_refused(tmp_path):
    write(tmp_path / "train.jsonl", rows(40))
    write(tmp_path / "validation.jsonl", rows(9, ("no", "yes", "maybe"), start=100))
    message = refused(tmp_path)
    assert "3 of 9 validation rows have labels that no train row has: maybe (lines 3, 6, 9)" in message


def test_a_missing_label_of_a_hub_like_class_column_is_not_a_class(tmp_path):
    features = {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}
    table = pyarrow.Table.from_pylist(rows(40, (0, 1, -1)))
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert "row 3: no label: -1" in refused(tmp_path / "a.parquet")


def test_f1_of_three_classes_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", rows(60, (0, 1, 2)))
    assert "3 classes, but the metric f1 is for two" in refused(path, TaskSpec(metric="f1"))


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_regression_keeps_numbers_as_they_are(tmp_path, suffix):
    content = [{"text": f"t {i}", "score": i / 4} for i in range(40)]
    data = load_data(REGRESSION, write(tmp_path / f"a.{suffix}", content))
    assert data.label_names == ()
    assert data.n_labels == 1
    assert sizes(data) == {"train": 28, "validation": 6, "test": 6}
    assert sorted(label for split in data.splits.values() for label in split.labels) == [i / 4 for i in range(40)]


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        ("high", "label high is not a number"),
        ("1_000", "is not a number"),
        ("１２", "is not a number"),
        ("nan", "is not a number"),
        (None, "no label"),
        (True, "label True is not a number"),
        (10**400, "is not a number"),
    ],
)
def test_what_is_not_a_number_is_no_label_for_regression(tmp_path, label, problem):
    path = write(tmp_path / "a.jsonl", [*rows(3, (1.5, 2, "3e-1")), {"text": "x", "label": label}])
    assert f"line 4: {problem}" in refused(path, REGRESSION) or problem in refused(path, REGRESSION)


def test_equal_numbers_cannot_be_learned(tmp_path):
    assert "all labels are 2" in refused(write(tmp_path / "a.jsonl", rows(20, (2,))), REGRESSION)


# Splitting


def test_the_same_rows_fall_into_the_same_splits_in_any_order(tmp_path):
    content = rows(200)
    first = load_data(TASK, write(tmp_path / "a.jsonl", content))
    random.Random(1).shuffle(content)
    second = load_data(TASK, write(tmp_path / "b.jsonl", content), seed=5)
    for name, split in first.splits.items():
        assert set(split.texts) == set(second.splits[name].texts)


texts = st.text("abc ", max_size=4)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(texts, st.integers(0, 3)), min_size=1, max_size=60))
def test_a_cut_loses_no_row_and_parts_no_equal_texts(pairs):
    strings, labels = [(text,) for text, _ in pairs], [label for _, label in pairs]
    parts = cut(strings, labels, 0.15, 0.15)
    assert sorted(position for part in parts for position in part) == list(range(len(pairs)))
    found = [{normalised(strings[position]) for position in part} for part in parts]
    assert not (found[0] & found[1] or found[0] & found[2] or found[1] & found[2])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(3, 40), min_size=2, max_size=6), st.randoms())
def test_every_part_of_a_cut_has_every_class_in_proportion(counts, order):
    labels = [label for label, n in enumerate(counts) for _ in range(n)]
    order.shuffle(labels)
    parts = cut([(f"t{i}",) for i in range(len(labels))], labels, 0.15, 0.15)
    for part in parts[1:]:
        for label, n in enumerate(counts):
            in_part = sum(labels[position] == label for position in part)
            assert in_part >= 1
            assert in_part <= 2 + 0.15 * n
        if min(counts) >= 14:
            assert abs(len(part) - 0.15 * len(labels)) <= 0.5


def test_max_train_rows_draws_by_the_seed_and_a_larger_draw_holds_the_smaller(tmp_path):
    path = write(tmp_path / "a.jsonl", rows(200))
    small = load_data(TaskSpec(max_train_rows=20), path, seed=1)
    again = load_data(TaskSpec(max_train_rows=20), path, seed=1)
    large = load_data(TaskSpec(max_train_rows=50), path, seed=1)
    other = load_data(TaskSpec(max_train_rows=20), path, seed=2)
    assert small.content_hash == again.content_hash != other.content_hash
    assert set(small.splits["train"].texts) < set(large.splits["train"].texts)
    assert sizes(small) == {"train": 20, "validation": 30, "test": 30}
    assert small.splits["test"] == other.splits["test"]
    assert "train is a draw of 20 rows (seed 1)" in small.notes


def test_a_changed_letter_changes_the_hash_and_a_changed_name_does_not(tmp_path):
    content = rows(40)
    first = load_data(TASK, write(tmp_path / "a.jsonl", content)).content_hash
    assert load_data(TASK, write(tmp_path / "b.jsonl", content)).content_hash == first
    content[7]["text"] += "!"
    assert load_data(TASK, write(tmp_path / "a.jsonl", content)).content_hash != first


# Overlap


def test_rows_in_two_splits_are_counted(tmp_path):
    write(tmp_path / "train.jsonl", [*rows(40), {"text": "twice", "label": "no"}, {"text": "twice", "label": "yes"}])
    write(tmp_path / "validation.jsonl", [*rows(3), *rows(5, start=100), {"text": "ROW  5 says 5", "label": "no"}])
    write(tmp_path / "test.jsonl", rows(4, start=102))
    notes = load_data(TASK, tmp_path).notes
    assert "4 of 9 validation rows (44.4%) are also in train, of these 1 with other case or spacing" in notes
    assert "3 of 4 test rows (75.0%) are also in validation" in notes
    assert "1 of 42 train rows repeat the text of another" in notes
    assert "1 texts in train have different labels in different rows" in notes


def test_identical_splits_are_refused(tmp_path):
    content = rows(40)
    write(tmp_path / "train.jsonl", content)
    write(tmp_path / "validation.jsonl", content[::-1])
    assert "are the same 40 rows" in refused(tmp_path)


# What is refused


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", "", "the file is empty"),
        ("a.csv", "", "the file is empty"),
        ("a.jsonl", "\n\n", "has no rows"),
        ("a.json", "[]", "has no rows"),
        ("a.json", "{}", "Columns: none."),
        ("a.json", '{"data":\n []}', "must hold an array of objects, found an object"),
        ("a.csv", "text,label\n", "has no rows"),
        ("a.csv", "\n\n", "the file is empty"),
        ("a.doc", "text", "files of this kind are not read; give .jsonl"),
        ("a", "text", "files of this kind are not read"),
        ("a.csv.gz", "\x1f", "files of this kind are not read"),
        ("a.parquet", "PAR1 no", "not a readable Parquet file"),
        ("a.jsonl", '{"text": "a", "label": 1}\n', "all 1 rows have the label 1"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": 0}\n', "2 rows are too few"),
        ("a.csv", "text,text\na,b\n", "column 'text' occurs twice"),
    ],
)
def test_files_without_usable_rows_are_refused(tmp_path, name, content, problem):
    assert problem in refused(write(tmp_path / name, content))


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("nothing.csv", "no such file or folder"),
        ("docstring", "Did you mean 'docstrings'?"),
        ("a/b.csv", "a/b.csv: no such file."),
        ("what is this", "A hub data set is written org/name"),
        ("x" * 5000, "no such file or folder"),
        ("a\0b\n", "no such file or folder"),
        ("", "no train split"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(tmp_path, monkeypatch, given, problem):
    monkeypatch.chdir(tmp_path)
    assert problem in refused(given)


def test_a_misspelt_file_is_guessed(tmp_path):
    write(tmp_path / "reviews.csv", rows(40))
    assert "Did you mean 'reviews.csv'?" in refused(tmp_path / "revews.csv")


def test_no_data_at_all_is_a_usage_error():
    with pytest.raises(DataError, match="no data: give --data FILE"):
        load_data(TASK)


def test_a_loop_of_links_and_a_locked_file_are_refused(tmp_path):
    (tmp_path / "a.csv").symlink_to(tmp_path / "b.csv")
    (tmp_path / "b.csv").symlink_to(tmp_path / "a.csv")
    assert "no such file" in refused(tmp_path / "a.csv")
    (tmp_path / "d.csv").mkdir()
    assert "no train split" in refused(tmp_path / "d.csv")


def test_one_file_cannot_have_named_splits(tmp_path):
    path = write(tmp_path / "a.jsonl", rows(40))
    with pytest.raises(DataError, match="is one file, but task"):
        load_data(TaskSpec(dataset=str(path), splits=SplitNames(train="a")))


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ([], "no train split (train.jsonl, train.csv, ...). Found: nothing"),
        (["dev.jsonl"], "no train split"),
        (["train.jsonl", "train.csv"], "train.csv and train.jsonl both stand for one split"),
        (["train.jsonl", "dev.jsonl", "valid.jsonl"], "which is the validation split: dev, valid?"),
        (["train.jsonl", "validation_a.jsonl", "validation_b.jsonl"], "which is the validation split"),
    ],
)
def test_a_folder_whose_splits_are_not_clear_is_refused(tmp_path, files, problem):
    for number, name in enumerate(files):
        write(tmp_path / name, rows(20, start=100 * number))
    assert problem in refused(tmp_path)


def test_texts_that_are_none_are_refused_by_line_and_empty_ones_counted(tmp_path):
    content = rows(40)
    content[3]["text"], content[9]["text"] = None, 5
    del content[11]["text"]
    message = refused(write(tmp_path / "a.jsonl", content))
    assert "line 4: no text in 'text'; line 10: 'text' is not text but int; line 12: no text" in message
    content = rows(40)
    content[3]["text"] = " "
    notes = load_data(TASK, write(tmp_path / "a.jsonl", content)).notes
    assert any("1 rows have an empty text (line 4)" in note for note in notes)


def test_half_a_pair_is_refused(tmp_path):
    content = [{"premise": f"p {i}", "hypothesis": "" if i == 6 else f"h {i}", "label": i % 2} for i in range(40)]
    assert "line 8: half of a pair is missing: 'hypothesis'" in refused(write(tmp_path / "a.csv", content))


def test_terminal_escapes_in_the_data_are_not_passed_on(tmp_path):
    message = refused(write(tmp_path / "a.jsonl", [{"\x1b[31mtext\n": "a", "x": 1}] * 12))
    assert "\x1b" not in message
    assert r"\x1b[31mtext\n" in message


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8"), max_size=20), st.text(st.characters(codec="utf-8"), min_size=1)
        ),
        min_size=12,
        max_size=30,
        unique_by=lambda row: row[0],
    )
)
def test_what_json_holds_comes_back_letter_by_letter(tmp_path, pairs):
    path = tmp_path / "train.jsonl"
    lines = [json.dumps({"text": text, "label": i % 2}, ensure_ascii=i % 3 == 0) for i, (text, _) in enumerate(pairs)]
    path.write_bytes(("\n".join(lines) + "\n").encode())
    write(tmp_path / "validation.jsonl", rows(3, (0, 1), start=1000))
    write(tmp_path / "test.jsonl", rows(4, (0, 1), start=2000))
    assert load_data(TASK, tmp_path).splits["train"].texts == tuple((text,) for text, _ in pairs)
