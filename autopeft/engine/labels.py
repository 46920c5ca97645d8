"""Labels as they stand in files, made into the numbers 0 … n-1, or into real numbers for regression.

Whole numbers may have gaps and negative values, and texts may be anything; both are numbered in their order. Numbers
with a decimal point are not classes: they are refused rather than rounded.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autopeft.engine.tables import BadRows, Table, shown, some
from autopeft.errors import DataError

__all__ = ["MOST_CLASSES", "Numbered", "is_missing", "number_classes", "read_numbers"]

MOST_CLASSES = 1000

_KINDS: Mapping[type, str] = {bool: "true/false", int: "whole number", str: "text", float: "decimal number"}
_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class Numbered:
    """Labels of several splits under one numbering."""

    labels: Mapping[str, tuple[int, ...]]
    """By split: class numbers 0 … n-1."""
    names: tuple[str, ...]
    """What the classes are called in the data."""
    notes: tuple[str, ...]


def is_missing(value: Any) -> bool:
    """Whether a label is none: an absent key, null, blank text."""
    return value is None or (isinstance(value, str) and not value.strip())


def number_classes(tables: Mapping[str, Table], column: str) -> Numbered:
    """The classes of the split `train`, numbered in their order, and the labels of every split by these numbers.

    Raises:
        DataError: missing labels, labels of several kinds or with decimal points, one class only, more than 1,000, or
            labels outside train that train does not have.
    """
    values = {split: _stripped(table, column) for split, table in tables.items()}
    kind = _one_kind(tables, values, column)
    train, n_train = tables["train"].name, Counter(values["train"])
    everything = [value for of_split in values.values() for value in of_split]
    if kind is str and all(_WHOLE.fullmatch(value) for value in everything):
        values = {split: [int(value) for value in of_split] for split, of_split in values.items()}
        n_train, kind = Counter(values["train"]), int
    elif kind is float or (kind is str and all(_DECIMAL.fullmatch(value) for value in everything)):
        example = next((value for value in values["train"] if not float(value).is_integer()), values["train"][0])
        raise DataError(
            f"{train}: labels in '{shown(column)}' are decimal numbers (such as {shown(example)}); write classes as "
            "whole numbers or words, or set task.problem=regression for a scale."
        )
    classes = sorted(n_train)
    if len(classes) == 1:
        raise DataError(
            f"{train}: all {len(values['train']):,} rows have the label {shown(classes[0])}; there is nothing to learn "
            "from one class."
        )
    if len(classes) > MOST_CLASSES:
        raise DataError(
            f"{train}: {len(classes):,} different labels in '{shown(column)}' on {len(values['train']):,} rows, at "
            f"most {MOST_CLASSES:,} are possible; is it the label? For numbers on a scale set task.problem=regression."
        )
    number = {value: position for position, value in enumerate(classes)}
    for split, of_split in values.items():
        _refuse_unseen(tables[split], of_split, number, split)
    names = _names(tables["train"], column, classes) if kind is int else tuple(str(value) for value in classes)
    labels = {split: tuple(number[value] for value in of_split) for split, of_split in values.items()}
    return Numbered(labels, tuple(names), tuple(_notes(classes, kind, n_train)))


def read_numbers(tables: Mapping[str, Table], column: str) -> dict[str, tuple[float, ...]]:
    """Labels for regression, by split.

    Raises:
        DataError: a label is missing or not a finite number, or all are the same.
    """
    numbers = {}
    for split, table in tables.items():
        bad, found = BadRows(table.name, table.unit), []
        for line, value in zip(table.lines, table.column(column), strict=True):
            number = _number(value)
            if number is None:
                what = "no label" if is_missing(value) else f"label {shown(value)} is not a number"
                bad.add(line, f"{what} in '{shown(column)}'")
            else:
                found.append(number)
        bad.refuse()
        numbers[split] = tuple(found)
    if len(set(numbers["train"])) == 1:
        raise DataError(f"{tables['train'].name}: all labels are {numbers['train'][0]:g}; there is nothing to learn.")
    return numbers


def _number(value: Any) -> float | None:
    if isinstance(value, str) and _DECIMAL.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _stripped(table: Table, column: str) -> list[Any]:
    """Labels without the blanks around them.

    Raises:
        DataError: a label is missing or not a value by itself.
    """
    unlabelled = -1 if table.label_names and column in table.label_names else None
    bad, values = BadRows(table.name, table.unit), table.column(column)
    for line, value in zip(table.lines, values, strict=True):
        if is_missing(value):
            bad.add(line, f"no label in '{shown(column)}'")
        elif type(value) not in _KINDS:
            bad.add(line, f"a label must be one value, found {type(value).__name__} in '{shown(column)}'")
        elif isinstance(value, str) and len(value.strip().splitlines()) > 1:
            bad.add(line, f"the label in '{shown(column)}' runs over several lines; is a quote missing?")
        elif value == unlabelled:
            bad.add(line, f"no label: -1 in '{shown(column)}'")
        elif isinstance(value, float) and not math.isfinite(value):
            bad.add(line, f"label {value} in '{shown(column)}'")
    bad.refuse()
    return [value.strip() if isinstance(value, str) else value for value in values]


def _one_kind(tables: Mapping[str, Table], values: Mapping[str, Sequence[Any]], column: str) -> type:
    kinds = Counter(type(value) for of_split in values.values() for value in of_split)
    if len(kinds) == 1:
        return next(iter(kinds))
    found = ", ".join(f"{_KINDS[kind]} on {n:,} rows" for kind, n in kinds.most_common())
    rarest = kinds.most_common()[-1][0]
    split, lines = next(
        (split, [line for line, value in zip(tables[split].lines, of_split, strict=True) if type(value) is rarest])
        for split, of_split in values.items()
        if any(type(value) is rarest for value in of_split)
    )
    raise DataError(
        f"{tables[split].name}: labels in '{shown(column)}' are of several kinds ({found}); the rarest in "
        f"{some(tables[split].unit, lines)}. Write all of them in one way."
    )


def _refuse_unseen(table: Table, values: Sequence[Any], number: Mapping[Any, int], split: str) -> None:
    unseen = [position for position, value in enumerate(values) if value not in number]
    if unseen:
        labels = ", ".join(sorted({shown(values[position]) for position in unseen})[:5])
        raise DataError(
            f"{table.name}: {len(unseen):,} of {len(values):,} {split} rows have labels that no train row has: "
            f"{labels} ({table.where(unseen)}). Add such rows to train or remove them here."
        )


def _names(table: Table, column: str, classes: Sequence[int]) -> tuple[str, ...]:
    told = (table.label_names or {}).get(column, ())
    return tuple(told[value] if 0 <= value < len(told) else str(value) for value in classes)


def _notes(classes: Sequence[Any], kind: type, n_train: Mapping[Any, int]) -> list[str]:
    notes = []
    if kind is int and list(classes) != list(range(len(classes))):
        shown_classes = ", ".join(map(str, classes[:8])) + (", …" if len(classes) > 8 else "")
        notes.append(f"the labels {shown_classes} are numbered 0 to {len(classes) - 1}")
    if rare := [value for value in classes if n_train[value] < 3]:
        named = ", ".join(shown(value) for value in rare[:5]) + (", …" if len(rare) > 5 else "")
        notes.append(f"{len(rare)} of {len(classes)} classes have fewer than 3 train rows: {named}")
    return notes
