"""Signs of life of a worker: a call with every batch, of which its supervisor hears once a second.

How long a worker says nothing is measured by the clock of the one who measures and told as a duration, so that no two
processes have to agree on the time.
"""

import time
from collections.abc import Callable

Beat = Callable[[], None]
"""Called with every batch that is done."""

SECONDS = 1.0
"""Between messages: a pipe holds some hundreds, and a supervisor that thinks for minutes does not read."""


def no_beat() -> None:
    """For who trains without a supervisor."""


class Pulse:
    """The beats of one order; `send(beats, silence)` gets their number since it was last called, and the longest
    seconds between two of them."""

    def __init__(
        self,
        send: Callable[[int, float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._send, self._clock = send, clock
        self._last: float | None = None
        self._sent = clock()
        self._beats, self._silence = 0, 0.0

    def __call__(self) -> None:
        now = self._clock()
        self._beats += 1
        if self._last is not None:  # what comes before the first is no batch
            self._silence = max(self._silence, now - self._last)
        self._last = now
        if now - self._sent >= SECONDS:
            self._send(self._beats, self._silence)
            self._beats, self._silence, self._sent = 0, 0.0, now
