"""A task's rows as train, validation and test, from a file, a folder, a hub data set or installed packages.

The search may look at train and validation only; `test` is for the final figure. Where the data have no test with
labels, their validation becomes the test and a validation is cut from train; where there is one file, it is cut in
three. Everything that is changed or doubtful is said in `TaskData.notes`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from autopeft.engine.columns import Columns, find_columns
from autopeft.engine.labels import is_missing, number_classes, read_numbers
from autopeft.engine.overlap import describe_overlap, refuse_identical
from autopeft.engine.recipe import TaskSpec
from autopeft.engine.sources import EMBEDDED, read_source
from autopeft.engine.splits import Split, Texts, cut, draw
from autopeft.engine.tables import LONGEST_PATH, BadRows, Table, shown
from autopeft.errors import DataError

__all__ = ["SPLITS", "Split", "TaskData", "load_data"]

SPLITS = ("train", "validation", "test")

LEAST_ROWS = 10
"""Fewer are not cut into splits."""
HELD_OUT = 0.15
"""Share of the rows in a split that is cut off."""
MOST_HELD_OUT = 1000
"""Rows in a validation that is cut from train."""


@dataclass(frozen=True, slots=True)
class TaskData:
    """A task, ready to be tokenised."""

    name: str
    splits: Mapping[str, Split]
    """`train`, `validation`, `test`."""
    label_names: tuple[str, ...]
    """Of the classes 0 … n-1; empty for regression."""
    columns: Columns
    notes: tuple[str, ...]
    """What was renumbered, cut or found doubtful, each a sentence for the user."""
    content_hash: str
    """SHA-256 of all texts, labels and splits: one changed letter changes it, the name of the file does not."""

    @property
    def n_labels(self) -> int:
        """Outputs that a head needs: the number of classes, or 1 for regression."""
        return len(self.label_names) or 1


def load_data(task: TaskSpec, path_or_name: str | Path | None = None, seed: int = 0) -> TaskData:
    """Read, check and split the data of a task.

    `path_or_name` stands over `task.dataset`: a file or folder, `org/name` or `org/name:subset` of the hub, or
    `docstrings`. `seed` draws the rows for `task.max_train_rows`; the splits do not depend on it.

    Raises:
        DataError: the data cannot be read or learned from; one line with the place and what to do.
        EnvironmentProblem: the embedded task lacks the libraries it is made of.
    """
    given = str(path_or_name) if path_or_name is not None else task.dataset
    if given is None:
        raise DataError(f"no data: give --data FILE, a folder, a hub data set org/name, or {EMBEDDED}.")
    tables = read_source(given, task, is_of_recipe=path_or_name is None)
    notes = [note for table in tables.values() for note in table.notes]
    columns = find_columns(tables["train"].columns, task, tables["train"].name)
    tables = _without_unlabelled_test(tables, columns, notes)
    texts = {split: _texts(table, columns, notes) for split, table in tables.items()}
    label_names, labels = _labels(tables, columns, task, notes)
    for table in tables.values():
        _refuse_swallowed(table, columns)
    found = {split: Split(texts[split], labels[split]) for split in tables}
    refuse_identical(found, {split: table.name for split, table in tables.items()})
    splits = _three_splits(found, tables["train"].name, task, notes)
    notes.extend(describe_overlap(splits, of_classes=task.problem == "classification"))
    if task.max_train_rows is not None and task.max_train_rows < len(splits["train"]):
        splits["train"] = _drawn(splits["train"], task.max_train_rows, seed)
        notes.append(f"train is a draw of {task.max_train_rows:,} rows (seed {seed})")
    return TaskData(
        name=shown(given, LONGEST_PATH),
        splits=MappingProxyType(splits),
        label_names=label_names,
        columns=columns,
        notes=tuple(dict.fromkeys(notes)),
        content_hash=_content_hash(splits, label_names),
    )


def _labels(
    tables: Mapping[str, Table], columns: Columns, task: TaskSpec, notes: list[str]
) -> tuple[tuple[str, ...], Mapping[str, tuple[int, ...]] | Mapping[str, tuple[float, ...]]]:
    """Names of the classes (none for regression), and the labels by split."""
    if task.problem == "regression":
        return (), read_numbers(tables, columns.label)
    numbered = number_classes(tables, columns.label)
    if task.metric == "f1" and len(numbered.names) != 2:
        raise DataError(
            f"{tables['train'].name}: {len(numbered.names)} classes, but the metric f1 is for two; use macro_f1, "
            "accuracy or mcc."
        )
    notes.extend(numbered.notes)
    return numbered.names, numbered.labels


def _without_unlabelled_test(tables: Mapping[str, Table], columns: Columns, notes: list[str]) -> dict[str, Table]:
    """Without a test that has no labels, as GLUE's: no column, or only empty cells or -1."""
    test = tables.get("test")
    if test is None or not all(is_missing(value) or value in (-1, "-1") for value in test.column(columns.label)):
        return dict(tables)
    notes.append(f"{test.name} has no labels and is not used")
    return {split: table for split, table in tables.items() if split != "test"}


def _texts(table: Table, columns: Columns, notes: list[str]) -> tuple[Texts, ...]:
    """The texts of every row.

    Raises:
        DataError: a text is missing or is none, or the half of a pair is blank.
    """
    bad, rows = BadRows(table.name, table.unit), []
    blank = []
    for position, row in enumerate(table.rows):
        texts: Any = tuple(row.get(column) for column in columns.text)
        if problem := _text_problem(texts, columns):
            bad.add(table.lines[position], problem)
        elif not any(text.strip() for text in texts):
            blank.append(position)
        rows.append(texts)
    bad.refuse()
    if blank:
        notes.append(f"{table.name}: {len(blank):,} rows have an empty text ({table.where(blank)})")
    return tuple(rows)


def _text_problem(texts: Sequence[object], columns: Columns) -> str | None:
    for column, text in zip(columns.text, texts, strict=True):
        if text is None:
            return f"no text in '{shown(column)}'"
        if not isinstance(text, str):
            return f"'{shown(column)}' is not text but {type(text).__name__}"
        if len(texts) == 2 and not text.strip():
            return f"half of a pair is missing: '{shown(column)}' is empty"
    return None


def _refuse_swallowed(table: Table, columns: Columns) -> None:
    """A line inside a quoted field that has a label where a label belongs is a row that a stray quote has swallowed."""
    if not table.swallowed:
        return
    labels, place = set(table.column(columns.label)), table.columns.index(columns.label)
    for line, pieces in table.swallowed:
        # Counted from the left and from the right: a text may hold separators of its own.
        if pieces[place] in labels or pieces[place - len(table.columns)] in labels:
            raise DataError(
                f"{table.name}: line {line}: lies inside a quoted field, but looks like a row; is a quote missing or "
                "too many near it? A quote inside a field is written twice. If it is text, give the rows as JSONL."
            )


def _three_splits(found: Mapping[str, Split], name: str, task: TaskSpec, notes: list[str]) -> dict[str, Split]:
    """Train, validation and test from what there is; the search never sees what the data set holds out itself."""
    train = found["train"]
    if len(found) == 3:
        return {split: found[split] for split in SPLITS}
    strata = train.labels if task.problem == "classification" else (0.0,) * len(train)
    held_out = next((split for split in ("test", "validation") if split in found), None)
    if held_out is None:
        fractions: tuple[float, ...] = (HELD_OUT, HELD_OUT)
    else:
        fractions = (min(HELD_OUT, MOST_HELD_OUT / len(train)),)
    parts = [train.take(part) for part in cut(train.texts, strata, *fractions)]
    if len(train) < LEAST_ROWS or not all(parts) or len(set(parts[0].labels)) == 1:
        rows = "1 row is" if len(train) == 1 else f"{len(train)} rows are"
        raise DataError(
            f"{name}: {rows} too few to cut a validation from; at least {LEAST_ROWS}, "
            "and 3 different texts of each label."
        )
    if held_out is None:
        splits = dict(zip(SPLITS, parts, strict=True))
        sizes = " / ".join(f"{len(split):,}" for split in splits.values())
        notes.append(f"the {len(train):,} rows are cut into train / validation / test by a hash of the text: {sizes}")
        return splits
    if held_out == "validation":
        notes.append(f"the given validation ({len(found[held_out]):,} rows) is kept as the test, unseen by the search")
    notes.append(f"{len(parts[1]):,} of {len(train):,} train rows are cut off as validation, by a hash of the text")
    return {"train": parts[0], "validation": parts[1], "test": found[held_out]}


def _drawn(train: Split, n: int, seed: int) -> Split:
    drawn = train.take(draw(train.texts, n, seed))
    if len(set(drawn.labels)) == 1:
        raise DataError(f"task.max_train_rows={n} leaves rows of one label only; raise it.")
    return drawn


def _content_hash(splits: Mapping[str, Split], label_names: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps(list(label_names)).encode())
    for name, split in splits.items():
        digest.update(json.dumps([name, split.texts, split.labels]).encode())
    return digest.hexdigest()
