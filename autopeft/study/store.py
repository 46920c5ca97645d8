"""The study on the disk, and the only writer of it: an Optuna study in SQLite, with events.jsonl beside it.

One search per run folder holds it, under `RunLock`. A trial is begun in one transaction. It ends in this order: the
worker's result file, the outcome and the state in the database, the event; a kill between any two loses nothing, since
`open` catches up. A trial that was running when its search died stays so: it is the search's to run again or to take
from its result file.
"""

import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from autopeft.engine.trial import TrialResult
from autopeft.errors import EnvironmentProblem, StudyBusyError, StudyCorruptError, StudyMismatchError, UsageError
from autopeft.resources import sync_folder
from autopeft.space.modules import Scalar
from autopeft.study import journal, reader
from autopeft.study.database import (
    DATABASE_FILE,
    REBUILD,
    SIDE_FILES,
    check_integrity,
    open_for_reading,
    problem,
    translated_errors,
)
from autopeft.study.events import EVENTS_FILE, EventLog, read
from autopeft.study.identity import FORMAT, Identity, check
from autopeft.study.record import (
    Json,
    StoredStudy,
    StoredTrial,
    TrialRecord,
    TrialStart,
    outcome_to_json,
    start_to_json,
)
