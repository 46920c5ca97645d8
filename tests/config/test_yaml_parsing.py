"""Plain scalars, the forms of YAML that are refused, and the lines."""

import pytest

from autopeft.config import parse_yaml
from autopeft.errors import ConfigError


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "x.yaml")
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("1.", 1.0),
        ("-0.0", 0.0),
        ("+3", 3),
        ("0", 0),
        ("0x1F", 31),
        ("0o17", 15),
        ("9223372036854775807", 2**63 - 1),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
    ],
)
def test_a_plain_scalar_follows_the_core_schema(text: str, value: object) -> None:
    data, _ = parse_yaml(f"a: {text}", "x.yaml")
    assert data == {"a": value}
    assert type(data["a"]) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "no",
        "on",
        "yes",
        "off",
        "y",
        "12:30",
        "2020-01-01",
        "2020-01-01T10:00:00Z",
        "1_000",
        "0b1",
        "１２",
        "0x",
        "e5",
        "nan",
    ],
)
def test_what_only_yaml_1_1_reads_as_something_else_is_text(text: str) -> None:
    assert parse_yaml(f"a: {text}", "x.yaml")[0] == {"a": text}


@pytest.mark.parametrize("text", ["'010'", '"010"', "|-\n  010", ">-\n  010"])
def test_a_quoted_scalar_is_text(text: str) -> None:
    assert parse_yaml(f"a: {text}", "x.yaml")[0] == {"a": "010"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("010", "a number must not start with a zero, got 010. For text write '010' in quotes"),
        ("-01.5", "a number must not start with a zero, got -01.5. For text write '-01.5' in quotes"),
        (".nan", "must be a finite number, got .nan"),
        ("-.inf", "must be a finite number, got -.inf"),
        ("1e999", "must be a number up to 1.8e308, got 1e999"),
        ("9223372036854775808", "must be a whole number of at most 64 bits, got 9223372036854775808"),
        ("1" * 5000, f"must be a whole number of at most 64 bits, got {'1' * 39}…"),
        ('"\\0"', "text must not contain the character U+0000"),
        ('"\\ud800"', "text must not contain the character U+D800"),
        ("!!int 5", "tags (!!int) are not allowed. Text can be put in quotes"),
        ("!!python/name:os.system", "tags (!!python/name:os.system) are not allowed. Text can be put in quotes"),
        ("&b 1", "anchors (&b) are not allowed. Write the value out, or use include"),
        ("*b", "aliases (*b) are not allowed. Write the value out, or use include"),
    ],
)
def test_a_value_that_is_refused_is_named_with_its_line_and_key(value: str, message: str) -> None:
    assert problems(f"ok: 1\na: {value}\n") == (f"x.yaml:2: a: {message}",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "x.yaml:2: a: key given twice, first on line 1. Keep one of them"),
        ("b:\n  {a: 1, 'a': 2}", "x.yaml:2: b.a: key given twice, first on line 2. Keep one of them"),
        ("<<: {a: 1}", "x.yaml:1: merge keys (<<) are not allowed. Use include"),
        ("[a]: 1", "x.yaml:1: a key must be text. For a value with braces or brackets use quotes"),
        ("a: {{ b }}", "x.yaml:1: a: a key must be text. For a value with braces or brackets use quotes"),
        ("?\n: 1", "x.yaml:1: a key is missing before the ':'"),
        ("a: 1\n---\nb: 2", "x.yaml:2: a second document starts here. A file holds one"),
        ("%YAML 1.1\n---\na: 1", "x.yaml:1: directives are not allowed, but for %YAML 1.2"),
        ("a: 1\nb:\n\tc: 1", "x.yaml:3: not valid YAML at column 1: a tab cannot indent or separate. Use spaces"),
        ("a: b: c", "x.yaml:1: not valid YAML at column 5: a second ': ' on the line, or a wrong indent. "
                    "Put text with ': ' in quotes"),
        ("a: @b", "x.yaml:1: not valid YAML at column 4: found character '@' that cannot start any token. "
                  "Put the text in quotes"),
        ("a: \x07", "x.yaml:1: character U+0007 is not allowed. In double quotes it can be written \\uXXXX"),
        ("a: 1\r\nb: \u2028", "x.yaml:2: character U+2028 is not allowed. In double quotes it can be written \\uXXXX"),
        ("", "x.yaml:1: the file is empty. Write at least one `key: value`"),
        ("# only a comment", "x.yaml:1: the file is empty. Write at least one `key: value`"),
        ("a: " + "[" * 40, "x.yaml:1: nested deeper than 32 levels"),
        ("[" * 100_000, "x.yaml:1: nested deeper than 32 levels"),
        ("a: [" + "1," * 20_000 + "]", "x.yaml:1: over 20000 values. A config file is smaller"),
        ("a: " + "é" * 130 * 1024, "x.yaml:1: over 256 KB. A config file is smaller"),
    ],
    ids=range(19),
)  # fmt: skip
def test_a_text_that_is_refused_is_named_with_its_line(text: str, message: str) -> None:
    assert problems(text) == (message,)


def test_a_wrong_escape_is_a_problem_of_the_text() -> None:
    (problem,) = problems('a: 1\nb: "\\UFFFFFFFF"')
    assert problem.startswith("x.yaml:2: not valid YAML")


def test_all_refused_values_of_a_text_are_reported_at_once() -> None:
    assert [problem[:8] for problem in problems("a: 010\nb: *c\nb: 1\nd: !e f\n")] == [
        f"x.yaml:{line}" for line in (1, 2, 3, 4)
    ]


def test_keys_are_text() -> None:
    assert parse_yaml("on: 1\n1: 2\n1.0: 3\nnull: 4\n'': 5\n'<<': 6", "x.yaml")[0] == {
        "on": 1, "1": 2, "1.0": 3, "null": 4, "": 5, "<<": 6
    }  # fmt: skip


def test_every_key_and_item_has_its_line() -> None:
    data, lines = parse_yaml("# head\na:\n  b: 1\n  c:\n    - x\n    - y\nd: {e: 1,\n  f: 2}\n", "x.yaml")
    assert data == {"a": {"b": 1, "c": ["x", "y"]}, "d": {"e": 1, "f": 2}}
    assert lines == {
        (): 2, ("a",): 2, ("a", "b"): 3, ("a", "c"): 4, ("a", "c", 0): 5, ("a", "c", 1): 6,
        ("d",): 7, ("d", "e"): 7, ("d", "f"): 8,
    }  # fmt: skip


def test_a_byte_order_mark_and_windows_line_ends_change_nothing() -> None:
    assert parse_yaml("\ufeffa: 1\r\nb: 2\r\n", "x.yaml") == parse_yaml("a: 1\nb: 2\n", "x.yaml")
