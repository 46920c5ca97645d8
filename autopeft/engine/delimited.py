"""CSV and TSV files, where one forgotten quote can make a thousand rows into one.

CSV is read strictly by its quotes. Every line inside a quoted field that could be a row is kept as a suspect, to be
held against the labels (`Table.swallowed`). In a TSV, quotes are characters like others, as in GLUE's files, unless the
file can only be read with them, or all of its quotes are those of quoted fields.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from autopeft.engine.tables import LONGEST_PATH, BadRows, Table, decode, shown
from autopeft.errors import DataError

__all__ = ["read_csv", "read_tsv"]

_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def read_csv(path: Path) -> Table:
    """Comma-separated; a semicolon or tab is taken instead where the header has it and no comma."""
    text = decode(shown(path, LONGEST_PATH), path.read_bytes())
    header = text.lstrip("\r\n").split("\n", 1)[0]
    other = next((mark for mark in ";\t" if mark in header and "," not in header), None)
    table = _read_quoted(path, text, other or ",")
    if other is None:
        return table
    word = {";": "semicolons", "\t": "tabs"}[other]
    return Table(
        table.name,
        table.columns,
        table.rows,
        table.lines,
        swallowed=table.swallowed,
        notes=(f"columns are separated by {word}",),
    )


def read_tsv(path: Path) -> Table:
    """Tab-separated, with or without quoted fields."""
    text = decode(shown(path, LONGEST_PATH), path.read_bytes())
    if '"' not in text:
        return _read_literal(path, text)
    try:
        literal = _read_literal(path, text)
    except DataError as as_it_stands:
        try:
            return _read_quoted(path, text, "\t")
        except DataError:
            raise as_it_stands from None
    with_quotes = [
        value
        for fields in (literal.columns, *(row.values() for row in literal.rows))
        for value in fields
        if '"' in value
    ]
    if all(_QUOTED.fullmatch(value) for value in with_quotes):
        return _read_quoted(path, text, "\t")
    return literal


def _read_quoted(path: Path, text: str, delimiter: str) -> Table:
    name = shown(path, LONGEST_PATH)
    records = _records(name, text, delimiter)
    columns = _header(name, records)
    physical = io.StringIO(text, newline="").readlines()
    bad, rows, lines = BadRows(name), [], []
    swallowed: list[tuple[int, Sequence[str]]] = []
    for first, last, fields in records:
        if len(fields) != len(columns):
            bad.add(first, _width(fields, columns))
            continue
        rows.append(dict(zip(columns, fields, strict=True)))
        lines.append(first)
        # The last line ends a quoted field as it should; any other may be a row that a stray quote has swallowed.
        for number in range(first, last):
            pieces = physical[number - 1].rstrip("\r\n").replace('"', "").split(delimiter)
            if len(pieces) >= len(columns):
                swallowed.append((number, pieces))
    bad.refuse()
    return Table(name, columns, rows, lines, swallowed=swallowed)


def _read_literal(path: Path, text: str) -> Table:
    """Lines and tabs are the structure, whatever the fields hold."""
    name = shown(path, LONGEST_PATH)
    records = (
        (number, number, line.removesuffix("\r").split("\t"))
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip("\r")
    )
    columns = _header(name, records)
    bad, rows, lines = BadRows(name), [], []
    for number, _, fields in records:
        if len(fields) == len(columns):
            rows.append(dict(zip(columns, fields, strict=True)))
            lines.append(number)
        else:
            bad.add(number, _width(fields, columns))
    bad.refuse()
    return Table(name, columns, rows, lines)


def _records(name: str, text: str, delimiter: str) -> Iterator[tuple[int, int, list[str]]]:
    """First line, last line and fields of each record that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    last = 0
    while True:
        first = last + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{name}: line {first}: {error}; a quoted field must end with a quote, and hold quotes only doubled."
            ) from error
        last = reader.line_num
        if fields:
            yield first, last, fields


def _header(name: str, records: Iterator[tuple[int, int, list[str]]]) -> tuple[str, ...]:
    first = next(records, None)
    if first is None:
        raise DataError(f"{name}: the file is empty; the first line must name the columns.")
    columns = tuple(column.strip() or f"column {number}" for number, column in enumerate(first[2], start=1))
    if twice := [column for column, n in Counter(columns).items() if n > 1]:
        raise DataError(
            f"{name}: line {first[0]}: column '{shown(twice[0])}' occurs twice; the first line must name the columns."
        )
    return columns


def _width(fields: Sequence[str], columns: Sequence[str]) -> str:
    return f"{len(fields)} fields where the header has {len(columns)}"
