"""Plain texts and files in columns: what is a row, and what is refused with its line."""

import pytest

from autopeft.engine.data import load_data
from autopeft.engine.recipe import TaskSpec
from autopeft.engine.sources import read_source
from autopeft.errors import DataError
from tests.engine.tasks import image_folder

UNSET = TaskSpec()
PARAGRAPHS = "First Citizen:\nSpeak, {n}.\n\nAll:\nResolved. {n}.\n  \n\n"
SENTENCES = "EU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\nPeter{n} NNP B-NP B-PER\n"


def tables(path):
    return read_source(str(path), UNSET, is_of_recipe=False)


def texts(table):
    return [row["text"] for row in table.rows]


def test_blank_lines_part_the_texts_of_a_file(tmp_path):
    path = tmp_path / "play.txt"
    path.write_text(PARAGRAPHS.format(n="1").replace("\n", "\r\n"), newline="")
    (table,) = tables(path).values()
    assert texts(table) == ["First Citizen:\nSpeak, 1.", "All:\nResolved. 1."]
    assert table.lines == [1, 4]
    assert "2 paragraphs" in table.notes[0]


def test_without_blank_lines_each_line_is_a_text(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("\n\none\ntwo  \nthree\n\n")
    (table,) = tables(path).values()
    assert texts(table) == ["one", "two  ", "three"]
    assert table.lines == [3, 4, 5]


def test_a_text_file_is_a_language_model_s_task(tmp_path):
    path = tmp_path / "play.txt"
    path.write_text("".join(PARAGRAPHS.format(n=n) for n in range(20)))
    data = load_data(UNSET, path)
    assert data.problem_name == "causal_lm"
    assert sum(len(split) for split in data.splits.values()) == 40
    assert all(split.labels == ("",) * len(split) for split in data.splits.values())


def test_text_files_named_as_splits_are_splits(tmp_path):
    for name in ("train", "valid"):
        (tmp_path / f"{name}.txt").write_text(f"{name} a\n\n{name} b")
    found = tables(tmp_path)
    assert {split: texts(table) for split, table in found.items()} == {
        "train": ["train a", "train b"],
        "validation": ["valid a", "valid b"],
    }


@pytest.mark.parametrize("within", [False, True])
def test_a_folder_of_texts_holds_a_document_in_each_file(tmp_path, within):
    for part in ("train", "test") if within else (".",):
        (tmp_path / part).mkdir(exist_ok=True)
        for name in ("b", "a"):
            (tmp_path / part / f"{name}.txt").write_text(f"{part} {name}\n\nand more\n")
        (tmp_path / part / "empty.txt").write_text("\n")
    found = tables(tmp_path)
    assert list(found) == (["train", "test"] if within else ["train"])
    part = "train" if within else "."
    assert texts(found["train"]) == [f"{part} a\n\nand more", f"{part} b\n\nand more"]
    assert "2 files, each a text of its own, 1 empty ones apart" in found["train"].notes[0]


def test_a_readme_beside_tables_or_images_is_no_data(tmp_path):
    folder = image_folder(tmp_path / "images", 4)
    (folder / "README.txt").write_text("about the images")
    assert tables(folder)["train"].holds_images
    other = tmp_path / "rows"
    other.mkdir()
    (other / "train.csv").write_text("text,label\na,b\n")
    (other / "train.txt").write_text("the same as text")
    assert tables(other)["train"].columns == ("text", "label")


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_text_file_is_refused(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.txt: (the file is empty|has no rows)"):
        tables(tmp_path / "a.txt")


def test_a_document_that_is_no_text_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_bytes(b"fine\n\xff")
    with pytest.raises(DataError, match=r"b\.txt: line 2: byte 0xff is not UTF-8"):
        tables(tmp_path)


@pytest.mark.parametrize("name", ["train.conll", "train.txt"])
def test_a_file_in_columns_holds_a_sentence_before_each_blank_line(tmp_path, name):
    path = tmp_path / name
    path.write_text("-DOCSTART- -X- O O\n\n" + SENTENCES.format(n="") + "\n\n-DOCSTART- -X- O O\n\n# NN I-NP O")
    (table,) = tables(path).values()
    assert table.columns == ("tokens", "column 2", "column 3", "tags")
    assert [row["tokens"] for row in table.rows] == [["EU", "rejects"], ["Peter"], ["#"]]
    assert [row["tags"] for row in table.rows] == [["B-ORG", "O"], ["B-PER"], ["O"]]
    assert table.lines == [3, 6, 11]


def test_columns_are_a_task_of_tags_and_any_of_them_can_be_learned(tmp_path):
    path = tmp_path / "train.iob"
    path.write_text("\n".join(SENTENCES.format(n=n).replace("EU", f"EU{n}") for n in range(20)))
    data = load_data(UNSET, path)
    assert (data.problem_name, data.label_names) == ("token_classification", ("B-ORG", "B-PER", "O"))
    speech = load_data(TaskSpec(label="column 2", metric="token_accuracy", problem="token_classification"), path)
    assert speech.label_names == ("NNP", "VBZ")


def test_between_tabs_a_word_may_hold_blanks(tmp_path):
    path = tmp_path / "train.bio"
    path.write_text("New York\tB-LOC\nis\tO\n")
    assert tables(path)["train"].rows[0]["tokens"] == ["New York", "is"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("alone", "line 2: a word without a tag: alone"),
        ("a b O", "line 2: 3 columns where the first line has 2"),
    ],
)
def test_a_line_of_other_columns_is_refused(tmp_path, line, problem):
    path = tmp_path / "train.conll"
    path.write_text(f"EU B-ORG\n{line}\nGerman B-MISC\n")
    with pytest.raises(DataError) as error:
        tables(path)
    assert problem in str(error.value)
    assert str(path) in str(error.value)


def test_an_empty_column_is_refused(tmp_path):
    path = tmp_path / "train.conll"
    path.write_text("EU\tB-ORG\n\tO\n")
    with pytest.raises(DataError, match="line 2: a column is empty"):
        tables(path)
