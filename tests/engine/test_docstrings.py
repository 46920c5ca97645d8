"""The embedded task, made from small packages that are written for the test; once, marked slow, from the real ones."""

import importlib
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from autopeft.engine.data import load_data
from autopeft.engine.docstrings import SPLIT_ROWS, Library, docstring_rows, library_rows
from autopeft.engine.recipe import TaskSpec
from autopeft.errors import EnvironmentProblem

NAMES = ["birchlib", "oaklib", "elmlib", "firlib"]
WORDS = ["counts", "draws", "folds", "keeps", "maps", "reads", "sorts", "turns"]
WORDS += ["leaves", "roots", "branches", "seeds", "rings", "bark", "twigs", "needles"]


def sentence(number: int) -> str:
    """Six to nine words that are different for every number."""
    digits = [WORDS[number // 16**k % 16] for k in range(6)]
    return f"It {' '.join(digits)}."


def write_package(folder: Path, name: str, n_files: int = 120, shift: int = 0) -> None:
    root = folder / name
    (root / "tests").mkdir(parents=True)
    (root / "__init__.py").write_text(f'raise RuntimeError("{name} was imported")\n')
    (root / "tests" / "test_a.py").write_text('def f():\n    """This row stands in a test and must not be used."""\n')
    (root / "broken.py").write_text("def f(:\n")
    for file in range(n_files):
        functions = [
            f'def f{i}():\n    """{sentence(shift + 10 * file + i)}\n\n    A second paragraph that is no row."""\n'
            for i in range(4)
        ]
        (root / f"m{file}.py").write_text("\n".join(functions))


@pytest.fixture
def libraries(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    for number, name in enumerate(NAMES):
        write_package(folder, name, shift=100_000 * number)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "cache"))
    importlib.invalidate_caches()
    return [Library(name, name) for name in NAMES]


def test_every_library_gives_its_250_rows_and_is_not_imported(libraries):
    rows = docstring_rows(libraries)
    assert Counter((row.library, row.split) for row in rows) == {
        (name, split): n for name in NAMES for split, n in SPLIT_ROWS.items()
    }
    assert not set(NAMES) & set(sys.modules)


def test_no_file_is_in_two_splits_and_no_text_occurs_twice(libraries):
    rows = docstring_rows(libraries)
    splits = {(row.library, row.file): set() for row in rows}
    for row in rows:
        splits[row.library, row.file].add(row.split)
    assert all(len(found) == 1 for found in splits.values())
    assert len({row.text for row in rows}) == len(rows)


def test_only_first_paragraphs_of_6_to_40_words_are_rows(libraries):
    rows = docstring_rows(libraries)
    assert all(6 <= len(row.text.split()) <= 40 for row in rows)
    assert not any("second paragraph" in row.text or "test" in row.text for row in rows)


def test_a_small_library_gives_what_it_has_in_the_same_proportion(libraries, tmp_path):
    write_package(tmp_path / "site", "shrub", n_files=25, shift=900_000)
    rows = docstring_rows([*libraries, Library("shrub", "shrub")])
    assert Counter(row.split for row in rows if row.library == "shrub") == {"train": 60, "validation": 20, "test": 20}


def test_a_text_of_two_libraries_is_in_neither(libraries, tmp_path):
    for name in NAMES[:2]:
        root = tmp_path / "site" / name
        for file in root.glob("m*.py"):
            file.unlink()
        (root / "same.py").write_text('def f():\n    """Both of these trees say THIS, word by word."""\n')
        (root / f"own_{name}.py").write_text(f'def f():\n    """Only one tree says this: {sentence(len(name))}"""\n')
    texts = [row.text for row in docstring_rows(libraries) if row.library in NAMES[:2]]
    assert len(texts) == 2
    assert all(text.startswith("Only one") for text in texts)


def test_names_of_libraries_are_masked(tmp_path):
    docstring = "Wraps a numpy.ndarray for PyTorch models, as scikit-learn and np users know it from the Hub."
    (tmp_path / "a.py").write_text(f'def f():\n    """{docstring}"""\n')
    assert library_rows(tmp_path, 10) == {
        "a.py": ["Wraps a library.ndarray for library models, as library and library users know it from the library."]
    }


def test_private_functions_lists_of_arguments_and_odd_sources_give_no_rows(tmp_path):
    (tmp_path / "a.py").write_text(
        'def _f():\n    """A private function is not for the public to read."""\n'
        'def g(x):\n    """Does it all. Args: x: a number that is added to all the others."""\n'
        'def h():\n    """A lone surrogate \\ud800 cannot be written to any file at all."""\n'
        'class C:\n    def m(self):\n        """A public method of a public class is a row."""\n'
    )
    (tmp_path / "b.py").write_bytes(b"\xff\xfe\x00")
    assert library_rows(tmp_path, 10) == {"a.py": ["A public method of a public class is a row."]}


def test_rows_are_the_same_again_and_come_from_the_cache(libraries, tmp_path):
    first = docstring_rows(libraries)
    (cached,) = (tmp_path / "cache" / "docstrings").iterdir()
    for file in (tmp_path / "site" / NAMES[0]).glob("m*.py"):
        file.unlink()
    assert docstring_rows(libraries) == first
    cached.write_text(cached.read_text().replace("It ", "It is ", 1))
    assert docstring_rows(libraries) != first, "a damaged cache is made anew"


@pytest.mark.parametrize("damage", ["", "{}", "[]\n[]", '{"rows": 1}\n["a"]', "\x00"])
def test_a_damaged_cache_is_made_anew(libraries, tmp_path, damage):
    first = docstring_rows(libraries)
    (cached,) = (tmp_path / "cache" / "docstrings").iterdir()
    good = cached.read_text()
    cached.write_text(damage)
    assert docstring_rows(libraries) == first
    assert cached.read_text() == good


def test_a_cache_that_cannot_be_written_costs_time_only(libraries, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path / "file"))
    assert len(docstring_rows(libraries)) == 1000


def test_too_few_libraries_are_an_environment_problem_that_names_what_to_install(libraries):
    with pytest.raises(EnvironmentProblem, match="pip install no-such-lib nor-this"):
        docstring_rows([*libraries[:3], Library("no_such_lib", "no-such-lib"), Library("nor_this", "nor-this")])


@pytest.mark.slow
def test_the_real_task_has_ten_classes_of_250_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOPEFT_CACHE", str(tmp_path))
    data = load_data(TaskSpec(dataset="docstrings"))
    assert len(data.label_names) == 10
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 1500, "validation": 500, "test": 500}
    assert Counter(data.splits["test"].labels) == dict.fromkeys(range(10), 50)
    assert data.notes == ()
    (cached,) = (tmp_path / "docstrings").iterdir()
    assert json.loads(cached.read_text().split("\n", 1)[0])["rows"] == 2500
