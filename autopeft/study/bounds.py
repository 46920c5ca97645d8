"""When workers are ended, from a search's settings. None of it is part of what the study is."""

from autopeft.engine.memory import parse_memory
from autopeft.engine.watch import Bounds
from autopeft.errors import UsageError
from autopeft.study.settings import SearchSettings, parse_duration

NEVER = "never"


def parse_bounds(settings: SearchSettings) -> Bounds:
    """
    Raises:
        UsageError: an option cannot be read.
    """
    timeout, memory = settings.trial_timeout, settings.worker_memory
    return Bounds(
        trial_seconds=parse_duration("trial-timeout", timeout) if timeout else None,
        silence_seconds=None if settings.hang_after == NEVER else parse_duration("hang-after", settings.hang_after),
        memory_bytes=_positive(memory) if memory else None,
    )


def _positive(memory: str) -> int:
    if (n_bytes := parse_memory("worker-memory", memory)) < 1:
        raise UsageError("--worker-memory: must be above 0. Leave it out for no limit")
    return n_bytes
