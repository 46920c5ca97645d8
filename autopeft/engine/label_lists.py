"""Labels that are a list in each row: the classes of a text, or the tag of each of its words."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from autopeft.engine.labels import Numbered, is_missing, number_classes
from autopeft.engine.tables import BadRows, Table, shown

__all__ = ["NumberedLists", "number_lists"]

NumberedLists = tuple[Mapping[str, tuple[tuple[int, ...], ...]], Numbered]
"""Class numbers by split and row, and the numbering."""


def number_lists(tables: Mapping[str, Table], column: str, *, may_be_empty: bool) -> NumberedLists:
    """The classes of the lists in `column`, numbered as single labels are.

    Raises:
        DataError: a row has no list, an empty one where none may be, or whatever `number_classes` refuses.
    """
    rows = {split: _lists(table, column, may_be_empty) for split, table in tables.items()}
    flat = {split: _flat(tables[split], column, lists) for split, lists in rows.items()}
    numbered = number_classes(flat, column)
    grouped = {}
    for split, lists in rows.items():
        ends = [0]
        for one in lists:
            ends.append(ends[-1] + len(one))
        grouped[split] = tuple(numbered.labels[split][start:end] for start, end in pairwise(ends))
    return grouped, numbered


def _lists(table: Table, column: str, may_be_empty: bool) -> list[list[Any]]:
    bad, rows = BadRows(table.name, table.unit), table.column(column)
    for line, value in zip(table.lines, rows, strict=True):
        if is_missing(value):
            bad.add(line, f"no label in '{shown(column)}'")
        elif not isinstance(value, list):
            bad.add(line, f"'{shown(column)}' must be a list of labels, found {type(value).__name__} {shown(value)}")
        elif not value and not may_be_empty:
            bad.add(line, f"'{shown(column)}' is an empty list")
    bad.refuse()
    return rows


def _flat(table: Table, column: str, lists: list[list[Any]]) -> Table:
    """A row for each label, known by the line that it stands in."""
    rows = [{column: value} for one in lists for value in one]
    lines = [line for line, one in zip(table.lines, lists, strict=True) for _ in one]
    return Table(table.name, (column,), rows, lines, table.unit, table.label_names)
