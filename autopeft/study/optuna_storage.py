"""study.db as Optuna sees it: opened durably, quietly, and with errors for people.

Plain Optuna can open the file: `optuna.load_study(study_name="autopeft", storage="sqlite:///study.db")`.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import optuna
from optuna.distributions import json_to_distribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from autopeft.errors import StudyCorruptError, StudyMismatchError
from autopeft.study.database import LOCK_SECONDS, REBUILD, problem
from autopeft.study.identity import FORMAT
from autopeft.study.reader import OUTCOME_ATTRIBUTE
from autopeft.study.record import Json, StoredStudy, StoredTrial
from autopeft.study.strict_json import dump

STUDY_NAME = "autopeft"
STATES = {"complete": TrialState.COMPLETE, "failed": TrialState.FAIL, "pruned": TrialState.PRUNED}
"""Of trials that have ended. A pruned one has no value, though Optuna could give it that of its last epoch."""


def open_storage(path: Path) -> RDBStorage:
    """Optuna's storage on `path`; every commit is on the disk when it returns."""

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=LOCK_SECONDS, check_same_thread=False)
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    # The connections are made here because Optuna formats the URL: a path with braces would not survive that.
    return RDBStorage("sqlite://", engine_kwargs={"creator": connect, "poolclass": QueuePool})


def close_storage(storage: RDBStorage) -> None:
    storage.remove_session()
    storage.engine.dispose()


@contextmanager
def optuna_errors(path: Path) -> Iterator[None]:
    """Optuna without its log lines, and with its storage errors translated.

    The level is set back afterwards: whoever uses Optuna in the same process keeps its messages.
    """
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError, sqlite3.Error) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, sqlite3.Error):
            cause = getattr(cause, "orig", None) or cause.__cause__
        if cause is None:
            raise StudyCorruptError(f"{path} is damaged: {error}. {REBUILD}") from error
        raise problem(path, cause) from error
    finally:
        optuna.logging.set_verbosity(level)


def frozen_trial(trial: StoredTrial) -> FrozenTrial:
    """The trial as one value, so that Optuna stores it in one transaction.

    Raises:
        ValueError: a parameter is not what its distribution allows.
    """
    state, score, attributes = TrialState.RUNNING, None, dict(trial.start)
    if trial.outcome is not None:
        score, state = trial.outcome["result"]["score"], STATES[trial.outcome["result"]["state"]]
        attributes[OUTCOME_ATTRIBUTE] = trial.outcome
    frozen = create_trial(
        state=state,
        value=score,
        params=dict(trial.params),
        distributions={name: json_to_distribution(dump(text)) for name, text in trial.distributions.items()},
        user_attrs=attributes,
    )
    frozen.datetime_start = datetime.fromtimestamp(trial.start["started"])
    if trial.outcome is not None:
        frozen.datetime_complete = datetime.fromtimestamp(trial.outcome["finished"])
    return frozen


def head(study: StoredStudy) -> Json:
    """The attribute that marks a study as ours."""
    return {"format": FORMAT, "study": study.id, "identity": study.identity}


def load_study(path: Path) -> tuple[RDBStorage, optuna.Study]:
    """Optuna's view of a database that has been checked.

    Raises:
        StudyMismatchError: its tables are of another version of Optuna.
        StudyCorruptError: Optuna cannot read it.
    """
    with optuna_errors(path):
        try:
            storage = open_storage(path)
            study = optuna.load_study(study_name=None, storage=storage)
            directions = study.directions
        except RuntimeError as error:  # how Optuna says that the tables are of another version
            raise StudyMismatchError(f"{path} was made by another version of Optuna: {error}") from error
        except (LookupError, ValueError, TypeError, AssertionError) as error:
            raise StudyCorruptError(f"{path} is damaged: {error!r}. {REBUILD}") from error
    if directions != [optuna.study.StudyDirection.MAXIMIZE]:
        close_storage(storage)
        raise StudyCorruptError(f"{path} is damaged: its score is not to be maximised. {REBUILD}")
    return storage, study
