"""Watching workers from outside: how long a trial takes, how long it makes no progress, how much memory it holds.

A worker that hangs is told from one that works slowly by what workers did before. One that is still opening, loads a
model or tokenises rows, has no batches to tell of: there it counts whether its process uses the processor. Only time in
which the supervisor was awake to listen counts: after a laptop has slept, or all processes were stopped, nobody is
blamed for it.

Memory is polled from here and not limited with `setrlimit`: RLIMIT_AS counts address space, of which CUDA and mapped
files take far more than memory, and Linux does not enforce RLIMIT_RSS. What counts is what the process itself holds,
without pages of files, such as those of the shared cache, which the kernel can take back.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from autopeft.engine.causes import Cause
from autopeft.engine.memory import amount

TICK_SECONDS = 0.5
"""Between looks at what sends no message."""
FIRST_BEATS = 3
"""Batches of an order before its silence is compared with others: around the first ones, libraries prepare things."""
PATIENCE_AT_FIRST = 6
"""Times the least patience, until there are that many."""
PATIENCE = 20
"""Times the longest silence of a worker that went on."""
OPENING_SECONDS = 60.0
"""The least patience with a worker that is opening: a busy machine may take that long to start a process at all."""
IDLE = 0.0005
"""Share of the time in which an idle process uses the processor, at most; asking again and again for a lock is twice
that, and who waits for another worker's download does so."""
_LONGEST_NAP = 5.0
"""Seconds between two looks that count as awake."""
_EVIDENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Bounds:
    """None: no bound."""

    trial_seconds: float | None = None
    silence_seconds: float | None = 300.0
    """The least that counts as a hang."""
    memory_bytes: int | None = None


DEFAULT_BOUNDS = Bounds()


@dataclass(frozen=True)
class Verdict:
    """Why a worker is ended, or has been."""

    cause: Cause
    what: str
    """Of the trial or the worker: `took longer than 5 s`."""
    trials: frozenset[int] = frozenset()
    """Those that it is about, of several in work; empty: all of them."""


@dataclass
class _Order:
    since: dict[int, float]
    """When each trial began, by the plain clock."""
    heard: float
    """When it was last heard of, by the clock of the supervisor's waking hours."""
    beats: int = 0


@dataclass
class _Opening:
    worked: float
    """When it was last found to have used the processor, by the clock of the supervisor's waking hours."""
    used: float = 0.0
    """Seconds of the processor that it had used then."""


class Watch:
    """What is known of all workers of a pool, by their numbers."""

    def __init__(
        self,
        bounds: Bounds,
        clock: Callable[[], float] = time.monotonic,
        held_bytes: Callable[[int], int] | None = None,
        kernel_kills: Callable[[], int] | None = None,
        used_seconds: Callable[[int], float] | None = None,
    ) -> None:
        self._bounds, self._clock = bounds, clock
        self._held_bytes = held_bytes or process_bytes
        self._kernel_kills = kernel_kills or count_kernel_kills
        self._used_seconds = used_seconds or processor_seconds
        self._openings: dict[int, _Opening] = {}
        self._orders: dict[int, _Order] = {}
        self._longest = 0.0
        """The longest silence that ended."""
        self._awake, self._looked = 0.0, clock()
        self._kills: deque[tuple[float, int]] = deque()

    @property
    def tick(self) -> float | None:
        """Seconds between looks; None where there is nothing to look for."""
        least = self._bounds.silence_seconds
        if least is None and self._bounds.memory_bytes is None:
            return None
        return TICK_SECONDS if least is None else min(TICK_SECONDS, least)

    def opens(self, worker: int) -> None:
        """The worker begins to load what it needs."""
        self._openings[worker] = _Opening(self._now())

    def opened(self, worker: int) -> None:
        """It is ready, or gone."""
        self._openings.pop(worker, None)

    def begins(self, worker: int, number: int = 0) -> None:
        """The worker has an order and could begin with it; others about other trials may be in work."""
        since = self._orders[worker].since if worker in self._orders else {}
        self._orders[worker] = _Order({**since, number: self._clock()}, self._now())

    def hears(self, worker: int, beats: int = 1, silence: float = 0.0) -> None:
        """The worker has gone on: so many batches, at most `silence` seconds between two."""
        self._longest = max(self._longest, silence)
        if (order := self._orders.get(worker)) is not None:
            order.heard = self._now()
            order.beats += beats

    def ends(self, worker: int, number: int | None = None) -> None:
        """The order about a trial is done; None: all of them are."""
        if (order := self._orders.get(worker)) is not None:
            order.since.pop(number, None) if number is not None else order.since.clear()
            if not order.since:
                del self._orders[worker]

    def look(self) -> None:
        """To be called at least once a tick, and often enough that no sleep of the machine counts as time awake."""
        self._now()
        now = self._clock()
        self._kills.append((now, self._kernel_kills()))
        while len(self._kills) > 1 and self._kills[1][0] <= now - _EVIDENCE_SECONDS:
            self._kills.popleft()

    def seconds_left(self, worker: int) -> float | None:
        """Until the order is late; None where it never is."""
        order, most = self._orders.get(worker), self._bounds.trial_seconds
        if order is None or most is None:
            return None
        return max(0.0, min(order.since.values()) + most - self._clock())

    def judge(self, worker: int, pid: int) -> Verdict | None:
        """Why the worker is to be ended; None if it is not. Its messages must have been read before."""
        most = self._bounds.memory_bytes
        if most is not None and (held := self._held_bytes(pid)) > most:
            return Verdict("memory", f"held {amount(held)} of memory, over --worker-memory {amount(most)}")
        if (opening := self._openings.get(worker)) is not None:
            return self._judge_opening(opening, self._used_seconds(pid))
        if (order := self._orders.get(worker)) is None:
            return None
        if self.seconds_left(worker) == 0:
            seconds, now = self._bounds.trial_seconds or 0.0, self._clock()
            late = frozenset(number for number, since in order.since.items() if since + seconds <= now)
            return Verdict("time-out", f"took longer than {seconds:g} s", late)
        silence = self._now() - order.heard
        if self._bounds.silence_seconds is not None and silence > self.patience(order.beats):
            return Verdict("hang", f"made no progress for {_rounded(silence)} s")
        return None

    def _judge_opening(self, opening: _Opening, used: float) -> Verdict | None:
        idle, least = self._now() - opening.worked, self._bounds.silence_seconds
        if used - opening.used > IDLE * idle:
            opening.worked, opening.used = self._now(), used
        elif least is not None and idle > max(PATIENCE_AT_FIRST * least, OPENING_SECONDS):
            return Verdict("hang", f"did nothing for {_rounded(idle)} s")
        return None

    def patience(self, beats: int) -> float:
        """Seconds of silence after which an order counts as hung that has had so many batches."""
        least = self._bounds.silence_seconds
        assert least is not None
        return max(least * (1 if beats >= FIRST_BEATS else PATIENCE_AT_FIRST), PATIENCE * self._longest)

    def of_kernel(self) -> Verdict | None:
        """Of a worker that SIGKILL has ended and nobody here has sent: whether the kernel did, for want of memory."""
        self.look()
        if self._kills[-1][1] <= self._kills[0][1]:
            return None
        return Verdict("memory", "was killed by the kernel, which was out of memory")

    def _now(self) -> float:
        """Seconds that this process was awake for since the watch began."""
        now = self._clock()
        self._awake += min(now - self._looked, _LONGEST_NAP)
        self._looked = now
        return self._awake


def _rounded(seconds: float) -> str:
    return f"{seconds:.3g}" if seconds < 100 else f"{seconds:,.0f}"


def process_bytes(pid: int) -> int:
    """Memory that the process holds, without pages of files where the system tells them apart; 0 if it is gone."""
    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0
    return int(memory.rss) - int(getattr(memory, "shared", 0))


def processor_seconds(pid: int) -> float:
    """Of the processor that the process has used; 0 if it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


_CGROUPS = Path("/sys/fs/cgroup")


def count_kernel_kills() -> int:
    """Processes that the kernel has ended for want of memory: in our control group, else on the machine, else 0."""
    for file in (*_own_counters(), Path("/proc/vmstat")):
        try:
            lines = file.read_text(encoding="ascii").splitlines()
        except (OSError, ValueError):
            continue
        for line in lines:
            name, _, value = line.partition(" ")
            if name == "oom_kill" and value.isdigit():
                return int(value)
    return 0


def _own_counters() -> list[Path]:
    """Of this process' control group, in version 2 and in version 1, as a container sees them or the machine does."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    files = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        place = path.lstrip("/")
        if controllers == "":
            files += [_CGROUPS / place / "memory.events", _CGROUPS / "memory.events"]
        elif "memory" in controllers.split(","):
            files += [_CGROUPS / "memory" / place / "memory.oom_control", _CGROUPS / "memory" / "memory.oom_control"]
    return files
