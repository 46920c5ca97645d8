"""The study as events.jsonl tells it, and what that file and study.db owe each other.

Every step is first in the database, then in the events. So the database may be ahead by what a kill has cut off, and
`missing_events` catches up; events that the database does not have mean that it has lost something.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from autopeft.errors import StudyCorruptError, StudyMismatchError
from autopeft.study.database import REBUILD
from autopeft.study.events import Event
from autopeft.study.record import Json, StoredStudy, StoredTrial

CREATED = "study_created"
CHANGED = "study_changed"
STARTED = "trial_started"
FINISHED = "trial_finished"
SUMMARY = "summary"


def created(study: StoredStudy) -> Json:
    return {"study": study.id, "identity": study.identity}


def started(trial: StoredTrial) -> Json:
    return {
        "number": trial.number,
        "params": dict(trial.params),
        "distributions": dict(trial.distributions),
        "trial": trial.start,
    }


def finished(trial: StoredTrial) -> Json:
    return {"number": trial.number, "outcome": trial.outcome}


def replay(events: Iterable[Event], path: Path) -> StoredStudy | None:
    """The study that the events tell of; None where they tell of none. Events of other kinds are passed over.

    Raises:
        StudyCorruptError: the events contradict one another.
    """
    study: StoredStudy | None = None
    trials: list[StoredTrial] = []
    summary: Json = {}
    for event in events:
        try:
            match event["kind"]:
                case "study_created":
                    study, trials, summary = StoredStudy(_text(event["study"]), event["identity"]), [], {}
                case "study_changed" if study:
                    study = replace(study, identity=event["identity"])
                case "trial_started" if study:
                    trials.append(_start(event, len(trials)))
                case "trial_finished" if study:
                    number = range(len(trials)).index(event["number"])
                    trials[number] = replace(trials[number], outcome=event["outcome"])
                case "summary" if study:
                    summary[_text(event["key"])] = event["value"]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise StudyCorruptError(f"{path}: the event '{event['kind']}' of {event.get('time')} is damaged") from error
    return replace(study, trials=tuple(trials), summary=summary) if study else None


def _start(event: Event, number: int) -> StoredTrial:
    if event["number"] != number:
        raise ValueError(f"trial {number} is missing")
    return StoredTrial(number, event["params"], event["distributions"], event["trial"], None)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text is needed")
    return value


def missing_events(study: StoredStudy, told: StoredStudy | None, path: Path) -> Iterator[tuple[str, Json]]:
    """Kind and fields of the events that bring `told`, which events.jsonl tells, up to `study`, which study.db holds.

    Raises:
        StudyCorruptError: the events acknowledge what the database does not have, or has otherwise.
        StudyMismatchError: the two files are of two studies.
    """
    if told is None or (told.id != study.id and not told.trials):
        yield CREATED, created(study)
        told = replace(study, trials=(), summary={})
    elif told.id != study.id:
        raise StudyMismatchError(
            f"{path} and the events.jsonl beside it belong to two studies. Put the right one back, or move one away."
        )
    for trial in told.trials:
        if not _covers(study.trials, trial):
            raise StudyCorruptError(f"{path} is damaged: trial {trial.number} is not what its events say. {REBUILD}")
    if told.identity != study.identity:
        yield CHANGED, {"identity": study.identity}
    for trial in study.trials:
        known = told.trials[trial.number] if trial.number < len(told.trials) else None
        if known is None:
            yield STARTED, started(trial)
        if trial.outcome is not None and (known is None or known.outcome is None):
            yield FINISHED, finished(trial)
    for key, value in study.summary.items():
        if key not in told.summary or told.summary[key] != value:
            yield SUMMARY, {"key": key, "value": value}


def _covers(trials: tuple[StoredTrial, ...], told: StoredTrial) -> bool:
    """Whether the database has the trial as told; its outcome may be newer than the events."""
    if told.number >= len(trials):
        return False
    held = trials[told.number]
    return held == told or replace(held, outcome=None) == told
