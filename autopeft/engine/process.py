"""One worker's process as the supervisor holds it: started, given orders, listened to, ended."""

import logging
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from autopeft.engine.messages import Message, Order
from autopeft.engine.trial import EpochRecord
from autopeft.engine.worker import serve
from autopeft.space.modules import Scalar

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
_SECONDS_TO_DIE = 5.0
"""Between the end of a process' pipe and its own."""


class WorkerProcess:
    """A spawned process and what it is doing."""

    def __init__(self, index: int, backend: bytes, threads: int, log_file: Path | None) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self.index = index
        self.pipe: Connection = ours
        self.process: SpawnProcess = context.Process(
            target=serve, args=(theirs, index, threads, log_file), name=f"autopeft-worker-{index}", daemon=True
        )
        self.waits = False
        """For what another worker measures; until then it takes no order."""
        self.opened = False
        """Whether its backend is open."""
        self.orders: dict[int, Order] = {}
        """What it has to do, by the number of the trial: one order, or as many trials as it trains together."""
        self.since: dict[int, float] = {}
        """When each order could begin, on the monotonic clock."""
        self.records: dict[int, list[EpochRecord]] = {}
        """Of the trials in work."""
        with _environment(threads):
            self.process.start()
        theirs.close()
        try:
            ours.send_bytes(backend)
        except OSError:  # it has died already, which its sentinel tells
            return

    def give(self, order: Order) -> bool:
        """Whether the order could be sent; not where the process has died."""
        number = order.job.number
        self.orders[number], self.since[number], self.records[number] = order, time.monotonic(), []
        try:
            self.pipe.send(order)
        except OSError:
            return False
        return True

    def forget(self, number: int) -> None:
        """The order about this trial is done."""
        self.orders.pop(number, None)

    def settle(self, choices: Mapping[str, Scalar]) -> None:
        """What it waits for."""
        self.waits = False
        try:
            self.pipe.send(choices)
        except OSError:  # it has died already, which its sentinel tells
            return

    def messages(self) -> Iterator[Message]:
        """What it has sent and was not yet read; the last ones before its death too."""
        try:
            while self.pipe.poll():
                yield self.pipe.recv()
        except (EOFError, OSError, pickle.UnpicklingError):  # a message cut short by the death of its sender
            self.process.join(_SECONDS_TO_DIE)

    @property
    def is_dead(self) -> bool:
        return not self.process.is_alive()

    @property
    def was_killed(self) -> bool:
        """By SIGKILL, which the kernel sends too when memory runs out."""
        return self.process.exitcode == -int(getattr(signal, "SIGKILL", 9))

    @property
    def death(self) -> str:
        """How it ended: `was killed by SIGKILL`, `ended with exit code 3`."""
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"ended with exit code {code}"
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"

    def tell_where_it_is(self) -> None:
        """Have it write where its threads stand to the log, and end, if it still can."""
        if hasattr(signal, "SIGUSR1") and self.process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGUSR1)
            self.process.join(_SECONDS_TO_DIE)

    def end(self) -> None:
        """Kill it and wait until it is gone; it ignores anything milder."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """What libraries read when they are first imported, which in a spawned process is before it runs code of ours."""
    # Threads that spin while they wait for each other are several times slower on a machine that is not idle.
    ours = dict.fromkeys(_THREAD_VARIABLES, str(threads)) | {"OMP_WAIT_POLICY": "passive"}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def end_all(workers: list[WorkerProcess]) -> None:
    """End all of them together and empty the list."""
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.end()
    workers.clear()


def log_file(log: logging.Logger) -> Path | None:
    """The file that `log` writes to, also through its parents."""
    return next((Path(h.baseFilename) for h in _handlers(log) if isinstance(h, logging.FileHandler)), None)


def _handlers(log: logging.Logger | None) -> Iterable[logging.Handler]:
    while log is not None:
        yield from log.handlers
        log = log.parent if log.propagate else None
