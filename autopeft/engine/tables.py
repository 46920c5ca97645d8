"""Files of rows, read strictly: a row that cannot be read is an error with its line, never a row less.

What lenient parsers let pass is refused: NaN and Infinity, a key that occurs twice, a lone surrogate, an unbalanced
quote, a row that is too short or too long. A line ends at a line feed only (`str.splitlines` would also cut at U+2028).
Compressed files are not unpacked.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from autopeft.errors import DataError

__all__ = [
    "ABSENT",
    "LONGEST_PATH",
    "BadRows",
    "Row",
    "Table",
    "decode",
    "one_line",
    "read_json",
    "read_jsonl",
    "read_parquet",
    "shown",
    "some",
]

Row = Mapping[str, Any]

ABSENT: Final = None
"""The value of a key that a row does not have; JSON's null says the same."""

SHOWN = 5
"""Bad rows named in a message."""

LONGEST_PATH = 200

_COMPRESSED: Mapping[bytes, str] = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


@dataclass(frozen=True)
class Table:
    """The rows of one file or of one split of a hub data set."""

    name: str
    """As messages call it: the path, or the data set's name and split."""
    columns: tuple[str, ...]
    rows: Sequence[Row]
    lines: Sequence[int]
    """Where each row begins, counted from 1."""
    unit: Literal["line", "row", "image", "file"] = "line"
    """What `lines` counts."""
    label_names: Mapping[str, tuple[str, ...]] | None = None
    """By column: the names of the classes 0, 1, …, where the file tells them."""
    swallowed: Sequence[tuple[int, Sequence[str]]] = ()
    """Lines inside a quoted field that could be rows, and their pieces: text, or the trace of a forgotten quote."""
    notes: tuple[str, ...] = ()
    holds_images: bool = False
    """Whether the column `image` has the paths of images."""

    def column(self, name: str) -> list[Any]:
        """The values of one column, `ABSENT` where a row does not have it."""
        return [row.get(name, ABSENT) for row in self.rows]

    def where(self, rows: Sequence[int]) -> str:
        """`lines 3, 7, 9 and 12 more` for the positions of rows in the table."""
        return some(self.unit, [self.lines[row] for row in rows])


def some(unit: str, numbers: Sequence[int]) -> str:
    """`line 3`, or `lines 3, 7, 9, 10, 12 and 5 more`."""
    shown = ", ".join(map(str, numbers[:SHOWN]))
    more = f" and {len(numbers) - SHOWN:,} more" if len(numbers) > SHOWN else ""
    return f"{unit}{'s' if len(numbers) > 1 else ''} {shown}{more}"


def shown(text: object, limit: int = 40) -> str:
    """Foreign text fit for a message: one line, control characters escaped, not too long."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text)[: limit + 1])
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


class BadRows:
    """Collects what is wrong with the rows of a file, for one error that names the first and counts them all."""

    def __init__(self, name: str, unit: str = "line") -> None:
        self._name, self._unit = name, unit
        self._first: list[str] = []
        self._count = 0

    def add(self, line: int, problem: str) -> None:
        self._count += 1
        if self._count <= SHOWN:
            self._first.append(f"{self._unit} {line}: {problem}")

    def refuse(self) -> None:
        """Raise DataError if there are any."""
        if self._count:
            more = f"; and {self._count - SHOWN:,} more" if self._count > SHOWN else ""
            rows = "1 row" if self._count == 1 else f"{self._count:,} rows"
            raise DataError(
                f"{self._name}: {rows} cannot be read: {'; '.join(self._first)}{more}. Correct or remove them."
            )


def read_jsonl(path: Path) -> Table:
    """One JSON object a line; blank lines are no rows."""
    name = shown(path, LONGEST_PATH)
    bad, rows, lines = BadRows(name), [], []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                _refuse_other_format(name, line)
                line = line.removeprefix(b"\xef\xbb\xbf")  # noqa: PLW2901
            if not line.strip():
                continue
            try:
                rows.append(_object(json_value(line.decode("utf-8"))))
                lines.append(number)
            except ValueError as error:
                bad.add(number, _reason(error))
    bad.refuse()
    return _json_table(name, rows, lines, "line")


def read_json(path: Path) -> Table:
    """A JSON array of objects."""
    name = shown(path, LONGEST_PATH)
    text = decode(name, path.read_bytes())
    try:
        values = json_value(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return read_jsonl(path)
        raise DataError(f"{name}: line {error.lineno}: not JSON ({error.msg.lower()}).") from error
    except ValueError as error:
        raise DataError(f"{name}: {_reason(error)}.") from error
    if isinstance(values, dict) and "\n" not in text.strip():
        return read_jsonl(path)
    if not isinstance(values, list):
        raise DataError(f"{name}: must hold an array of objects, found {_kind(values)}.")
    bad, rows = BadRows(name, "row"), []
    for number, value in enumerate(values, start=1):
        try:
            rows.append(_object(value))
        except ValueError as error:
            bad.add(number, _reason(error))
    bad.refuse()
    return _json_table(name, rows, range(1, len(rows) + 1), "row")


def read_parquet(path: Path) -> Table:
    """Columns of text and numbers; class names are taken from the metadata that `datasets` writes."""
    import pyarrow
    import pyarrow.parquet

    name = shown(path, LONGEST_PATH)
    try:
        schema = pyarrow.parquet.read_schema(path)
        names = [field.name for field in schema if _is_readable(field.type)]
        content = pyarrow.parquet.read_table(path, columns=names)
        rows = content.to_pylist()
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise DataError(f"{name}: not a readable Parquet file ({one_line(error)}).") from error
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise DataError(f"{name}: column '{shown(twice[0])}' occurs twice.")
    return Table(name, tuple(names), rows, range(1, len(rows) + 1), "row", _class_names(schema.metadata or {}))


def json_value(text: str) -> Any:
    """What JSON text says, without the leniencies of `json.loads`.

    Raises:
        ValueError: not JSON, a number that is not finite or too long, a key twice, too deep, a lone surrogate.
    """
    try:
        value = _DECODER.decode(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def decode(name: str, content: bytes) -> str:
    """UTF-8 text, with or without a byte order mark.

    Raises:
        DataError: compressed, another encoding, or a NUL byte, with its line.
    """
    _refuse_other_format(name, content)
    content = content.removeprefix(b"\xef\xbb\xbf")
    if (nul := content.find(b"\0")) >= 0:
        line = content.count(b"\n", 0, nul) + 1
        raise DataError(f"{name}: line {line}: a NUL byte; this is not a text file.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}: line {line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8."
        ) from error


def _refuse_other_format(name: str, start: bytes) -> None:
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(f"{name}: is compressed ({kind}); unpack it first.")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{name}: is UTF-16; save it as UTF-8.")
    if start.startswith(b"PAR1"):
        raise DataError(f"{name}: is a Parquet file; name it .parquet.")


def _json_table(name: str, rows: Sequence[Row], lines: Sequence[int], unit: Literal["line", "row"]) -> Table:
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    return Table(name, columns, rows, lines, unit)


def _object(value: Any) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"must be an object with keys, found {_kind(value)}")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f"key '{shown(twice)}' occurs twice")
    return row


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"number {digits[:20]} is too large")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_no_constant, parse_float=_finite)


def _kind(value: Any) -> str:
    return {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(
        type(value), "a number"
    )


def _reason(error: ValueError) -> str:
    match error:
        case json.JSONDecodeError():
            return f"not JSON ({error.msg.lower()}, column {error.colno})"
        case UnicodeDecodeError():
            return f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        case UnicodeEncodeError():
            return "half of a surrogate pair is not text"
        case _ if "digits" in str(error):
            return "a number of too many digits"
        case _:
            return str(error)


def one_line(error: BaseException) -> str:
    """What another library says, as a part of a sentence."""
    return shown(" ".join(str(error).split()) or type(error).__name__, 300)


def _is_readable(kind: Any) -> bool:
    """Text, numbers and truth values, lists of them, and lists of messages, which have texts by name."""
    from pyarrow import types

    if types.is_list(kind) and types.is_struct(kind.value_type):
        return all(types.is_string(field.type) or types.is_large_string(field.type) for field in kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind):
        return _is_readable(kind.value_type)
    tests: Iterator[Callable[[Any], bool]] = iter(
        (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
    )
    return any(test(kind) for test in tests)


def _class_names(metadata: Mapping[bytes, bytes]) -> Mapping[str, tuple[str, ...]]:
    """Class names by column from the metadata of a Parquet file that `datasets` wrote."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            column: tuple(map(str, one["names"]))
            for column, feature in features.items()
            if isinstance(feature, dict) and (one := feature.get("feature", feature)).get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
