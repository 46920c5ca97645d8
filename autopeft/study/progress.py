"""What a search tells its listener while it runs; a live table, a log or a notebook are listeners."""

from collections.abc import Callable
from dataclasses import dataclass

from autopeft.engine.trial import EpochRecord
from autopeft.study.plan import Plan
from autopeft.study.record import TrialRecord


@dataclass(frozen=True)
class Began:
    """The study is open; `trials` are those of earlier sessions."""

    plan: Plan
    trials: tuple[TrialRecord, ...]
    warnings: tuple[str, ...]

    @property
    def is_resumed(self) -> bool:
        return bool(self.trials)


@dataclass(frozen=True)
class WorkerReady:
    """A worker has loaded model and data."""

    seconds: float
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class TrialBegan:
    trial: TrialRecord


@dataclass(frozen=True)
class EpochEnded:
    number: int
    """Of the trial."""
    record: EpochRecord


@dataclass(frozen=True)
class TrialEnded:
    trial: TrialRecord


@dataclass(frozen=True)
class Stopping:
    """A signal has come; running trials have `grace` seconds to end."""

    signal: str
    grace: float


@dataclass(frozen=True)
class Evaluating:
    """The best trial is being scored on the held-out split."""

    trial: TrialRecord


SearchEvent = Began | WorkerReady | TrialBegan | EpochEnded | TrialEnded | Stopping | Evaluating
Listener = Callable[[SearchEvent], None]


def silent(event: SearchEvent) -> None:
    """A listener that listens to nothing."""
