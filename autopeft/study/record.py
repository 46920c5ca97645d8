"""A study's trials as values, and the one JSON form in which study.db and events.jsonl both hold them.

`StoredStudy` and `StoredTrial` are that form, undecoded, so that the two sources can be compared; `view` and `record`
decode and check it. Nothing here imports Optuna.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from autopeft.engine.rungs import Rung, Rungs
from autopeft.engine.trial import TrialResult
from autopeft.errors import ConfigError, StudyCorruptError
from autopeft.space.architecture import Architecture
from autopeft.space.modules import Scalar
from autopeft.study.identity import Identity

Json = dict[str, Any]

HELD_OUT_SUMMARY = "held_out"
"""Summary entry of a study: trial, split, metrics, interval and rows of the final evaluation."""
PACK_SUMMARY = "pack"
"""How many trials each worker trains together, where the user left it open."""
SETTLED_SUMMARY = "settled"
"""Summary entry of a study: what was measured before its first trial and holds for all, such as the precision."""
CONTEXT_SUMMARY = "context"
"""Summary entry of a study: what its trials share, such as base model, task and recipe."""


@dataclass(frozen=True)
class TrialStart:
    """What is known of a trial before it is trained, besides its parameters."""

    architecture: Architecture
    stored: int
    """Adapter parameters in the saved file; the task head is apart."""
    training: tuple[tuple[str, Scalar], ...] = ()
    """What differs from the recipe's training, by field."""
    retry_of: int | None = None
    """The failed trial that this one repeats."""
    baseline: str | None = None
    """The published configuration that it is; None where a sampler proposed it."""
    rungs: Rungs = ()
    """How it has to stand to go on, from the trials before it."""


@dataclass(frozen=True)
class TrialRecord:
    """One trial as the study holds it."""

    number: int
    state: Literal["running", "complete", "failed", "pruned"]
    params: Mapping[str, Scalar]
    architecture: Architecture
    stored: int
    training: tuple[tuple[str, Scalar], ...]
    retry_of: int | None
    started: float
    """Seconds since 1970, by the wall clock; how long a trial took is in its result."""
    finished: float | None = None
    result: TrialResult | None = None
    baseline: str | None = None
    """The published configuration that it is, by name."""
    rungs: Rungs = ()

    @property
    def score(self) -> float | None:
        """None unless complete: what a pruned trial had reached when it was stopped is no score of a trial."""
        return self.result.score if self.result else None


@dataclass(frozen=True)
class StudyView:
    """A study at one moment."""

    identity: Identity
    trials: tuple[TrialRecord, ...]
    """By number, which counts from 0 without gaps."""
    summary: Mapping[str, Any]
    """Facts about the study as a whole, such as the final evaluation; JSON."""


def n_tried(trials: Iterable[TrialRecord]) -> int:
    """Trials that count towards the total of a search: those that completed and those that were pruned."""
    return sum(trial.state in ("complete", "pruned") for trial in trials)


def best_trial(trials: Iterable[TrialRecord]) -> TrialRecord | None:
    """The highest score; of equal ones the one with fewest parameters, then the first."""
    complete = [trial for trial in trials if trial.score is not None]
    return max(complete, key=lambda t: (t.score or 0.0, -t.stored, -t.number), default=None)


def pareto_front(trials: Iterable[TrialRecord]) -> tuple[TrialRecord, ...]:
    """Complete trials that no other beats in score with as few stored parameters, smallest first."""
    front: list[TrialRecord] = []
    complete = (trial for trial in trials if trial.score is not None)
    for trial in sorted(complete, key=lambda t: (t.stored, -(t.score or 0.0), t.number)):
        if not front or (trial.score or 0.0) > (front[-1].score or 0.0):
            front.append(trial)
    return tuple(front)


def start_to_json(start: TrialStart, started: float) -> Json:
    optional: Json = {} if start.baseline is None else {"baseline": start.baseline}
    if start.rungs:
        optional["rungs"] = [list(rung) for rung in start.rungs]
    return {
        "architecture": start.architecture.to_json(),
        "architecture_id": start.architecture.id,
        "stored": start.stored,
        "training": dict(start.training),
        "retry_of": start.retry_of,
        "started": started,
        **optional,
    }


def outcome_to_json(result: TrialResult, finished: float) -> Json:
    return {"finished": finished, "result": result.to_json()}


@dataclass(frozen=True)
class StoredTrial:
    number: int
    params: Mapping[str, Scalar]
    distributions: Mapping[str, Json]
    """By parameter, as Optuna writes them."""
    start: Json
    outcome: Json | None
    """None while it runs."""

    def record(self) -> TrialRecord:
        """
        Raises:
            StudyCorruptError: a field is missing, unknown, or holds what cannot be.
        """
        try:
            return self._record()
        except (ConfigError, ValueError, ArithmeticError, TypeError, KeyError, AttributeError) as error:
            raise StudyCorruptError(f"trial {self.number} cannot be read: {error}") from error

    def _record(self) -> TrialRecord:
        if set(self.start) - _OPTIONAL_START_KEYS != _START_KEYS or (
            self.outcome is not None and set(self.outcome) != _OUTCOME_KEYS
        ):
            raise ValueError("missing or unknown keys")
        architecture = Architecture.from_json(self.start["architecture"])
        retry_of = self.start["retry_of"]
        if retry_of is not None and not 0 <= _whole(retry_of) < self.number:
            raise ValueError(f"it cannot repeat trial {retry_of}")
        baseline = self.start.get("baseline")
        if not isinstance(baseline, str | None):
            raise ValueError(f"a name is needed, got {baseline!r}")
        for value in (*self.params.values(), *self.start["training"].values()):
            _scalar(value)
        if self.params.keys() != self.distributions.keys():
            raise ValueError("a parameter has no distribution")
        result = TrialResult.from_json(self.outcome["result"]) if self.outcome else None
        if result is not None and result.number != self.number:
            raise ValueError(f"its result is that of trial {result.number}")
        return TrialRecord(
            number=self.number,
            state=result.state if result else "running",
            params=MappingProxyType(dict(self.params)),
            architecture=architecture,
            stored=_whole(self.start["stored"]),
            training=tuple(self.start["training"].items()),
            retry_of=retry_of,
            started=_number(self.start["started"]),
            finished=_number(self.outcome["finished"]) if self.outcome else None,
            result=result,
            baseline=baseline,
            rungs=tuple(_rung(*rung) for rung in self.start.get("rungs", ())),
        )


@dataclass(frozen=True)
class StoredStudy:
    id: str
    """Random, given when the study is made: tells whether two files belong together."""
    identity: Json
    trials: tuple[StoredTrial, ...] = ()
    summary: Json = field(default_factory=dict)

    def view(self) -> StudyView:
        """
        Raises:
            StudyCorruptError: the identity or a trial cannot be read.
        """
        return StudyView(
            Identity.from_json(self.identity),
            tuple(trial.record() for trial in self.trials),
            MappingProxyType(dict(self.summary)),
        )


_START_KEYS = {"architecture", "architecture_id", "stored", "training", "retry_of", "started"}
_OPTIONAL_START_KEYS = {"baseline", "rungs"}
_OUTCOME_KEYS = {"finished", "result"}


def _rung(epoch: Any, least: Any, loss_weight: Any = 0.0) -> Rung:
    return Rung(_whole(epoch), _number(least), _number(loss_weight))


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"a whole number is needed, got {value!r}")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"a number is needed, got {value!r}")
    return float(value)


def _scalar(value: Any) -> None:
    if type(value) not in (bool, int, float, str) or (type(value) is float and not math.isfinite(value)):
        raise ValueError(f"a number or a word is needed, got {value!r}")
