"""Why a trial failed: the words for it, what they mean, and what follows from them."""

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

Cause = Literal["OOM", "NaN", "data", "bug", "time-out", "hang", "memory", "killed", "over a limit"]
OVER_A_LIMIT: Cause = "over a limit"

CAUSES: Mapping[Cause, str] = {
    "OOM": "a step did not fit into the memory, not even row by row",
    "NaN": "a loss or a metric was NaN or infinite",
    "data": "the data did not fit the model or the metric",
    "bug": "any other exception",
    "time-out": "it took longer than --trial-timeout",
    "hang": "its worker made no progress for far longer than ever before",
    "memory": "its worker's process held more than --worker-memory, or the kernel ended it for want of memory",
    "killed": "its worker's process died otherwise",
    "over a limit": "rejected before it was trained, by --max-latency-overhead or --max-memory",
}

RETRIED: frozenset[Cause] = frozenset({"hang", "memory", "killed"})
"""What may have come upon the worker and not from the trial: repeated once, by a new worker."""

_EARLIER_WORDS: Mapping[str, Cause] = {
    "exception": "bug",
    "not finite": "NaN",
    "timeout": "time-out",
    "out of memory": "OOM",
}
"""In the files of studies that were made before there were these."""

_CPU_WANTS_MEMORY = ("can't allocate memory", "not enough memory")
"""A CPU tensor that does not fit is a plain RuntimeError in torch."""


def cause_of(word: str) -> Cause:
    """The cause that a file names.

    Raises:
        ValueError: it is none.
    """
    found = _EARLIER_WORDS.get(word, word)
    for cause in get_args(Cause):
        if cause == found:
            return cause
    raise ValueError(f"{word!r} is not a cause of failure")


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU_WANTS_MEMORY)


def tally(causes: Iterable[Cause | None]) -> dict[str, int]:
    """How often each cause occurs, most frequent first; None counts for nothing."""
    found = [cause for cause in causes if cause is not None]
    return dict(sorted(((cause, found.count(cause)) for cause in CAUSES if cause in found), key=lambda item: -item[1]))
