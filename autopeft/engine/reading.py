"""Texts and tables as the problems read them: what is missing or looks like a mistake is refused with its place."""

from collections.abc import Mapping, Sequence
from typing import Any

from autopeft.engine.labels import is_missing
from autopeft.engine.splits import Texts
from autopeft.engine.tables import BadRows, Table, shown
from autopeft.errors import DataError

__all__ = ["read_targets", "read_texts", "refuse_swallowed", "without_unlabelled_test"]


def without_unlabelled_test(tables: Mapping[str, Table], label: str, notes: list[str]) -> dict[str, Table]:
    """Without a test that has no labels, as GLUE's: no column, or only empty cells or -1."""
    test = tables.get("test")
    if test is None or not all(is_missing(value) or value in (-1, "-1") for value in test.column(label)):
        return dict(tables)
    notes.append(f"{test.name} has no labels and is not used")
    return {split: table for split, table in tables.items() if split != "test"}


def read_texts(table: Table, columns: Sequence[str], notes: list[str]) -> tuple[Texts, ...]:
    """The texts of every row.

    Raises:
        DataError: a text is missing or is none, or the half of a pair is blank.
    """
    bad, rows = BadRows(table.name, table.unit), []
    blank = []
    for position, row in enumerate(table.rows):
        texts: Any = tuple(row.get(column) for column in columns)
        if problem := _text_problem(texts, columns):
            bad.add(table.lines[position], problem)
        elif not any(text.strip() for text in texts):
            blank.append(position)
        rows.append(texts)
    bad.refuse()
    if blank:
        notes.append(f"{table.name}: {len(blank):,} rows have an empty text ({table.where(blank)})")
    return tuple(rows)


def _text_problem(texts: Sequence[object], columns: Sequence[str]) -> str | None:
    for column, text in zip(columns, texts, strict=True):
        if text is None:
            return f"no text in '{shown(column)}'"
        if not isinstance(text, str):
            return f"'{shown(column)}' is not text but {type(text).__name__}"
        if len(texts) == 2 and not text.strip():
            return f"half of a pair is missing: '{shown(column)}' is empty"
    return None


def read_targets(table: Table, column: str) -> tuple[str, ...]:
    """The texts that a model is to make.

    Raises:
        DataError: one is missing, empty or no text.
    """
    bad = BadRows(table.name, table.unit)
    for line, text in zip(table.lines, table.column(column), strict=True):
        if not isinstance(text, str):
            what = "no text" if text is None else f"not text but {type(text).__name__}"
            bad.add(line, f"{what} in '{shown(column)}'")
        elif not text.strip():
            bad.add(line, f"'{shown(column)}' is empty: there is nothing to learn")
    bad.refuse()
    return tuple(table.column(column))


def refuse_swallowed(tables: Mapping[str, Table], label: str) -> None:
    """A line inside a quoted field that has a label where a label belongs is a row that a stray quote has swallowed.

    Raises:
        DataError: there is one.
    """
    for table in tables.values():
        if not table.swallowed:
            continue
        labels, place = set(table.column(label)), table.columns.index(label)
        for line, pieces in table.swallowed:
            # Counted from the left and from the right: a text may hold separators of its own.
            if pieces[place] in labels or pieces[place - len(table.columns)] in labels:
                raise DataError(
                    f"{table.name}: line {line}: lies inside a quoted field, but looks like a row; is a quote missing "
                    "or too many near it? A quote inside a field is written twice. If it is text, give the rows as "
                    "JSONL."
                )
