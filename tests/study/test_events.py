"""The event log: one line an event, whole or not at all."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.errors import EnvironmentProblem, StudyCorruptError
from autopeft.study.events import EventLog, read

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3)
    ),
    max_leaves=5,
)


def kinds(path):
    return [event["kind"] for event in read(path)]


@given(value=VALUES)
def test_an_event_comes_back_as_it_was(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    log = EventLog(path, clock=lambda: 1_700_000_000.25)
    log.append("first", value=value)
    log.append("second", text="a\u2028b\u0085c\nd")
    log.close()
    assert list(read(path)) == [
        {"time": "2023-11-14T22:13:20.250Z", "kind": "first", "value": value},
        {"time": "2023-11-14T22:13:20.250Z", "kind": "second", "text": "a\u2028b\u0085c\nd"},
    ]


def test_no_file_is_no_events(tmp_path):
    assert kinds(tmp_path / "events.jsonl") == []


def test_a_torn_last_line_is_skipped_and_repaired_wherever_it_is_cut(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.append("kept")
    log.append("cut", text="x" * 40)
    log.close()
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        assert kinds(path) == ["kept"]
        log = EventLog(path)
        log.append("next")
        log.close()
        assert kinds(path) == ["kept", "next"]


def test_a_torn_first_line_and_a_long_one_are_repaired(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"x" * 200_000)
    assert kinds(path) == []
    log = EventLog(path)
    log.append("next")
    log.close()
    assert kinds(path) == ["next"]


@pytest.mark.parametrize(
    "line", [b"", b"nonsense", b"[1]", b'{"time": "now"}', b'{"kind": 3}', b'{"kind": NaN}', b"\xff"]
)
def test_a_damaged_line_in_the_middle_is_named(tmp_path, line):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.append("one")
    log.close()
    path.write_bytes(path.read_bytes() + line + b"\n" + path.read_bytes())
    with pytest.raises(StudyCorruptError, match=r"events\.jsonl:2: not an event"):
        kinds(path)


def test_numbers_that_are_not_finite_are_not_written(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    with pytest.raises(ValueError):
        log.append("bad", value=float("nan"))
    assert not log.path.exists()


def test_a_folder_that_is_gone_is_a_problem_of_the_environment(tmp_path):
    log = EventLog(tmp_path / "gone" / "events.jsonl")
    with pytest.raises(EnvironmentProblem, match=r"events\.jsonl"):
        log.append("lost")


def test_an_event_is_on_the_disk_when_append_returns(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_size), fsync(descriptor))
    )
    log = EventLog(tmp_path / "events.jsonl")
    log.append("kept")
    assert log.path.stat().st_size in synced
    assert json.loads(log.path.read_text())["kind"] == "kept"
