"""What ends a search before its total: signals, and too many failures."""

import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from autopeft.engine.causes import OVER_A_LIMIT
from autopeft.engine.trial import TrialResult
from autopeft.errors import FailurePolicyError

GRACE_SECONDS = 30.0
"""How long running trials may go on after the first Ctrl-C."""

EQUAL_FAILURES = 3
FIRST_TRIALS = 10
REJECTED_IN_A_ROW = 50
"""Architectures over a limit: they cost seconds and are no failures, but a limit that nothing keeps must be told."""


@dataclass
class Stop:
    """Set by signals: how often SIGINT came, and whether SIGTERM or SIGHUP did."""

    interrupts: int = 0
    terminated: bool = False
    since: float = 0.0

    @property
    def signal(self) -> str | None:
        if self.terminated:
            return "SIGTERM"
        return "SIGINT" if self.interrupts else None

    @property
    def now(self) -> bool:
        """Running trials are not to be waited for (any longer)."""
        late = self.interrupts > 0 and time.monotonic() - self.since > GRACE_SECONDS
        return self.terminated or self.interrupts > 1 or late


@contextmanager
def signals() -> Iterator[Stop]:
    """Signals ask to stop, where this is the main thread; the earlier handlers are put back after."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        stop.interrupts += 1
        stop.since = stop.since or time.monotonic()

    def terminate(number: int, frame: FrameType | None) -> None:
        stop.terminated = True

    wanted = {signal.SIGINT: interrupt, signal.SIGTERM: terminate}
    if hasattr(signal, "SIGHUP"):
        wanted[signal.SIGHUP] = terminate
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class FailurePolicy:
    """Stops a search whose trials cannot succeed: equal failures in a row, or over half of the first ten.

    Trials that were rejected by a limit are counted apart.
    """

    ended: int = 0
    failed: int = 0
    rejected: int = 0
    """In a row."""
    last: deque[str] = field(default_factory=lambda: deque(maxlen=EQUAL_FAILURES))

    def count(self, result: TrialResult) -> None:
        """
        Raises:
            FailurePolicyError: enough is enough; names the cause once.
        """
        if result.cause == OVER_A_LIMIT:
            self.rejected += 1
            if self.rejected == REJECTED_IN_A_ROW:
                raise FailurePolicyError(
                    f"{REJECTED_IN_A_ROW} architectures in a row were rejected, the last one since {result.error}. "
                    "Loosen the limit, or search a smaller --budget or another --space"
                )
            return
        self.ended += 1
        self.rejected = 0
        if result.state != "failed":
            self.last.clear()
            return
        self.failed += 1
        self.last.append(f"{result.cause}: {result.error}")
        if len(self.last) == EQUAL_FAILURES and len(set(self.last)) == 1:
            raise FailurePolicyError(f"{EQUAL_FAILURES} trials in a row failed in the same way: {self.last[-1]}")
        if self.ended <= FIRST_TRIALS and self.failed > FIRST_TRIALS // 2:
            raise FailurePolicyError(
                f"{self.failed} of the first {self.ended} trials failed, the last of them: {self.last[-1]}"
            )
