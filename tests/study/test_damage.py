"""Damaged, foreign and malicious files: refused in words, never accepted in silence, never a traceback."""

import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from autopeft.errors import StudyCorruptError, StudyError, StudyMismatchError
from autopeft.study.reader import read_study
from autopeft.study.store import Store
from tests.study.studies import search

N_MUTANTS = 60


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("sound")
    search(run, 6)
    return run


def some_bytes(data: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice([1, 20])):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def a_zeroed_page(data: bytearray, rng: random.Random) -> bytes:
    page = rng.randrange(len(data) // 4096)
    data[4096 * page : 4096 * (page + 1)] = bytes(4096)
    return bytes(data)


def a_torn_end(data: bytearray, rng: random.Random) -> bytes:
    return bytes(data[: rng.randrange(1, len(data))])


def swapped_pages(data: bytearray, rng: random.Random) -> bytes:
    a, b = (4096 * page for page in rng.sample(range(len(data) // 4096), 2))
    data[a : a + 4096], data[b : b + 4096] = data[b : b + 4096], data[a : a + 4096]
    return bytes(data)


def noise(data: bytearray, rng: random.Random) -> bytes:
    return rng.randbytes(len(data))


def a_changed_word(data: bytearray, rng: random.Random) -> bytes:
    """Sound for SQLite, but not what was written: a digit of the content."""
    digits = [i for i in range(4096, len(data)) if 48 <= data[i] <= 57]
    data[rng.choice(digits)] = rng.choice(b"0123456789")
    return bytes(data)


MUTATIONS = (some_bytes, a_zeroed_page, a_torn_end, swapped_pages, noise, a_changed_word)


def is_sound(path: Path, mode: str) -> bool:
    """What SQLite says; with mode `ro` it leaves out CHECK constraints."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode={mode}", uri=True)) as connection:
            return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    except (sqlite3.Error, UnicodeDecodeError):
        return False


def accepted(function: Callable[[Path], object], run: Path) -> bool:
    try:
        outcome = function(run)
    except StudyError as error:
        assert str(error)
        return False
    if isinstance(outcome, Store):
        outcome.close()
    return True


@pytest.mark.parametrize("seed", range(N_MUTANTS))
def test_a_mutant_is_never_taken_for_the_study(tmp_path, sound, seed):
    check_mutant(tmp_path, sound, seed)


@pytest.mark.nightly
def test_no_mutant_of_five_thousand_is_taken_for_the_study(tmp_path, sound):
    for seed in range(N_MUTANTS, 5000):
        folder = tmp_path / str(seed)
        folder.mkdir()
        check_mutant(folder, sound, seed)
        shutil.rmtree(folder)


def check_mutant(tmp_path: Path, sound: Path, seed: int) -> None:
    rng = random.Random(seed)
    before = read_study(sound).trials
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(sound / "events.jsonl", run)
    mutant = MUTATIONS[seed % len(MUTATIONS)](bytearray((sound / "study.db").read_bytes()), rng)
    (run / "study.db").write_bytes(mutant)
    copy = tmp_path / "copy.db"
    copy.write_bytes(mutant)

    read = accepted(read_study, run)
    assert (run / "study.db").read_bytes() == mutant
    opened = accepted(Store.open, run)
    assert is_sound(copy, "ro") or not read
    assert is_sound(copy, "rw") or not opened
    if opened:
        assert read_study(run).trials == before
    elif seed % 5 == 0:
        assert (run / "study.db").read_bytes() == mutant
        Store.rebuild(run).close()
        assert read_study(run).trials == before


@pytest.mark.parametrize("content", [b"", b"\0", b"not a database\n" * 500, b"SQLite format 3\0"])
def test_what_is_no_database_is_refused(tmp_path, content):
    (tmp_path / "study.db").write_bytes(content)
    for function in (read_study, Store.open):
        with pytest.raises(StudyCorruptError, match=r"study\.db"):
            function(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["study.db"]


def test_a_folder_in_place_of_the_study_is_refused(tmp_path):
    (tmp_path / "study.db").mkdir()
    for function in (read_study, Store.open):
        with pytest.raises(StudyCorruptError, match="folder"):
            function(tmp_path)


def a_table_of_another_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
        connection.commit()


def a_foreign_wal_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
        connection.commit()


def a_plain_optuna_study(path: Path) -> None:
    optuna.create_study(storage=f"sqlite:///{path}", study_name="autopeft", direction="maximize")


def two_studies(path: Path) -> None:
    search(path.parent, 1)
    optuna.create_study(storage=f"sqlite:///{path}", study_name="mine")
    (path.parent / "events.jsonl").unlink()


def test_a_broken_check_constraint_is_noticed_before_anything_is_written(tmp_path, sound):
    shutil.copytree(sound, tmp_path / "run")
    path = tmp_path / "run" / "study.db"
    mutant = path.read_bytes().replace(b"CHECK (version_info_id=1)", b"CHECK (version_info_id=5)")
    path.write_bytes(mutant)
    with pytest.raises(StudyCorruptError, match="CHECK"):
        Store.open(tmp_path / "run")
    assert path.read_bytes() == mutant


def change(path: Path, sql: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(sql, values)
        connection.commit()


def a_newer_format(path: Path) -> None:
    search(path.parent, 1)
    change(path, "UPDATE study_user_attributes SET value_json = ?", json.dumps({"format": 2, "all": "new"}))


def a_view_that_never_ends(path: Path) -> None:
    search(path.parent, 1)
    change(path, "DROP TABLE trial_values")
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i FROM n) SELECT i AS trial_id FROM n"
    change(path, f"CREATE VIEW trial_values AS {endless}")


FOREIGN = (
    a_table_of_another_program,
    a_foreign_wal_database,
    a_plain_optuna_study,
    two_studies,
    a_newer_format,
    a_view_that_never_ends,
)


@pytest.mark.parametrize("make", FOREIGN, ids=lambda make: make.__name__)
def test_a_foreign_database_is_refused_and_not_touched(tmp_path, make):
    path = tmp_path / "study.db"
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    make(path)
    before = path.read_bytes()
    for function in (read_study, Store.open):
        with pytest.raises(StudyMismatchError, match=r"another folder|Upgrade autopeft"):
            function(tmp_path)
        assert path.read_bytes() == before


def test_tables_of_a_newer_optuna_are_refused(tmp_path):
    search(tmp_path, 1)
    change(tmp_path / "study.db", "UPDATE alembic_version SET version_num = 'v99.0.0'")
    with pytest.raises(StudyMismatchError, match="another version of Optuna"):
        Store.open(tmp_path)


MALICE = {
    "endless nesting": ("trial_user_attributes SET value_json = ? WHERE key = 'architecture'", "[" * 100_000),
    "not a number": ("trial_user_attributes SET value_json = ? WHERE key = 'stored'", "NaN"),
    "overflow": ("trial_user_attributes SET value_json = ? WHERE key = 'started'", "1e999"),
    "a huge integer": ("trial_user_attributes SET value_json = ? WHERE key = 'stored'", "1" * 5000),
    "a lone surrogate": ("trial_user_attributes SET value_json = ? WHERE key = 'training'", '{"a": "\\ud800"}'),
    "another type": ("trial_user_attributes SET value_json = ? WHERE key = 'training'", "[1]"),
    "null": ("trial_user_attributes SET value_json = ? WHERE key = 'outcome'", None),
    "bytes": ("trial_user_attributes SET value_json = ? WHERE key = 'outcome'", b"\xff\xfe"),
    "an unknown module": (
        "trial_user_attributes SET value_json = ? WHERE key = 'architecture'",
        '{"version": 1, "placements": [{"stack": "s", "layer": 0, "role": "r", "module": "os.system", "size": 1}]}',
    ),
    "a retry of the future": ("trial_user_attributes SET value_json = ? WHERE key = 'retry_of'", "5"),
    "another score": ("trial_values SET value = ?", 0.999),
    "an infinite score": ("trial_values SET value_type = ?", "INF_POS"),
    "an unknown state": ("trials SET state = ?", "PRUNED"),
    "a number twice": ("trials SET number = ?", 0),
    "a choice that is not there": ("trial_params SET param_value = ? WHERE param_name = 'gate'", 7),
    "text for a number": ("trial_params SET param_value = ? WHERE param_name = 'depth'", "many"),
    "a number out of range": ("trial_params SET param_value = ? WHERE param_name = 'depth'", 999),
    "no distribution": ("trial_params SET distribution_json = ?", "{}"),
    "an identity of another shape": (
        "study_user_attributes SET value_json = ?",
        '{"format": 1, "study": "", "identity": []}',
    ),
    "a head that is a list": ("study_user_attributes SET value_json = ?", "[]"),
}


@pytest.mark.parametrize("name", MALICE)
def test_content_that_cannot_be_is_refused(tmp_path, sound, name):
    shutil.copytree(sound, tmp_path / "run")
    statement, value = MALICE[name]
    change(tmp_path / "run" / "study.db", f"UPDATE {statement}", value)
    for function in (read_study, Store.open):
        with pytest.raises(StudyCorruptError, match=r"study\.db"):
            function(tmp_path / "run")


def test_damaged_events_are_named_by_line(tmp_path, sound):
    shutil.copytree(sound, tmp_path / "run")
    events = tmp_path / "run" / "events.jsonl"
    lines = events.read_bytes().splitlines(keepends=True)
    events.write_bytes(b"".join([*lines[:3], b"{damage\n", *lines[3:]]))
    for function in (Store.open, Store.rebuild):
        with pytest.raises(StudyCorruptError, match=r"events.jsonl:4: .*move events.jsonl away"):
            function(tmp_path / "run")
    assert read_study(tmp_path / "run") == read_study(sound)


def test_rebuilding_from_mutated_events_never_ends_in_a_traceback(tmp_path, sound):
    lines = (sound / "events.jsonl").read_bytes().splitlines(keepends=True)
    rng = random.Random(7)
    for case in range(40):
        run = tmp_path / str(case)
        run.mkdir()
        chosen = rng.randrange(len(lines))
        event = json.loads(lines[chosen])
        fields = [event, *(value for value in event.values() if isinstance(value, dict))]
        target = rng.choice(fields)
        target[rng.choice(list(target))] = rng.choice([None, [], {}, -1, 10**30, "x", True, {"a": 1}])
        mutated = [*lines[:chosen], json.dumps(event).encode() + b"\n", *lines[chosen + 1 :]]
        (run / "events.jsonl").write_bytes(b"".join(mutated))
        if accepted(Store.rebuild, run):
            read_study(run)
        else:
            assert not (run / "study.db").exists()
