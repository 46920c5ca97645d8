"""What supervisor and worker say to each other over their pipe: orders one way, messages the other."""

from collections.abc import Mapping
from dataclasses import dataclass

from autopeft.engine.trial import EpochRecord, Evaluation, TrialJob, TrialResult
from autopeft.errors import AutopeftError
from autopeft.space.modules import Scalar


@dataclass(frozen=True)
class Settled:
    """What `Backend.settle` has found."""

    choices: Mapping[str, Scalar]


@dataclass(frozen=True)
class Opened:
    seconds: float
    facts: Mapping[str, Scalar]


@dataclass(frozen=True)
class CannotGoOn:
    """The backend does not open, or the environment fails: nothing that another trial could do better."""

    error: AutopeftError
    trace: str


@dataclass(frozen=True)
class Alive:
    """The order in work makes progress."""

    beats: int
    """Batches since the last such message."""
    silence: float
    """The longest time between two of them, in seconds by the worker's clock."""


@dataclass(frozen=True)
class EpochDone:
    number: int
    record: EpochRecord


@dataclass(frozen=True)
class TrialDone:
    result: TrialResult
    trace: str | None
    usable: bool
    """Whether the process may run another trial: not after it ran out of memory or lost its device."""


@dataclass(frozen=True)
class EvaluationDone:
    number: int
    outcome: Evaluation | AutopeftError
    trace: str | None


@dataclass(frozen=True)
class Train:
    job: TrialJob


@dataclass(frozen=True)
class Join:
    """Train it together with what is in work already, and what joins later."""

    job: TrialJob


@dataclass(frozen=True)
class Evaluate:
    job: TrialJob
    split: str


Message = Settled | Opened | CannotGoOn | Alive | EpochDone | TrialDone | EvaluationDone
Order = Train | Join | Evaluate
