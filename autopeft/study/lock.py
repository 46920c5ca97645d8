"""One search per run folder: a lock of the kernel, which dies with its process, and a note of who holds it.

The lock decides; the note is for people. A process is recognised by its start in ticks since the machine's boot, never
by the wall clock, which may jump.
"""

import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import psutil
from filelock import FileLock, Timeout

from autopeft.errors import EnvironmentProblem, StudyBusyError
from autopeft.resources import atomic_write

LOCK_FILE = ".lock"
OWNER_FILE = ".owner.json"


@dataclass(frozen=True)
class Owner:
    """The process that searches, or searched, in a run folder."""

    host: str
    pid: int
    started: str
    """UTC, ISO 8601, for people."""
    process: str
    """Tells the process from a later one with the same pid."""
    command: str

    @property
    def may_live(self) -> bool:
        """False where it is known to be dead; a process of another host cannot be asked."""
        return self.host != socket.gethostname() or _process(self.pid) == self.process


def read_owner(run: Path) -> Owner | None:
    """Who holds the run folder as far as its note tells; None where nobody does."""
    try:
        owner = Owner(**json.loads((run / OWNER_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    kinds = {"host": str, "pid": int, "started": str, "process": str, "command": str}
    well_formed = all(type(getattr(owner, name)) is kind for name, kind in kinds.items())
    return owner if well_formed and owner.may_live else None


class RunLock:
    """Holds a run folder while in its `with` block; makes the folder if need be.

    Raises:
        StudyBusyError: another process holds it; names its pid, host and start.
        EnvironmentProblem: the folder cannot be written.
    """

    def __init__(self, run: Path, clock: Callable[[], float] = time.time) -> None:
        self.run = run
        self._clock = clock
        self._lock = FileLock(run / LOCK_FILE, thread_local=False)

    def __enter__(self) -> "RunLock":
        try:
            self.run.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
        except Timeout:
            raise StudyBusyError(_busy(self.run)) from None
        except OSError as error:
            raise EnvironmentProblem(f"{self.run}: the run folder cannot be written: {error.strerror}") from error
        try:
            self._sign()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # the folder may be gone; the kernel's lock is what counts
            (self.run / OWNER_FILE).unlink(missing_ok=True)
        self._lock.release()

    def _sign(self) -> None:
        started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._clock()))
        owner = Owner(socket.gethostname(), os.getpid(), started, _process(os.getpid()), shlex.join(sys.argv))
        try:
            atomic_write(self.run / OWNER_FILE, json.dumps(asdict(owner), indent=2) + "\n")
        except OSError as error:
            raise EnvironmentProblem(f"{self.run}: the run folder cannot be written: {error.strerror}") from error


def _busy(run: Path) -> str:
    owner = read_owner(run)
    who = (
        f"pid {owner.pid} on {owner.host}, since {owner.started} ({owner.command})"
        if owner
        else "a process that has just started"
    )
    return f"{run}: another search is running here: {who}. Wait for it, stop it, or give another folder with --run."


def _process(pid: int) -> str:
    """The process as boot and start in ticks where /proc tells them, else its start in seconds; '' where it is dead."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, *fields = status.rpartition(")")[2].split()
        return "" if state == "Z" else f"{boot}/{fields[18]}"  # field 22 of proc(5): starttime
    except OSError:
        pass
    try:
        return f"{psutil.Process(pid).create_time():.0f}"
    except psutil.Error:
        return ""
