"""A study read from study.db by plain SQL: while a search writes to it, on a read-only disk, in milliseconds.

Optuna is not imported: it takes longer to import than a thousand trials take to read. What the file holds is treated as
foreign until it has been checked.
"""

import math
import sqlite3
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from autopeft.errors import StudyCorruptError, StudyMismatchError
from autopeft.space.modules import Scalar
from autopeft.study.database import DATABASE_FILE, REBUILD, check_integrity, open_for_reading
from autopeft.study.identity import FORMAT
from autopeft.study.record import Json, StoredStudy, StoredTrial, StudyView
from autopeft.study.strict_json import parse

STUDY_ATTRIBUTE = "autopeft"
"""The study's attribute in Optuna that marks it as ours: format, id and identity."""
SUMMARY_PREFIX = "summary:"
START_ATTRIBUTES = ("architecture", "architecture_id", "stored", "training", "retry_of", "started", "baseline", "rungs")
OUTCOME_ATTRIBUTE = "outcome"

_TABLES = {
    "studies",
    "study_user_attributes",
    "study_directions",
    "trials",
    "trial_params",
    "trial_values",
    "trial_user_attributes",
}
_STATES = {"RUNNING": "running", "COMPLETE": "complete", "FAIL": "failed", "PRUNED": "pruned"}


def read_study(run: Path) -> StudyView:
    """The study of a run folder as it is now.

    Raises:
        UsageError: there is no study.
        StudyCorruptError: it is damaged.
        StudyMismatchError: it is not a study of this or an earlier autopeft.
        EnvironmentProblem: it cannot be read.
    """
    path = run / DATABASE_FILE
    with open_for_reading(path) as connection:
        check_integrity(connection, path)
        stored, _ = load(connection, path)
    return decode(stored, path)


def decode(stored: StoredStudy, path: Path) -> StudyView:
    """
    Raises:
        StudyCorruptError: the identity or a trial cannot be read; names the file that holds it.
    """
    try:
        return stored.view()
    except StudyCorruptError as error:
        raise StudyCorruptError(f"{path} is damaged: {error}. {REBUILD}") from error


def load(connection: sqlite3.Connection, path: Path) -> tuple[StoredStudy, frozenset[int]]:
    """What the database holds, and the numbers of trials that Optuna has not been told the outcome of.

    Raises:
        StudyCorruptError: it cannot be decoded.
        StudyMismatchError: it is not a study of this or an earlier autopeft.
    """
    try:
        key, head = _our_study(connection, path)
        attributes = _study_attributes(connection, key)
        trials, running = _trials(connection, key)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise StudyCorruptError(f"{path} is damaged: {error}. {REBUILD}") from error
    summary = {
        name.removeprefix(SUMMARY_PREFIX): value
        for name, value in attributes.items()
        if name.startswith(SUMMARY_PREFIX)
    }
    return StoredStudy(head["study"], head["identity"], trials, summary), running


def _our_study(connection: sqlite3.Connection, path: Path) -> tuple[int, Json]:
    schema = connection.execute("SELECT type, name FROM sqlite_master").fetchall()
    if any(kind in {"view", "trigger"} for kind, _ in schema):
        raise StudyMismatchError(f"{path} is not a study: it has views or triggers. Give another folder with --run.")
    if not {name for kind, name in schema if kind == "table"} >= _TABLES:
        raise StudyMismatchError(f"{path} is a database of another program. Give another folder with --run.")
    studies = connection.execute("SELECT study_id FROM studies LIMIT 2").fetchall()
    if len(studies) != 1:
        raise StudyMismatchError(
            f"{path} holds {'several Optuna studies' if studies else 'no study'}, not one of autopeft. "
            "Give another folder with --run."
        )
    key = studies[0][0]
    head = _study_attributes(connection, key).get(STUDY_ATTRIBUTE)
    if head is None:
        raise StudyMismatchError(
            f"{path} is an Optuna study that autopeft did not make. Give another folder with --run."
        )
    if type(head.get("format")) is int and head["format"] > FORMAT:
        raise StudyMismatchError(
            f"{path} was made by a newer autopeft (format {head['format']}, this one knows {FORMAT}). Upgrade autopeft."
        )
    if head.keys() != {"format", "study", "identity"} or head["format"] != FORMAT or type(head["study"]) is not str:
        raise ValueError("its head cannot be read")
    return key, head


def _study_attributes(connection: sqlite3.Connection, key: int) -> Json:
    rows = connection.execute("SELECT key, value_json FROM study_user_attributes WHERE study_id = ?", (key,))
    return {name: parse(text) for name, text in rows}


def _trials(connection: sqlite3.Connection, key: int) -> tuple[tuple[StoredTrial, ...], frozenset[int]]:
    rows = connection.execute("SELECT trial_id, number, state FROM trials WHERE study_id = ? ORDER BY number", (key,))
    params, distributions = _params(connection)
    attributes = _trial_attributes(connection)
    values = _values(connection)
    trials, running = [], set()
    for position, (trial_id, number, state) in enumerate(rows):
        if number != position:
            raise ValueError(f"trial {position} is missing")
        start = {name: value for name, value in attributes[trial_id].items() if name in START_ATTRIBUTES}
        outcome = attributes[trial_id].get(OUTCOME_ATTRIBUTE)
        _agree(number, _STATES[state], outcome, values.get(trial_id))
        if state == "RUNNING":
            running.add(number)
        trials.append(StoredTrial(number, params[trial_id], distributions[trial_id], start, outcome))
    return tuple(trials), frozenset(running)


def _agree(number: int, state: str, outcome: Json | None, value: Any) -> None:
    """Optuna's state and value against our outcome; the outcome is written first, so a running trial may have one."""
    result = None if outcome is None else outcome["result"]
    if state == "running":
        fits = value is None
    else:
        fits = result is not None and result["state"] == state and result["score"] == value
    if not fits:
        raise ValueError(f"trial {number} is {state} with value {value}, which is not what its result says")


def _params(connection: sqlite3.Connection) -> tuple[Mapping[int, dict[str, Scalar]], Mapping[int, dict[str, Json]]]:
    params: dict[int, dict[str, Scalar]] = defaultdict(dict)
    distributions: dict[int, dict[str, Json]] = defaultdict(dict)
    distribution = cache(parse)  # a study has few distributions, each of them once a trial

    @cache
    def decoded(text: str, value: float) -> Scalar:
        return _decode(value, distribution(text))

    rows = connection.execute(
        "SELECT trial_id, param_name, param_value, distribution_json FROM trial_params ORDER BY param_id"
    )
    for trial_id, name, value, text in rows:
        params[trial_id][name] = decoded(text, value)
        distributions[trial_id][name] = distribution(text)
    return params, distributions


def _decode(value: float, distribution: Json) -> Scalar:
    """Optuna stores every parameter as a number: a choice by its place in the list."""
    attributes = distribution["attributes"]
    if not math.isfinite(value):
        raise ValueError(f"a parameter is {value}")
    match distribution["name"]:
        case "CategoricalDistribution" if value >= 0 and value == int(value):
            choice: Scalar = attributes["choices"][int(value)]
            return choice
        case "IntDistribution" if attributes["low"] <= value <= attributes["high"] and value == int(value):
            return int(value)
        case "FloatDistribution" if attributes["low"] <= value <= attributes["high"]:
            return float(value)
    raise ValueError(f"a parameter is {value}, which its distribution does not hold")


def _trial_attributes(connection: sqlite3.Connection) -> Mapping[int, Json]:
    attributes: dict[int, Json] = defaultdict(dict)
    for trial_id, name, text in connection.execute("SELECT trial_id, key, value_json FROM trial_user_attributes"):
        attributes[trial_id][name] = parse(text)
    return attributes


def _values(connection: sqlite3.Connection) -> Mapping[int, float]:
    values: dict[int, float] = {}
    rows = connection.execute("SELECT trial_id, objective, value, value_type FROM trial_values")
    for trial_id, objective, value, kind in rows:
        if objective != 0 or kind != "FINITE" or trial_id in values:
            raise ValueError("a trial has a value that autopeft does not write")
        values[trial_id] = float(value)
    return values
