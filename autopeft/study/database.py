"""study.db as a SQLite file: reading it, finding damage, saying what an error of SQLite means.

While a search runs the database is in WAL mode, so that others can read it; at rest it is one plain file.
"""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from autopeft.errors import AutopeftError, EnvironmentProblem, StudyBusyError, StudyCorruptError, UsageError

DATABASE_FILE = "study.db"
SIDE_FILES = ("-wal", "-shm", "-journal")
REBUILD = "Run the same search with --rebuild to restore the study from events.jsonl."

LOCK_SECONDS = 60.0
"""How long to wait for another program that has the database locked."""

_MAGIC = b"SQLite format 3\0"
_LONGEST_VALUE = 64 << 20


@contextmanager
def open_for_reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A read transaction over the whole block: one moment of the study, even while a search writes to it.

    Raises:
        UsageError: there is no such file.
        StudyCorruptError: it is damaged or not a database at all.
        EnvironmentProblem: it cannot be read.
    """
    _look_at_file(path)
    with translated_errors(path, reading=True), closing(_connect(path)) as connection:
        yield connection


def check_integrity(connection: sqlite3.Connection, path: Path) -> None:
    """Let SQLite look for damage, in tables and indices: 20 ms for a thousand trials.

    Raises:
        StudyCorruptError: it found some.
    """
    answer = connection.execute("PRAGMA integrity_check").fetchall()
    if answer != [("ok",)]:
        found = str(answer[0][0]).splitlines()[-1] if answer else "no answer"
        raise StudyCorruptError(f"{path} is damaged: {found}. {REBUILD}")


@contextmanager
def translated_errors(path: Path, *, reading: bool = False) -> Iterator[None]:
    """Raise what SQLite and the system report as an error for people."""
    try:
        yield
    except sqlite3.Error as error:
        raise problem(path, error, reading=reading) from error
    except UnicodeDecodeError as error:  # Python's sqlite3, when SQLite quotes damaged text
        raise StudyCorruptError(f"{path} is damaged: {error}. {REBUILD}") from error
    except OSError as error:
        raise EnvironmentProblem(f"{path}: {error.strerror or error}") from error


def problem(path: Path, error: sqlite3.Error, *, reading: bool = False) -> AutopeftError:
    """What an error of SQLite means for the user."""
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return StudyBusyError(f"{path}: another program keeps the study locked ({error})")
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
        return EnvironmentProblem(f"{path}: the study cannot be opened: {error}")
    if not reading and name.startswith(("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY")):
        return EnvironmentProblem(f"{path}: the study cannot be written: {error}; {_free(path)}")
    return StudyCorruptError(f"{path} is damaged: {error}. {REBUILD}")


def _free(path: Path) -> str:
    try:
        return f"{shutil.disk_usage(path.parent).free:,} bytes are free"
    except OSError:
        return "its folder is gone"


def _look_at_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(len(_MAGIC))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{path.parent}: there is no study here. 'autopeft search --run {path.parent}' makes one."
        ) from None
    except IsADirectoryError:
        raise StudyCorruptError(f"{path} is a folder, not a study. Move it away.") from None
    except OSError as error:
        raise EnvironmentProblem(f"{path}: the study cannot be read: {error.strerror}") from error
    if head != _MAGIC:
        what = "is empty" if not head else "is not a SQLite database"
        raise StudyCorruptError(f"{path} {what}. {REBUILD}")


def _connect(path: Path) -> sqlite3.Connection:
    """Read-only; where WAL cannot be used because the folder is read-only, the file as it is."""
    uri = f"file:{quote(os.fspath(path.absolute()))}?mode=ro"
    try:
        return _begin(uri)
    except sqlite3.OperationalError as error:
        name = error.sqlite_errorname or ""
        has_journal = path.with_name(path.name + "-journal").exists()
        if has_journal or not name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN")):
            raise
        return _begin(f"{uri}&immutable=1")


def _begin(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=LOCK_SECONDS, isolation_level=None)
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # takes the read lock
    except BaseException:
        connection.close()
        raise
    return connection


def enter_wal(path: Path) -> None:
    """Let others read while the search writes.

    Raises:
        StudyCorruptError: the database is damaged; nothing is written.
        AutopeftError: the file cannot be written.
    """
    with translated_errors(path), closing(sqlite3.connect(path, timeout=LOCK_SECONDS)) as connection:
        check_integrity(connection, path)  # on a read-only connection SQLite leaves out CHECK constraints
        connection.execute("PRAGMA journal_mode = WAL")


def leave_wal(path: Path) -> None:
    """Make the study one plain file that can be copied and read anywhere.

    Where a reader has it open, or nothing can be written any more, it stays as it is, which is whole too.
    """
    with suppress(sqlite3.OperationalError):
        _pragma(path, "wal_checkpoint(TRUNCATE)", timeout=5.0)
        _pragma(path, "journal_mode = DELETE", timeout=5.0)


def _pragma(path: Path, pragma: str, timeout: float) -> None:
    connection = sqlite3.connect(path, timeout=timeout)
    try:
        connection.execute(f"PRAGMA {pragma}").fetchall()
    finally:
        connection.close()


def roll_back(path: Path) -> None:
    """Let SQLite undo a transaction that a kill has cut off outside WAL mode; a reader cannot.

    Raises:
        AutopeftError: the file cannot be written, or is no database.
    """
    if path.with_name(path.name + "-journal").exists():
        _look_at_file(path)
        with translated_errors(path):
            _pragma(path, "schema_version", LOCK_SECONDS)
