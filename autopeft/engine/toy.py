"""A backend without a model: milliseconds a trial, no torch, the same numbers everywhere.

For tests of what surrounds training (pool, study, resume, failures) and for measuring what that costs. The score is a
smooth function of the architecture: every site has a kind of module and a size that suit it.
"""

import hashlib
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from autopeft.engine.pulse import Beat, no_beat
from autopeft.engine.trial import Ended, EpochRecord, Evaluation, TrialJob, TrialResult
from autopeft.errors import AutopeftError, DataError, ModelError, OverLimitError
from autopeft.resources import atomic_write
from autopeft.space.anatomy import Anatomy
from autopeft.space.architecture import Architecture, Placement
from autopeft.space.counting import count_parameters
from autopeft.space.modules import Scalar

Failure = Literal["raise", "nan", "memory", "data", "abort", "exit", "kill", "hang", "swell", "limit"]

WEIGHTS_FILE = "toy.json"
METRIC = "accuracy"
_SWOLLEN_BYTES = 400 << 20
_PAGE_BYTES = 4096


@dataclass(frozen=True)
class ToyBackend:
    """Scores architectures by a formula, with noise from the trial's seed."""

    seconds_per_epoch: float = 0.0
    epochs: int = 2
    failures: Mapping[int, Failure] = field(default_factory=dict)
    """How trials end before their time, by number: they raise, meet a NaN, want memory, have unfit data, call
    `os.abort` or `sys.exit`, kill their process, hang, hold 400 MB, or are told to be over a limit; all after an
    epoch."""
    noise: float = 0.01
    """Standard deviation of the score between seeds."""
    anatomy: Anatomy | None = None
    """For exact parameter counts; without it they are 0."""
    broken: str | None = None
    """Where given, the backend does not open, with this message."""

    @property
    def is_settled(self) -> bool:
        return True

    def settle(self, worker: int = 0) -> Mapping[str, Scalar]:
        return {}

    def settled(self, choices: Mapping[str, object]) -> "ToyBackend":
        return self

    def open(self, worker: int = 0) -> "ToyTrainer":
        """
        Raises:
            ModelError: the backend is `broken`.
        """
        if self.broken is not None:
            raise ModelError(self.broken)
        return ToyTrainer(self)


class ToyTrainer:
    """Trains nothing, quickly."""

    def __init__(self, backend: ToyBackend) -> None:
        self._backend = backend

    @property
    def facts(self) -> Mapping[str, Scalar]:
        return MappingProxyType({"device": "toy"})

    def train(self, job: TrialJob, on_epoch: Callable[[EpochRecord], None], beat: Beat = no_beat) -> TrialResult:
        steps = self.steps(job, on_epoch, beat)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result: TrialResult = end.value
                return result

    def together(self) -> "ToyTrials":
        return ToyTrials(self)

    def steps(
        self, job: TrialJob, on_epoch: Callable[[EpochRecord], None], beat: Beat = no_beat
    ) -> Generator[None, None, TrialResult]:
        """The trial, epoch by epoch."""
        start = time.monotonic()
        final = toy_score(job.architecture, job.training) + self._backend.noise * _normal(job.seed)
        records: list[EpochRecord] = []
        screened = self._screened(job, final) if job.screen else None
        if screened is not None and job.fails_screening(screened):
            return self._result(job, records, None, start, screened)
        for epoch in range(1, self._backend.epochs + 1):
            time.sleep(self._backend.seconds_per_epoch)
            beat()
            score = final * (1 - 0.5**epoch)
            seconds = time.monotonic() - start
            records.append(EpochRecord(epoch, 10 * epoch, 1 - score, ((METRIC, score),), seconds))
            on_epoch(records[-1])
            if failure := self._backend.failures.get(job.number):
                _fail(failure)
            if job.falls_short(records):
                return self._result(job, records, None, start, screened)
            yield
        atomic_write(job.folder / WEIGHTS_FILE, json.dumps({"architecture": job.architecture.id, "score": final}))
        return self._result(job, records, records[-1], start, screened)

    def _screened(self, job: TrialJob, final: float) -> EpochRecord:
        """As if so many epochs on a part of the rows told less than as many on all."""
        score = final / 2 + self._backend.noise * _normal(f"{job.seed}/screening")
        return EpochRecord(self._backend.epochs, 10, 1 - score, ((METRIC, score),), 0.0)

    def _result(
        self,
        job: TrialJob,
        records: list[EpochRecord],
        best: EpochRecord | None,
        start: float,
        screened: EpochRecord | None,
    ) -> TrialResult:
        """Complete with the score of the epoch `best`; pruned where there is none."""
        stored = count_parameters(job.architecture, self._backend.anatomy).stored if self._backend.anatomy else 0
        return TrialResult(
            job.number,
            "complete" if best else "pruned",
            dict(best.metrics)[METRIC] if best else None,
            best.epoch if best else None,
            tuple(records),
            stored,
            stored,
            0,
            time.monotonic() - start,
            None,
            screened=screened,
        )

    def evaluate(self, job: TrialJob, split: str, beat: Beat = no_beat) -> Evaluation:
        """
        Raises:
            ModelError: the trial left no weights, or another architecture's.
        """
        weights = _read(job.folder / WEIGHTS_FILE)
        if weights.get("architecture") != job.architecture.id:
            raise ModelError(f"{job.folder}: the weights are those of another architecture")
        score = float(weights["score"]) + self._backend.noise * _normal(f"{job.seed}/{split}")
        return Evaluation(split, ((METRIC, score),), (score - 0.02, score + 0.02), 100)


class ToyTrials:
    """Trials in turns, an epoch each."""

    def __init__(self, trainer: ToyTrainer) -> None:
        self._trainer = trainer
        self._steps: dict[int, tuple[TrialJob, Generator[None, None, TrialResult]]] = {}

    @property
    def running(self) -> tuple[int, ...]:
        return tuple(self._steps)

    def begin(self, job: TrialJob, on_epoch: Callable[[EpochRecord], None], beat: Beat = no_beat) -> None:
        self._steps[job.number] = job, self._trainer.steps(job, on_epoch, beat)

    def advance(self) -> list[Ended]:
        ended: list[Ended] = []
        for job, steps in tuple(self._steps.values()):
            try:
                next(steps)
            except StopIteration as end:
                ended.append((job, end.value))
            except Exception as error:
                ended.append((job, error))
        for job, _ in ended:
            del self._steps[job.number]
        return ended


def toy_score(architecture: Architecture, training: tuple[tuple[str, Scalar], ...] = ()) -> float:
    """The score without noise, in (0, 1): 0.5 with nothing placed, and best at a learning rate of 1e-3."""
    gain = sum(_gain(placement) for placement in architecture.placements)
    learning_rate = float(dict(training).get("learning_rate", 1e-3))
    tuned = math.exp(-(math.log10(learning_rate / 1e-3) ** 2))
    return 0.5 + 0.45 * math.tanh(gain * tuned / 8)


def _gain(placement: Placement) -> float:
    """In (-0.4, 1): a bell around the size that suits this site and module, on the scale of log2."""
    site = f"{placement.stack}/{placement.layer}/{placement.role}/{placement.module}"
    weight, best = 1.4 * _uniform(site) - 0.4, 6 * _uniform(f"{site}/size")
    return weight * math.exp(-(((math.log2(placement.size) - best) / 3) ** 2))


def _uniform(key: object) -> float:
    return int.from_bytes(hashlib.sha256(str(key).encode()).digest()[:6], "big") / 2**48


def _normal(key: object) -> float:
    """Near enough to a standard normal: a sum of twelve uniforms."""
    return sum(_uniform(f"{key}#{i}") for i in range(12)) - 6


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; has the trial been trained?") from None
    assert isinstance(data, dict)
    return data


def _fail(failure: Failure) -> None:
    match failure:
        case "raise":
            raise RuntimeError("this trial was told to fail\nand the second line is not shown")
        case "nan":
            EpochRecord(2, 20, math.nan, (), 0.0)
        case "memory":
            raise MemoryError
        case "abort":
            os.abort()
        case "exit":
            sys.exit(3)
        case "kill":
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        case "limit":
            raise OverLimitError("it is told to be over a limit")
        case "data":
            raise DataError("a label that the model does not have")
        case "hang":
            threading.Event().wait()
        case "swell":
            held = bytearray(_SWOLLEN_BYTES)
            held[::_PAGE_BYTES] = b"1" * len(held[::_PAGE_BYTES])  # a page that is not written to is not there
            threading.Event().wait()
    raise AutopeftError(f"unknown failure {failure!r}")
