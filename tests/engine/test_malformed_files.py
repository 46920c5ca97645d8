"""Broken JSONL, JSON, CSV and TSV: the error names the line, and no row is ever lost without a word.

The fuzz counts: either a DataError, or as many rows as the file has lines that are not blank.
"""

import csv
import io
import json
import random
import re

import pytest

from autopeft.engine.data import load_data
from autopeft.engine.recipe import TaskSpec
from autopeft.errors import DataError

TASK = TaskSpec()
N = 24
TEXTS = [f"text {i}, with a comma" if i % 3 == 0 else f"text {i} without" for i in range(N)]
LABELS = [("no", "yes")[i % 2] for i in range(N)]


def jsonl() -> bytes:
    return "".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in zip(TEXTS, LABELS, strict=True)).encode()


def delimited(mark: str) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=mark, lineterminator="\n")
    writer.writerow(["text", "label"])
    writer.writerows(zip(TEXTS, LABELS, strict=True))
    return out.getvalue().encode()


def load(path, content: bytes):
    path.write_bytes(content)
    return load_data(TASK, path)


def refused(path, content: bytes) -> str:
    with pytest.raises(DataError) as error:
        load(path, content)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 2000
    return message


def n_rows(data) -> int:
    return sum(len(split) for split in data.splits.values())


def with_line(number: int, line: str | bytes) -> bytes:
    lines = jsonl().split(b"\n")
    lines[number - 1] = line if isinstance(line, bytes) else line.encode()
    return b"\n".join(lines)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "a", "label": NaN}', "line 5: NaN is not JSON"),
        ('{"text": "a", "label": -Infinity}', "line 5: -Infinity is not JSON"),
        ('{"text": "a", "label": 1e999}', "line 5: number 1e999 is too large"),
        ('{"text": "a", "label": "no", "text": "b"}', "line 5: key 'text' occurs twice"),
        ('{"text": "\\ud800", "label": "no"}', "line 5: half of a surrogate pair"),
        ('{"text": "a", "label": "no"', "line 5: not JSON (expecting ',' delimiter, column"),
        ('{"text": "a", "label": "no"} {}', "line 5: not JSON (extra data, column"),
        ("{'text': 'a'}", "line 5: not JSON"),
        ("[1, 2]", "line 5: must be an object with keys, found an array"),
        ("null", "line 5: must be an object with keys, found null"),
        ("7", "line 5: must be an object with keys, found a number"),
        ('{"text": "a"}', "line 5: no label in 'label'"),
        ('{"txt": "a", "label": "no"}', "line 5: no text in 'text'"),
        ('{"text": ["a"], "label": "no"}', "line 5: 'text' is not text but list"),
        ("[" * 100_000, "line 5: nested too deeply"),
        ('{"text": "a", "label": ' + "9" * 5000 + "}", "line 5: a number of too many digits"),
        (b'{"text": "\xff", "label": "no"}', "line 5: byte 0xff is not UTF-8"),
        (b"\0\0\0", "line 5: not JSON"),
        ('{"text": "a\tb", "label": "no"}', "line 5: not JSON (invalid control character"),
    ],
)
def test_a_bad_line_of_jsonl_is_named(tmp_path, line, problem):
    assert problem in refused(tmp_path / "a.jsonl", with_line(5, line))


def test_the_first_five_bad_lines_are_shown_and_all_are_counted(tmp_path):
    message = refused(tmp_path / "a.jsonl", jsonl().replace(b"{", b"(", 9))
    assert "9 rows cannot be read: line 1: " in message
    assert "line 5: " in message
    assert "line 6" not in message
    assert "; and 4 more. Correct or remove them." in message


def test_a_byte_order_mark_crlf_and_blank_lines_are_no_harm(tmp_path):
    plain = load(tmp_path / "a.jsonl", jsonl()).content_hash
    for content in (b"\xef\xbb\xbf" + jsonl(), jsonl().replace(b"\n", b"\r\n"), jsonl().replace(b"\n", b"\n\n\n")):
        assert load(tmp_path / "a.jsonl", content).content_hash == plain
    for mark, suffix in [(",", "csv"), ("\t", "tsv")]:
        for content in (delimited(mark), b"\xef\xbb\xbf" + delimited(mark), delimited(mark).replace(b"\n", b"\r\n")):
            assert load(tmp_path / f"a.{suffix}", content + b"\n\n").content_hash == plain


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_only_a_line_feed_ends_a_line(tmp_path, character):
    content = jsonl().replace(
        b"text 4 ", json.dumps(f"text 4{character}", ensure_ascii=character < "\x20").encode()[1:-1]
    )
    assert n_rows(load(tmp_path / "a.jsonl", content)) == N
    for mark, suffix in [(",", "csv"), ("\t", "tsv")]:
        data = load(tmp_path / f"a.{suffix}", delimited(mark).replace(b"text 4 ", f"text 4{character}".encode()))
        assert n_rows(data) == N


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "json"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("text,label\na,1\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        (b"\x1f\x8b\x08\x00", "is compressed (gzip); unpack it first"),
        (b"PK\x03\x04\x00", "is compressed (zip)"),
        (b"PAR1\x00", "is a Parquet file"),
    ],
)
def test_other_formats_are_called_by_their_names(tmp_path, suffix, content, problem):
    assert problem in refused(tmp_path / f"a.{suffix}", content)


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_other_encodings_are_refused_with_the_line(tmp_path, suffix):
    content = delimited("," if suffix == "csv" else "\t")
    assert "line 6: byte 0xe9 is not UTF-8" in refused(
        tmp_path / f"a.{suffix}", content.replace(b"text 4", b"t\xe9xt 4")
    )
    assert "line 6: a NUL byte" in refused(tmp_path / f"a.{suffix}", content.replace(b"text 4", b"t\0xt 4"))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (b"text 4 without,no", b"text 4 without", "line 6: 1 fields where the header has 2"),
        (b"text 4 without,no", b"text 4, without,no", "line 6: 3 fields where the header has 2"),
        (b"text 4 without,no", b'"text 4 without,no', "line 6: "),
        (b"text 4 without,no", b'"text 4" without,no', "line 6: "),
        (b"text 22 without,no", b'"text 22 without,no', "line 24: unexpected end of data"),
        (b"text 4 without,no", b"text 4 without,", "line 6: no label"),
    ],
)
def test_a_bad_line_of_csv_is_named(tmp_path, old, new, problem):
    assert problem in refused(tmp_path / "a.csv", delimited(",").replace(old, new))


def test_two_stray_quotes_that_swallow_whole_rows_are_found(tmp_path):
    content = (
        delimited(",").replace(b"text 4 without", b'"text 4 without').replace(b"text 5 without", b'text 5 without"')
    )
    assert "line 6: lies inside a quoted field, but looks like a row" in refused(tmp_path / "a.csv", content)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"text 18, with a comma",no\ntext 19 without,yes', b'"text 18, with a comma"",no\ntext 19 without",yes'),
        (b'"text 21, with a comma",yes\ntext 22 without,no', b'"text 21, with a comma","yes\ntext 22 without,no"'),
    ],
)
def test_stray_quotes_around_commas_and_labels_are_found_too(tmp_path, old, new):
    assert old in delimited(",")
    assert "quote" in refused(tmp_path / "a.csv", delimited(",").replace(old, new))


def test_a_quoted_text_may_run_over_lines(tmp_path):
    poem = b'"first, line\nsecond ""line"", with, commas\n\nlast line"'
    data = load(tmp_path / "a.csv", delimited(",").replace(b"text 4 without", poem))
    texts = {texts for split in data.splits.values() for texts in split.texts}
    assert ('first, line\nsecond "line", with, commas\n\nlast line',) in texts
    assert n_rows(data) == N


def test_quotes_in_a_tsv_are_letters_unless_the_file_is_quoted(tmp_path):
    literal = delimited("\t").replace(b"text 4 ", b'"text 4" ').replace(b"text 5 ", b'5" ')
    texts = {t for split in load(tmp_path / "a.tsv", literal).splits.values() for (t,) in split.texts}
    assert {'"text 4" without', '5" without'} <= texts
    quoted = delimited("\t").replace(b"text 4 without", b'"text ""4""\tx"').replace(b"text 5 without", b'"5"')
    texts = {t for split in load(tmp_path / "a.tsv", quoted).splits.values() for (t,) in split.texts}
    assert {'text "4"\tx', "5"} <= texts
    all_quoted = delimited("\t").replace(b"text 4 without", b'"text ""4"""')
    texts = {t for split in load(tmp_path / "a.tsv", all_quoted).splits.values() for (t,) in split.texts}
    assert 'text "4"' in texts


@pytest.mark.parametrize(("mark", "word"), [(";", "semicolons"), ("\t", "tabs")])
def test_a_csv_with_another_mark_is_read_and_said(tmp_path, mark, word):
    data = load(tmp_path / "a.csv", delimited(mark))
    assert n_rows(data) == N
    assert f"columns are separated by {word}" in data.notes


def test_a_column_without_a_name_is_no_harm(tmp_path):
    lines = delimited(",").decode().splitlines()
    indexed = "\n".join([f",{lines[0]}", *(f"{i},{line}" for i, line in enumerate(lines[1:]))])
    assert n_rows(load(tmp_path / "a.csv", indexed.encode())) == N


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'[{"text": "a", "label": 1}, 7, null]', "row 2: must be an object with keys, found a number; row 3: "),
        (b'[{"text": "a",\n"label": }]', "line 2: not JSON (expecting value)"),
        (b'[{"text": "a", "label": NaN}]', "NaN is not JSON"),
        (b'[{"a": 1, "a": 2}]', "key 'a' occurs twice"),
        (b'"text"', "must hold an array of objects, found a string"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_json_file_is_refused(tmp_path, content, problem):
    assert problem in refused(tmp_path / "a.json", content)


def test_a_json_file_that_is_jsonl_is_read_as_such(tmp_path):
    assert load(tmp_path / "a.json", jsonl()).content_hash == load(tmp_path / "a.jsonl", jsonl()).content_hash


def test_a_line_of_10_mb_is_a_row(tmp_path):
    long = json.dumps({"text": "x" * 10_000_000, "label": "no"})
    assert n_rows(load(tmp_path / "a.jsonl", with_line(5, long))) == N
    assert "field larger than field limit" in refused(
        tmp_path / "a.csv", delimited(",").replace(b"text 4 ", b"x" * 10_000_000)
    )


# Fuzz

PIECES = [
    b'"',
    b'""',
    b",",
    b"\t",
    b"\r",
    b"\n",
    b"\\",
    b"{",
    b"}",
    b"[",
    b":",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
]
PIECES += [b"\\ud800", b"NaN", b"1e999", b"null", b"9" * 5000, b'"text":', b"label", b"\xc3\xa9"]


def mutant(content: bytes, rng: random.Random) -> bytes:
    """One or two bytes flipped, pieces put in, parts cut out, doubled or turned round."""
    for _ in range(rng.randint(1, 2)):
        a = rng.randrange(len(content) + 1)
        b = min(len(content), a + rng.randint(1, 30))
        match rng.randrange(6):
            case 0 if a < len(content):
                content = content[:a] + bytes([rng.randrange(256)]) + content[a + 1 :]
            case 1 | 2:
                content = content[:a] + rng.choice(PIECES) + content[a:]
            case 3:
                content = content[:a] + content[b:]
            case 4:
                content = content[:b] + content[a:]
            case _:
                content = content[:a] if rng.random() < 0.2 else content[:a] + content[a:b][::-1] + content[b:]
    return content


def expected_rows(kind: str, content: bytes) -> int:
    """Rows that a reader of lines finds; line breaks within quotes do not count where the quotes are in order."""
    content = content.removeprefix(b"\xef\xbb\xbf")
    if kind == "jsonl":
        return sum(bool(line.strip()) for line in content.split(b"\n"))
    text = content.decode()
    lines = [line for line in re.split(r"\r\n|\r|\n" if kind == "csv" else r"\n", text) if line.strip("\r")]
    return len(lines) - 1


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_a_mutant_is_refused_or_keeps_every_row(tmp_path, kind):
    rng = random.Random(f"mutants of {kind}")
    base = {"jsonl": jsonl(), "csv": delimited(","), "tsv": delimited("\t")}[kind]
    path, accepted = tmp_path / f"a.{kind}", 0
    for _ in range(100):
        content = mutant(base, rng)
        try:
            data = load(path, content)
        except DataError as error:
            assert "\n" not in str(error)
            continue
        accepted += 1
        in_quotes = 0
        if kind != "jsonl":
            fields = [text for split in data.splits.values() for (text,) in split.texts] + list(data.label_names)
            in_quotes = sum(len(re.findall(r"\r\n|\r|\n", field)) for field in fields)
        assert n_rows(data) >= expected_rows(kind, content) - in_quotes, content
        assert in_quotes <= 4, content
    assert accepted >= 5, "the mutants are too broken to show anything"


def test_quotes_put_anywhere_swallow_no_row(tmp_path):
    rng = random.Random(2)
    for _ in range(100):
        content = delimited(",")
        for _ in range(2):
            place = rng.randrange(12, len(content))
            content = content[:place] + b'"' + content[place:]
        try:
            data = load(tmp_path / "a.csv", content)
        except DataError:
            continue
        assert n_rows(data) == N, content
