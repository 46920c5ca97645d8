"""One trial as values: what is asked (`TrialJob`), what is told on the way (`EpochRecord`), the end (`TrialResult`).

`Backend` and `Trainer` are what a worker needs to run trials; the engine has two of them, `training` and `toy`. Nothing
here imports torch: the supervisor reads and writes these values too.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from autopeft.engine.causes import Cause, cause_of
from autopeft.engine.pulse import Beat, no_beat
from autopeft.engine.rungs import SCREENING, Rungs
from autopeft.errors import StudyCorruptError
from autopeft.resources import atomic_write
from autopeft.space.architecture import Architecture
from autopeft.space.modules import Scalar

RESULT_FILE = "result.json"
"""Marks a trial as finished: it is the last file to be written into a trial's folder."""

FORMAT_VERSION = 1

State = Literal["complete", "failed", "pruned"]
"""`pruned`: stopped at a rung, since it was not among the best there; it has no score of its own."""


class NotFiniteError(ArithmeticError):
    """A loss, metric or score that is NaN or infinite: the trial has failed, whatever came before."""


def trial_seed(study_seed: int, number: int) -> int:
    """The seed of trial `number`: 32 bits of a hash, the same in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(f"{study_seed}/{number}".encode()).digest()[:4], "big")


@dataclass(frozen=True)
class TrialJob:
    """One architecture to be trained."""

    number: int
    architecture: Architecture
    training: tuple[tuple[str, Scalar], ...]
    """What differs from the recipe's training, by field: `(("learning_rate", 3e-4),)`."""
    seed: int
    folder: Path
    """Where the trial's weights and result go; made when it is needed."""
    rungs: Rungs = ()
    """Known before the trial begins, so that nothing that happens meanwhile changes how it ends."""
    screen: float | None = None
    """Share of the train rows on which the trial is trained once before it begins; None: it begins at once."""

    def falls_short(self, epochs: "Sequence[EpochRecord]") -> bool:
        """Whether the trial is to be stopped after the last of `epochs`, which begin with the first."""
        reached = [epoch.metrics for epoch in epochs]
        return any(rung.epoch == epochs[-1].epoch and rung.is_missed(reached) for rung in self.rungs)

    def fails_screening(self, screened: "EpochRecord") -> bool:
        """Whether the trial is not to begin, after the end of its training on a part of the rows."""
        return any(rung.epoch == SCREENING and rung.is_missed([screened.metrics]) for rung in self.rungs)


@dataclass(frozen=True)
class EpochRecord:
    """What is known at the end of an epoch.

    Raises:
        NotFiniteError: the loss or a metric is NaN or infinite.
    """

    epoch: int
    """From 1."""
    steps: int
    """Optimiser steps since the trial began."""
    train_loss: float
    """Mean over the epoch's examples."""
    metrics: tuple[tuple[str, float], ...]
    """On the validation split; the recipe's metric first."""
    seconds: float
    """Since the trial began."""

    def __post_init__(self) -> None:
        _refuse_not_finite("train_loss", self.train_loss)
        for name, value in self.metrics:
            _refuse_not_finite(name, value)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "metrics": dict(self.metrics)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "EpochRecord":
        """Inverse of `to_json`.

        Raises:
            ValueError: a key is missing, unknown, or of another type.
        """
        _check(data, _EPOCH_FIELDS)
        return cls(**{**data, "metrics": _metrics(data["metrics"])})


@dataclass(frozen=True)
class TrialResult:
    """How a trial ended.

    Raises:
        NotFiniteError: the score is NaN or infinite.
    """

    number: int
    state: State
    score: float | None
    """The recipe's metric at the best epoch, on the validation split; None unless complete."""
    best_epoch: int | None
    epochs: tuple[EpochRecord, ...]
    stored: int
    """Adapter parameters in the saved file; 0 where the trial failed before they were counted."""
    trained: int
    head: int
    """Parameters of the task head, which neither `stored` nor `trained` counts."""
    seconds: float
    peak_memory_bytes: int | None
    """Of the device on CUDA, else the high-water mark of the worker's process."""
    cause: Cause | None = None
    error: str | None = None
    """One line."""
    latency_overhead: float | None = None
    """Time of a forward pass over the base model's, measured before training where it is limited."""
    training_memory_bytes: int | None = None
    """Of a training step at its peak, measured before training where it is limited."""
    screened: EpochRecord | None = None
    """The end of the training on a part of the rows, where the trial was screened: no epoch and no score of its own."""
    precision: str | None = None
    """What the frozen model computed in: float32, tf32, bfloat16."""
    micro_batch_size: int | None = None
    """Rows at a time where a step's batch was cut, since it would not fit into the memory; None: it was not."""

    def __post_init__(self) -> None:
        if self.score is not None:
            _refuse_not_finite("score", self.score)
        if (self.state == "complete") != (self.score is not None) or (self.state == "failed") != (
            self.cause is not None
        ):
            raise ValueError("a complete trial has a score, a failed one a cause, a pruned one neither")

    @classmethod
    def failed(
        cls,
        number: int,
        cause: Cause,
        error: str,
        *,
        seconds: float,
        epochs: tuple[EpochRecord, ...] = (),
        peak_memory_bytes: int | None = None,
    ) -> "TrialResult":
        """A trial without a score; `error` is cut to one line."""
        line = error.strip().splitlines()[0][:500] if error.strip() else cause
        return cls(number, "failed", None, None, epochs, 0, 0, 0, seconds, peak_memory_bytes, cause, line)

    def to_json(self) -> dict[str, Any]:
        screened = None if self.screened is None else self.screened.to_json()
        epochs = [epoch.to_json() for epoch in self.epochs]
        return {"version": FORMAT_VERSION, **asdict(self), "epochs": epochs, "screened": screened}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "TrialResult":
        """Inverse of `to_json`.

        Raises:
            ValueError: another version, or a key that is missing, unknown, or of another type.
            NotFiniteError: a number that is NaN or infinite.
        """
        if not isinstance(data, Mapping) or data.get("version") != FORMAT_VERSION:
            raise ValueError(f"version must be {FORMAT_VERSION}")
        values = {**_LATER_FIELDS, **{name: value for name, value in data.items() if name != "version"}}
        _check(values, _RESULT_FIELDS)
        if values["state"] not in get_args(State):
            raise ValueError("'state' is not a known word")
        cause = None if values["cause"] is None else cause_of(values["cause"])
        screened = None if values["screened"] is None else EpochRecord.from_json(values["screened"])
        epochs = tuple(EpochRecord.from_json(epoch) for epoch in values["epochs"])
        return cls(**{**values, "cause": cause, "epochs": epochs, "screened": screened})


def write_result(folder: Path, result: TrialResult) -> None:
    """Mark the trial in `folder` as finished."""
    atomic_write(folder / RESULT_FILE, json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n")


def read_result(folder: Path) -> TrialResult | None:
    """The result in a trial's folder; None where the trial is not finished.

    Raises:
        StudyCorruptError: the file is there and is not a trial's result.
    """
    path = folder / RESULT_FILE
    try:
        return TrialResult.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, ArithmeticError, TypeError, RecursionError) as error:
        raise StudyCorruptError(f"{path}: not a trial's result: {error}") from error


Ended = tuple[TrialJob, "TrialResult | Exception"]
"""A trial that came to its end, or what it raised."""


@dataclass(frozen=True)
class Evaluation:
    """A trained trial on one split."""

    split: str
    metrics: tuple[tuple[str, float], ...]
    """The recipe's metric first."""
    interval: tuple[float, float]
    """95 % bootstrap interval of the recipe's metric over the rows."""
    n_rows: int


class Trainer(Protocol):
    """An opened backend: holds what trials share (model, data) and runs one trial at a time."""

    @property
    def facts(self) -> Mapping[str, Scalar]:
        """What is worth telling once: device, precision, threads."""
        ...

    def train(self, job: TrialJob, on_epoch: Callable[[EpochRecord], None], beat: Beat = no_beat) -> TrialResult:
        """Train `job` and leave its weights in `job.folder`; the caller writes the result file.

        Calls `beat` with every batch that it gets through.
        """
        ...

    def together(self) -> "TrialsTogether":
        """Trials that are trained at the same time, none yet."""
        ...

    def evaluate(self, job: TrialJob, split: str, beat: Beat = no_beat) -> Evaluation:
        """Score the weights that `train` left in `job.folder` on `split`."""
        ...


class TrialsTogether(Protocol):
    """Trials that one worker has in work at the same time; see `Trainer.together`."""

    @property
    def running(self) -> tuple[int, ...]:
        """Their numbers."""
        ...

    def begin(self, job: TrialJob, on_epoch: Callable[[EpochRecord], None], beat: Beat = no_beat) -> None:
        """Let a trial join; it raises what `Trainer.train` raises before the first step."""
        ...

    def advance(self) -> list[Ended]:
        """Carry all on by a step; those that have ended, with their weights in their folders."""
        ...


class Backend(Protocol):
    """A recipe for a `Trainer`: a picklable frozen value that is sent to every worker and opened there."""

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to be measured that all trials of a study must have in common."""
        ...

    def settle(self, worker: int = 0) -> Mapping[str, Scalar]:
        """Measure it; called in one worker, once for a study, where the backend is not settled."""
        ...

    def settled(self, choices: Mapping[str, object]) -> "Backend":
        """The backend with what `settle` has found."""
        ...

    def open(self, worker: int = 0) -> Trainer:
        """Load what trials share; `worker` counts the pool's workers from 0, so that each can take its own device."""
        ...


def _refuse_not_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise NotFiniteError(f"{name} is {value}")


_NUMBER = (int, float)
_EPOCH_FIELDS: Mapping[str, tuple[type, ...]] = {
    "epoch": (int,),
    "steps": (int,),
    "train_loss": _NUMBER,
    "metrics": (dict,),
    "seconds": _NUMBER,
}
_NONE = type(None)
_RESULT_FIELDS: Mapping[str, tuple[type, ...]] = {
    "number": (int,),
    "state": (str,),
    "score": (*_NUMBER, _NONE),
    "best_epoch": (int, _NONE),
    "epochs": (list,),
    "stored": (int,),
    "trained": (int,),
    "head": (int,),
    "seconds": _NUMBER,
    "peak_memory_bytes": (int, _NONE),
    "cause": (str, _NONE),
    "error": (str, _NONE),
    "latency_overhead": (*_NUMBER, _NONE),
    "training_memory_bytes": (int, _NONE),
    "screened": (dict, _NONE),
    "precision": (str, _NONE),
    "micro_batch_size": (int, _NONE),
}
_LATER_FIELDS: Mapping[str, None] = dict.fromkeys(
    ("latency_overhead", "training_memory_bytes", "screened", "precision", "micro_batch_size")
)
"""Results of earlier versions do not have them."""


def _check(data: Mapping[str, Any], fields: Mapping[str, tuple[type, ...]]) -> None:
    if not isinstance(data, Mapping) or set(data) != set(fields):
        found = sorted(set(data) ^ set(fields)) if isinstance(data, Mapping) else type(data).__name__
        raise ValueError(f"missing or unknown keys: {found}")
    for name, kinds in fields.items():
        if type(data[name]) not in kinds:
            raise ValueError(f"'{name}' is a {type(data[name]).__name__}")
        if isinstance(data[name], float):
            _refuse_not_finite(name, data[name])


def _metrics(data: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
    if not all(type(value) in _NUMBER for value in data.values()):
        raise ValueError("'metrics' must map names to numbers")
    return tuple(data.items())
