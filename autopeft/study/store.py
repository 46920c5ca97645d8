"""The study on the disk, and the only writer of it: an Optuna study in SQLite, with events.jsonl beside it.

One search per run folder holds it, under `RunLock`. A trial is begun in one transaction. It ends in this order: the
worker's result file, the outcome and the state in the database, the event; a kill between any two loses nothing, since
`open` catches up. A trial that was running when its search died stays so: it is the search's to run again or to take
from its result file.
"""

import json
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json

from autopeft.engine.trial import TrialResult
from autopeft.errors import StudyBusyError, StudyCorruptError, StudyMismatchError
from autopeft.space.modules import Scalar
from autopeft.study import journal
from autopeft.study.creation import build, discard_leftovers, put_in_place, set_aside
from autopeft.study.database import (
    DATABASE_FILE,
    REBUILD,
    SIDE_FILES,
    check_integrity,
    enter_wal,
    leave_wal,
    open_for_reading,
    roll_back,
    translated_errors,
)
from autopeft.study.events import EVENTS_FILE, EventLog, read
from autopeft.study.identity import Identity, Part, check
from autopeft.study.optuna_storage import STATES, close_storage, frozen_trial, head, load_study, optuna_errors
from autopeft.study.reader import OUTCOME_ATTRIBUTE, STUDY_ATTRIBUTE, SUMMARY_PREFIX, decode, load
from autopeft.study.record import (
    Json,
    StoredStudy,
    StoredTrial,
    TrialRecord,
    TrialStart,
    outcome_to_json,
    start_to_json,
)
from autopeft.study.strict_json import normal

__all__ = ["Identity", "Part", "Store", "TrialRecord", "TrialStart", "check"]


class Store:
    """A study that is open for writing; made by `create`, `open` or `rebuild`, ended by `close` or a `with` block."""

    def __init__(
        self, run: Path, stored: StoredStudy, trials: Iterable[TrialRecord], clock: Callable[[], float]
    ) -> None:
        self.run = run
        self.events = EventLog(run / EVENTS_FILE, clock)
        """Open to other kinds of events too."""
        self._path = run / DATABASE_FILE
        self._clock = clock
        self._stored = stored
        self._trials = list(stored.trials)
        self._records = list(trials)
        self._summary = dict(stored.summary)
        self._pending: deque[tuple[str, Json]] = deque()
        self._storage, self.study = load_study(self._path)
        self._study_id = self._storage.get_study_id_from_name(self.study.study_name)

    @classmethod
    def create(cls, run: Path, identity: Identity, clock: Callable[[], float] = time.time) -> "Store":
        """A new study in `run`, which is made if need be.

        Raises:
            StudyBusyError: there is one already.
            StudyCorruptError: there was one, whose database is gone.
            EnvironmentProblem: the folder cannot be written.
        """
        path = run / DATABASE_FILE
        with translated_errors(path):
            run.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise StudyBusyError(f"{path}: there is a study here already.")
        _refuse_lost_study(run)
        put_in_place(build(path, StoredStudy(uuid.uuid4().hex, normal(identity.to_json()))), path)
        return cls.open(run, clock)

    @classmethod
    def open(cls, run: Path, clock: Callable[[], float] = time.time) -> "Store":
        """The study in `run`, checked and brought up to its last step. Nothing is written before the checks are passed.

        Raises:
            UsageError: there is none.
            StudyCorruptError: it is damaged, or has not what events.jsonl acknowledges.
            StudyMismatchError: it is not a study of this or an earlier autopeft.
            EnvironmentProblem: it cannot be read or written.
        """
        path = run / DATABASE_FILE
        if not path.exists():
            _refuse_lost_study(run)
        roll_back(path)
        with open_for_reading(path) as connection:
            check_integrity(connection, path)
            stored, running = load(connection, path)
        trials = decode(stored, path).trials
        events = run / EVENTS_FILE
        missing = tuple(journal.missing_events(stored, journal.replay(read(events), events), path))
        store = cls(run, stored, trials, clock)
        try:
            discard_leftovers(path)
            enter_wal(path)
            for number in running:
                if stored.trials[number].outcome is not None:
                    store._tell(stored.trials[number])
            store._acknowledge(*missing)
        except BaseException:
            store.close()
            raise
        return store

    @classmethod
    def rebuild(cls, run: Path, clock: Callable[[], float] = time.time) -> "Store":
        """The study made anew from events.jsonl; a database that is there is kept as `study.db.corrupt-<n>`.

        Raises:
            StudyCorruptError: events.jsonl does not hold a study, or is damaged itself.
            EnvironmentProblem: the folder cannot be written.
        """
        path, events = run / DATABASE_FILE, run / EVENTS_FILE
        study = journal.replay(read(events), events)
        if study is None:
            raise StudyCorruptError(f"{events} holds no study to rebuild from.")
        decode(study, events)
        try:
            temporary = build(path, study)
        except (ValueError, TypeError, LookupError) as error:
            raise StudyCorruptError(f"{events} holds parameters that Optuna does not take: {error}") from error
        set_aside(path)
        put_in_place(temporary, path)
        return cls.open(run, clock)

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def identity(self) -> Identity:
        return Identity.from_json(self._stored.identity)

    @property
    def trials(self) -> tuple[TrialRecord, ...]:
        """By number, which counts from 0 without gaps."""
        return tuple(self._records)

    @property
    def summary(self) -> Mapping[str, Any]:
        return MappingProxyType(self._summary)

    def unfinished(self) -> list[TrialRecord]:
        """Trials that have begun and not ended: running ones and, after a kill, those to be run again."""
        return [record for record in self._records if record.state == "running"]

    def extend(self, current: Identity) -> tuple[str, ...]:
        """Check that the study is the one that `current` describes, and note grown totals and changed versions.

        Returns warnings.

        Raises:
            StudyMismatchError: it is another one; names every difference, and nothing is written.
        """
        warnings = check(self.identity, current)
        identity = normal(current.to_json())
        if identity != self._stored.identity:
            changed = replace(self._stored, identity=identity)
            with optuna_errors(self._path):
                self.study.set_user_attr(STUDY_ATTRIBUTE, head(changed))
            self._stored = changed
            self._acknowledge((journal.CHANGED, {"identity": identity}))
        return warnings

    def begin(
        self, params: Mapping[str, Scalar], distributions: Mapping[str, BaseDistribution], start: TrialStart
    ) -> int:
        """Record that a trial begins; its number.

        Raises:
            StudyMismatchError: a parameter is not what its distribution, or that of an earlier trial, allows.
            EnvironmentProblem: the disk is full. The trial has begun if `trials` holds it.
        """
        number = len(self._trials)
        try:
            # Once through Optuna's own form and back, so that memory and file hold the same numbers.
            values = {n: d.to_external_repr(d.to_internal_repr(params[n])) for n, d in distributions.items()}
            trial = StoredTrial(
                number,
                values | {n: v for n, v in params.items() if n not in values},
                {n: json.loads(distribution_to_json(d)) for n, d in distributions.items()},
                normal(start_to_json(start, self._clock())),
                None,
            )
            record = trial.record()
            frozen = frozen_trial(trial)
            with optuna_errors(self._path):
                # What Study.add_trial does, which does not tell the number.
                trial_id = self._storage.create_new_trial(self._study_id, template_trial=frozen)
                given = self._storage.get_trial_number_from_id(trial_id)
        except (ValueError, KeyError) as error:
            raise StudyMismatchError(f"trial {number} does not fit the study: {error}") from error
        if given != number:
            raise StudyBusyError(f"{self._path}: another process writes to the study.")
        self._trials.append(trial)
        self._records.append(record)
        self._acknowledge((journal.STARTED, journal.started(trial)))
        return number

    def finish(self, number: int, result: TrialResult) -> None:
        """Record how a trial ended. Again with the same result: nothing happens.

        Raises:
            StudyMismatchError: there is no such trial, or it has ended otherwise.
            EnvironmentProblem: the disk is full; can be repeated.
        """
        if not 0 <= number < len(self._trials) or result.number != number:
            raise StudyMismatchError(f"there is no trial {number} that result {result.number} could be of")
        trial = self._trials[number]
        if trial.outcome is not None and trial.outcome["result"] != normal(result.to_json()):
            raise StudyMismatchError(f"trial {number} has already ended with another result")
        if trial.outcome is not None:
            self._acknowledge()
            return
        # The clock may have been set back meanwhile.
        finished = max(self._clock(), self._records[number].started)
        trial = replace(trial, outcome=normal(outcome_to_json(result, finished)))
        record = trial.record()
        with optuna_errors(self._path):
            self._storage.set_trial_user_attr(self._trial_id(number), OUTCOME_ATTRIBUTE, trial.outcome)
        self._tell(trial)
        self._trials[number] = trial
        self._records[number] = record
        self._acknowledge((journal.FINISHED, journal.finished(trial)))

    def set_summary(self, key: str, value: Any) -> None:
        """Record a fact about the study as a whole; `value` is JSON. An earlier one of this name is replaced."""
        value = normal(value)
        with optuna_errors(self._path):
            self.study.set_user_attr(SUMMARY_PREFIX + key, value)
        self._summary[key] = value
        self._acknowledge((journal.SUMMARY, {"key": key, "value": value}))

    def close(self) -> None:
        """Leave one plain file. Can be called again."""
        self.events.close()
        close_storage(self._storage)
        leave_wal(self._path)

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def _tell(self, trial: StoredTrial) -> None:
        assert trial.outcome is not None
        result = trial.outcome["result"]
        with optuna_errors(self._path):
            self.study.tell(trial.number, result["score"], state=STATES[result["state"]])

    def _acknowledge(self, *events: tuple[str, Json]) -> None:
        """Write events of what the database holds. Those that a full disk has kept back come first, next time."""
        self._pending.extend(events)
        while self._pending:
            kind, fields = self._pending[0]
            self.events.append(kind, **fields)
            self._pending.popleft()


def _refuse_lost_study(run: Path) -> None:
    """Raise where the database is gone but what belongs to it is not."""
    path, events = run / DATABASE_FILE, run / EVENTS_FILE
    told = journal.replay(read(events), events)
    if told is not None and told.trials:
        raise StudyCorruptError(f"{path} is gone, but {events} tells of {len(told.trials)} trials. {REBUILD}")
    for suffix in SIDE_FILES:
        if (side := path.with_name(path.name + suffix)).exists() and not path.exists():
            raise StudyCorruptError(f"{path} is gone, but {side.name} is here. Move it away to start anew.")
