"""One search per run folder, and what the second one is told."""

import json
import os
import socket
import sys

import pytest

from autopeft.errors import EnvironmentProblem, StudyBusyError
from autopeft.study.lock import OWNER_FILE, RunLock, read_owner
from tests.study.studies import FORK, in_child, kill_oneself


def test_a_second_search_is_told_who_holds_the_folder(tmp_path):
    with RunLock(tmp_path, clock=lambda: 1_700_000_000.0):
        busy = in_child(lambda: RunLock(tmp_path).__enter__())
    assert isinstance(busy, StudyBusyError)
    for fact in (str(tmp_path), f"pid {os.getpid()}", socket.gethostname(), "2023-11-14T22:13:20Z", sys.argv[0]):
        assert fact in str(busy)


def test_the_same_process_cannot_hold_a_folder_twice(tmp_path):
    with RunLock(tmp_path), pytest.raises(StudyBusyError):
        RunLock(tmp_path).__enter__()


def test_a_folder_is_free_again_after_its_search(tmp_path):
    run = tmp_path / "new" / "run"
    for _ in range(2):
        with RunLock(run):
            owner = read_owner(run)
            assert owner is not None and owner.pid == os.getpid()
        assert read_owner(run) is None


def test_the_lock_of_a_killed_search_is_taken_over(tmp_path):
    def die_holding() -> None:
        with RunLock(tmp_path):
            kill_oneself()

    assert in_child(die_holding) is None
    assert (tmp_path / OWNER_FILE).exists()
    assert read_owner(tmp_path) is None
    with RunLock(tmp_path):
        owner = read_owner(tmp_path)
        assert owner is not None and owner.pid == os.getpid()


def test_a_process_is_not_taken_for_an_earlier_one_with_its_pid(tmp_path):
    with RunLock(tmp_path):
        note = json.loads((tmp_path / OWNER_FILE).read_text())
    (tmp_path / OWNER_FILE).write_text(json.dumps(note | {"process": "an earlier one"}))
    assert read_owner(tmp_path) is None
    (tmp_path / OWNER_FILE).write_text(json.dumps(note | {"process": "an earlier one", "host": "elsewhere"}))
    owner = read_owner(tmp_path)
    assert owner is not None and owner.host == "elsewhere"


@pytest.mark.parametrize(
    "note", ["", "[]", "{", '{"pid": 1}', "[" * 100_000, '{"host":1,"pid":1,"started":1,"process":1,"command":1}']
)
def test_a_damaged_note_is_no_owner(tmp_path, note):
    (tmp_path / OWNER_FILE).write_text(note)
    assert read_owner(tmp_path) is None
    with RunLock(tmp_path):
        pass


def test_many_searches_at_once_are_one_search(tmp_path):
    together, held, done = FORK.Barrier(6), FORK.Value("i", 0), FORK.Barrier(6)

    def compete() -> str:
        together.wait()
        try:
            with RunLock(tmp_path):
                with held.get_lock():
                    held.value += 1
                done.wait()
        except StudyBusyError:
            done.wait()
            return "busy"
        return "held"

    children = [FORK.Process(target=compete) for _ in range(6)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 6
    assert held.value == 1


def test_a_folder_that_cannot_be_made_is_a_problem_of_the_environment(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        RunLock(tmp_path / "file" / "run").__enter__()
