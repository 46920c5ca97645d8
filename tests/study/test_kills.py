"""A search that is killed anywhere goes on as if it had not been.

I1: the database is sound. I2: what the events acknowledge is in it. I3: no trial is left running by the dead once the
search has run again, and the study ends as an uninterrupted one.
"""

import os
import random
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from unittest.mock import patch

import optuna
import pytest

from autopeft.errors import StudyCorruptError
from autopeft.study import creation, store
from autopeft.study.events import EventLog, read
from autopeft.study.reader import read_study
from autopeft.study.store import Store
from tests.study.studies import FORK, N_PLANNED, in_child, kill_oneself, search


def acknowledged(run: Path) -> dict[int, dict]:
    return {e["number"]: e["outcome"]["result"] for e in read(run / "events.jsonl") if e["kind"] == "trial_finished"}


def check_invariants(run: Path) -> None:
    if not (run / "study.db").exists():
        assert not acknowledged(run)
        return
    with closing(sqlite3.connect(run / "study.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    held = {t.number: t.result.to_json() for t in read_study(run).trials if t.result}
    assert acknowledged(run).items() <= held.items()


def what_counts(run: Path) -> list[tuple]:
    return [(t.number, dict(t.params), t.architecture, t.result) for t in read_study(run).trials]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> list[tuple]:
    run = tmp_path_factory.mktemp("uninterrupted")
    search(run)
    return what_counts(run)


def kill_until_done(run: Path, rng: random.Random, n_kills: int, longest: float) -> int:
    """Start a search again and again and kill it at random times; the number of kills before it ended by itself."""
    progress = 0
    for kill in range(n_kills):
        child = FORK.Process(target=search, args=(run,))
        child.start()
        child.join(rng.uniform(0.0, longest))
        if child.exitcode is not None:
            assert child.exitcode == 0
            return kill
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        check_invariants(run)
        assert len(acknowledged(run)) >= progress
        progress = len(acknowledged(run))
    return n_kills


def check_end(run: Path, uninterrupted: list[tuple]) -> None:
    search(run)
    check_invariants(run)
    assert what_counts(run) == uninterrupted
    assert sorted(acknowledged(run)) == list(range(N_PLANNED))
    assert not list(run.glob(".study.db.*"))


def test_fifteen_kills_at_random_times_lose_nothing(tmp_path, uninterrupted):
    rng = random.Random(15)
    kills = study = 0
    while kills < 15:
        study += 1
        assert study < 15, "the search is over before it can be killed"
        run = tmp_path / str(study)
        search(run, 1)  # kills while the study is made have their own tests
        kills += kill_until_done(run, rng, min(5, 15 - kills), longest=0.5)
        check_end(run, uninterrupted)


@pytest.mark.nightly
def test_five_hundred_kills_at_random_times_lose_nothing(tmp_path, uninterrupted):
    rng = random.Random(500)
    kills = study = 0
    while kills < 500:
        study += 1
        kills += kill_until_done(tmp_path / str(study), rng, min(10, 500 - kills), longest=0.5)
        check_end(tmp_path / str(study), uninterrupted)


POINTS = {
    "before the database has its name": (creation.os, "link"),
    "after the database has its name": (store.Store, "open"),
    "between the begin and its event": (store.journal, "started"),
    "between the result file and the outcome": (optuna.storages.RDBStorage, "set_trial_user_attr"),
    "between the outcome and the state": (optuna.Study, "tell"),
    "between the state and the event": (store.journal, "finished"),
    "before the database is one file again": (store, "leave_wal"),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_any_step_loses_nothing(tmp_path, uninterrupted, point):
    owner, name = POINTS[point]

    def killed_search(n_trials: int) -> None:
        with patch.object(owner, name, kill_oneself):
            search(tmp_path, n_trials)

    assert in_child(killed_search, 3) is None
    check_invariants(tmp_path)
    check_end(tmp_path, uninterrupted)


def test_a_torn_event_is_told_again(tmp_path):
    whole_append = EventLog.append

    def torn_append(log: EventLog, kind: str, **fields) -> None:
        if kind == "trial_finished" and fields["number"] == 2:
            with log.path.open("ab") as file:
                file.write(b'{"time":"2026-01-01T00:00:00.000Z","kind":"trial_fin')
            kill_oneself()
        whole_append(log, kind, **fields)

    def killed_search() -> None:
        with patch.object(EventLog, "append", torn_append):
            search(tmp_path, 4)

    assert in_child(killed_search) is None
    check_invariants(tmp_path)
    search(tmp_path, 4)
    assert sorted(acknowledged(tmp_path)) == [0, 1, 2, 3]


def test_a_lost_wal_is_noticed_and_rebuilt(tmp_path):
    def killed_search() -> None:
        with patch.object(store, "leave_wal", kill_oneself), patch.object(store, "close_storage", kill_oneself):
            search(tmp_path, 3)

    assert in_child(killed_search) is None
    before = what_counts(tmp_path)
    (tmp_path / "study.db-wal").unlink()
    with pytest.raises(StudyCorruptError, match="--rebuild"):
        Store.open(tmp_path)
    Store.rebuild(tmp_path).close()
    assert what_counts(tmp_path) == before


def test_what_a_killed_creation_leaves_is_removed_even_by_searches_that_are_killed(tmp_path):
    def killed_search() -> None:
        with patch.object(creation.os, "link", kill_oneself):
            search(tmp_path, 1)

    assert in_child(killed_search) is None
    (leftover,) = tmp_path.glob(".study.db.*.tmp")
    leftover.with_name(leftover.name + "-journal").touch()
    search(tmp_path, 1)
    leftover.touch()
    leftover.with_name(leftover.name + "-journal").touch()
    unlink = Path.unlink

    def unlink_and_die(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        if path.name.startswith(".study.db"):
            kill_oneself()

    def killed_resumption() -> None:
        with patch.object(Path, "unlink", unlink_and_die):
            search(tmp_path, 1)

    assert in_child(killed_resumption) is None
    search(tmp_path, 1)
    assert not [p.name for p in tmp_path.glob(".study.db.*")]
