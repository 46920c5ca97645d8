"""Making study.db whole or not at all: in a temporary file, which is then given its name."""

import os
import uuid
from contextlib import suppress
from pathlib import Path

import optuna
import psutil

from autopeft.errors import EnvironmentProblem, StudyBusyError
from autopeft.resources import sync_folder
from autopeft.study.database import SIDE_FILES
from autopeft.study.optuna_storage import (
    STUDY_NAME,
    close_storage,
    frozen_trial,
    head,
    open_storage,
    optuna_errors,
)
from autopeft.study.reader import STUDY_ATTRIBUTE, SUMMARY_PREFIX
from autopeft.study.record import StoredStudy


def build(path: Path, study: StoredStudy) -> Path:
    """A database with the whole study in a temporary file beside `path`; the caller puts it in place or removes it.

    Raises:
        EnvironmentProblem: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with optuna_errors(path):
            storage = open_storage(temporary)
            try:
                new = optuna.create_study(storage=storage, study_name=STUDY_NAME, direction="maximize")
                for trial in study.trials:
                    new.add_trial(frozen_trial(trial))
                for key, value in study.summary.items():
                    new.set_user_attr(SUMMARY_PREFIX + key, value)
                new.set_user_attr(STUDY_ATTRIBUTE, head(study))
            finally:
                close_storage(storage)
    except BaseException:
        discard(temporary)
        raise
    return temporary


def put_in_place(temporary: Path, path: Path) -> None:
    """Give a built database its name, all at once and only where there is none yet.

    Raises:
        StudyBusyError: there is one.
        EnvironmentProblem: the folder cannot be written.
    """
    try:
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links; the run folder's lock keeps others out
            if path.exists():
                raise FileExistsError from None
            temporary.rename(path)
    except FileExistsError:
        raise StudyBusyError(f"{path}: another process has made a study here. Run the command again.") from None
    except OSError as error:
        raise EnvironmentProblem(f"{path}: the study cannot be made: {error.strerror}") from error
    finally:
        discard(temporary)
    sync_folder(path.parent)


def discard(temporary: Path) -> None:
    """Remove a temporary database; the file itself last, so that a kill leaves nothing that cannot be found again."""
    for suffix in (*SIDE_FILES, ""):
        with suppress(OSError):
            temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)


def discard_leftovers(path: Path) -> None:
    """Remove temporary databases of processes that were killed while they made them."""
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        pid = leftover.name.split(".")[-3]
        if not (pid.isdecimal() and psutil.pid_exists(int(pid))):
            discard(leftover)


def set_aside(path: Path) -> None:
    """Rename a damaged database, and what belongs to it, to `study.db.corrupt-<n>`."""
    number = 1
    while path.with_name(f"{path.name}.corrupt-{number}").exists():
        number += 1
    for suffix in ("", *SIDE_FILES):
        old = path.with_name(path.name + suffix)
        with suppress(FileNotFoundError):
            old.rename(path.with_name(f"{path.name}.corrupt-{number}{suffix}"))
