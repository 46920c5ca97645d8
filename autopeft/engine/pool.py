"""A pool of worker processes, seen from the supervisor: jobs go in, events come out, whatever happens to the workers.

A worker that dies, or is killed because its trial takes too long, hangs or holds too much memory, costs that trial and
is replaced. Processes are spawned, never forked (CUDA and threads do not survive a fork), one job each at a time.
"""

import logging
import os
import pickle
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.util import Finalize
from types import TracebackType

from autopeft.engine.causes import Cause
from autopeft.engine.messages import (
    Alive,
    CannotGoOn,
    EpochDone,
    Evaluate,
    EvaluationDone,
    Join,
    Message,
    Opened,
    Order,
    Settled,
    Train,
    TrialDone,
)
from autopeft.engine.process import WorkerProcess, end_all, log_file
from autopeft.engine.trial import Backend, EpochRecord, Evaluation, TrialJob, TrialResult
from autopeft.engine.watch import DEFAULT_BOUNDS, Bounds, Verdict, Watch
from autopeft.errors import AutopeftError, EnvironmentProblem
from autopeft.space.modules import Scalar


@dataclass(frozen=True)
class Ready:
    """A worker has opened its backend; comes again when a worker was replaced."""

    worker: int
    seconds: float
    facts: Mapping[str, Scalar]


@dataclass(frozen=True)
class Chosen:
    """What was open in the backend has been measured, by the first worker; comes before it is ready."""

    choices: Mapping[str, Scalar]


@dataclass(frozen=True)
class Progress:
    """Trial `number` has finished an epoch."""

    number: int
    record: EpochRecord


@dataclass(frozen=True)
class Finished:
    """A trial has ended, well or badly; exactly one for every submitted job, unless the pool is stopped before."""

    result: TrialResult


PoolEvent = Chosen | Ready | Progress | Finished

MAX_IDLE_DEATHS = 3
"""Workers that may die between trials, one after another, before the pool gives up."""


class WorkerPool:
    """Runs trials in `n_workers` processes of their own, `pack` of them together in each; use as a context manager.

    `threads` is per worker (the machine's cores divided by the workers, where None); `bounds` say when one is ended.
    What workers print goes to the file that `log` writes, and nowhere where it writes none; tracebacks of failed trials
    are logged at level DEBUG.
    """

    def __init__(
        self,
        backend: Backend,
        n_workers: int = 1,
        threads: int | None = None,
        bounds: Bounds = DEFAULT_BOUNDS,
        log: logging.Logger | None = None,
        pack: int = 1,
    ) -> None:
        assert n_workers >= 1 and pack >= 1
        self._pack = pack
        self._backend = backend
        self._threads = threads or max(1, available_cores() // n_workers)
        self._watch = Watch(bounds)
        self._log = log or logging.getLogger(__name__)
        self._n_workers = n_workers
        self._workers: list[WorkerProcess] = []
        self._events: deque[PoolEvent] = deque()
        self._evaluations: dict[WorkerProcess, Evaluation | AutopeftError] = {}
        self._fatal: AutopeftError | None = None
        self._idle_deaths = 0
        self._hung_openings: set[int] = set()
        """Workers, by index, in the place of one that hung while it opened, and not yet ready."""

    def __enter__(self) -> "WorkerPool":
        # multiprocessing joins its children when the interpreter ends; without this a pool that was never left would
        # wait there for workers that ignore SIGTERM.
        Finalize(self, end_all, args=(self._workers,), exitpriority=10)
        for index in range(self._n_workers):
            # What is not settled is measured by the first worker, so that the others do the same as it.
            self._workers.append(self._spawn(index, waits=index > 0 and not self._backend.is_settled))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(0)

    @property
    def n_free(self) -> int:
        """Trials that can be given to workers, those that are still opening included."""
        return sum(self._pack - len(worker.orders) for worker in self._free)

    @property
    def _free(self) -> list[WorkerProcess]:
        """Workers that have room for a trial."""
        return [worker for worker in self._workers if len(worker.orders) < self._pack and not worker.waits]

    @property
    def running(self) -> tuple[int, ...]:
        """Numbers of the trials in work."""
        orders = (order for worker in self._workers for order in worker.orders.values())
        return tuple(order.job.number for order in orders if not isinstance(order, Evaluate))

    def submit(self, job: TrialJob) -> None:
        """Give `job` to a worker that has room; there must be one (`n_free`)."""
        assert self._free, "submit() needs a free worker"
        order = Train(job) if self._pack == 1 else Join(job)
        self._give(min(self._free, key=lambda worker: (not worker.opened, len(worker.orders))), order)

    def wait(self, timeout: float | None = None) -> list[PoolEvent]:
        """What has happened, oldest first: at once if there is something, else after at most `timeout` seconds.

        Without a timeout it waits for the next event, and returns nothing where none can come.

        Raises:
            AutopeftError: the backend cannot be opened, or no trial can go on (a full disk); the worker's own error,
                of its own class.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while not self._events:
            self._raise_if_fatal()
            if end is None and all(worker.opened and not worker.orders for worker in self._workers):
                break
            left = None if end is None else max(0.0, end - time.monotonic())
            self._pump(left)
            if left == 0:
                break
        return self._drain()

    def evaluate(self, job: TrialJob, split: str) -> Evaluation:
        """Score the weights in `job.folder` on `split`; waits for a free worker and for the outcome.

        Raises:
            AutopeftError: the weights cannot be loaded or scored, or the worker died of it.
        """
        while not (free := [worker for worker in self._workers if worker.opened and not worker.orders]):
            self._raise_if_fatal()
            self._pump(None)
        worker = self._give(free[0], Evaluate(job, split))
        while worker not in self._evaluations:
            self._raise_if_fatal()
            self._pump(None)
        outcome = self._evaluations.pop(worker)
        if isinstance(outcome, AutopeftError):
            raise outcome
        return outcome

    def stop(self, grace: float) -> list[PoolEvent]:
        """End all workers. Running trials may still finish within `grace` seconds; later ones leave no event."""
        end = time.monotonic() + grace
        try:
            while self._fatal is None and self.running and (left := end - time.monotonic()) > 0:
                self._pump(left)
        finally:
            end_all(self._workers)
        return self._drain()

    def _drain(self) -> list[PoolEvent]:
        events = list(self._events)
        self._events.clear()
        return events

    def _spawn(self, index: int, *, waits: bool = False) -> WorkerProcess:
        worker = WorkerProcess(index, pickle.dumps(self._backend), self._threads, log_file(self._log))
        worker.waits = waits
        if not waits:
            self._watch.opens(index)
        return worker

    def _give(self, worker: WorkerProcess, order: Order) -> WorkerProcess:
        """The worker that has the order now: another one where `worker` has died since it was free."""
        while not worker.give(order):
            worker.forget(order.job.number)
            worker.process.join()
            self._fail_all(worker, Verdict("killed", worker.death))
            worker = self._replace(worker)
        if worker.opened:
            self._watch.begins(worker.index, order.job.number)
        return worker

    def _pump(self, timeout: float | None) -> None:
        """Wait for at most `timeout` seconds until something happens, and take in what did."""
        sources: dict[object, WorkerProcess] = {}
        for worker in self._workers:
            sources |= {worker.pipe: worker, worker.process.sentinel: worker}
        waits = [timeout, self._watch.tick, *(self._watch.seconds_left(worker.index) for worker in self._workers)]
        known = [seconds for seconds in waits if seconds is not None]
        happened = connection.wait(list(sources), min(known) if known else None)  # type: ignore[arg-type]
        self._watch.look()
        for worker in dict.fromkeys(sources[source] for source in happened):
            self._take_in(worker)
        for worker in list(self._workers):
            pid = worker.process.pid
            if pid is not None and (verdict := self._watch.judge(worker.index, pid)) is not None:
                if verdict.cause == "hang":
                    worker.tell_where_it_is()
                worker.process.kill()
                worker.process.join()
                self._take_in(worker, verdict)

    def _take_in(self, worker: WorkerProcess, verdict: Verdict | None = None) -> None:
        dead = worker.is_dead  # asked before its messages are read: what it sent before it died still counts
        for message in worker.messages():
            self._handle(worker, message)
        if dead and worker in self._workers:
            if verdict is None:
                kernel = self._watch.of_kernel() if worker.was_killed else None
                verdict = kernel or Verdict("killed", worker.death)
            self._bury(worker, verdict)

    def _handle(self, worker: WorkerProcess, message: Message) -> None:
        match message:
            case Settled(choices):
                self._backend = self._backend.settled(choices)
                self._events.append(Chosen(choices))
                for other in (w for w in self._workers if w.waits):
                    other.settle(choices)
                    self._watch.opens(other.index)
            case Opened(seconds, facts):
                self._watch.opened(worker.index)
                self._hung_openings.discard(worker.index)
                worker.opened, worker.since = True, dict.fromkeys(worker.orders, time.monotonic())
                for number in worker.orders:
                    self._watch.begins(worker.index, number)
                self._events.append(Ready(worker.index, seconds, facts))
                self._log.debug("worker %d is ready after %.1f s: %s", worker.index, seconds, dict(facts))
            case CannotGoOn(error, trace):
                worker.orders.clear()
                self._fatal = error
                self._log.debug("worker %d: %s\n%s", worker.index, error, trace)
            case Alive(beats, silence):
                self._watch.hears(worker.index, beats, silence)
            case EpochDone(number, record):
                self._watch.hears(worker.index)
                worker.records[number].append(record)
                self._events.append(Progress(number, record))
            case TrialDone(result, trace, usable):
                self._idle_deaths = 0
                worker.forget(result.number)
                self._watch.ends(worker.index, result.number)
                self._events.append(Finished(result))
                if trace is not None:
                    self._log.debug("trial %d failed: %s\n%s", result.number, result.error, trace)
                if not usable:
                    self._fail_all(worker, Verdict("killed", f"was replaced after what trial {result.number} did"))
                    self._replace(worker)
            case EvaluationDone(number, outcome, trace):
                self._idle_deaths = 0
                worker.forget(number)
                self._watch.ends(worker.index, number)
                self._evaluations[worker] = outcome
                if trace is not None:
                    self._log.debug("%s\n%s", outcome, trace)

    def _bury(self, worker: WorkerProcess, verdict: Verdict) -> None:
        """Account for a dead worker's order and put a new worker in its place."""
        how = verdict.what
        if not worker.opened and verdict.cause == "hang" and worker.index not in self._hung_openings:
            self._open_again(worker, how)
            return
        if not worker.orders:
            self._idle_deaths += 1
        elif worker.opened:
            self._fail_all(worker, verdict)
        self._watch.ends(worker.index)
        self._log.debug("worker %d %s", worker.index, how)
        if self._fatal is None and (not worker.opened or self._idle_deaths > MAX_IDLE_DEATHS):
            when = "before it was ready" if not worker.opened else "again and again between trials"
            why = (
                "Too little memory? A script that starts a search must do so under `if __name__ == '__main__':`"
                if verdict.cause != "hang"
                else "So did the one before it. --hang-after never waits on"
            )
            self._fatal = EnvironmentProblem(f"a worker {how} {when}; the log has what it printed. {why}")
        if self._fatal is None:
            self._replace(worker)
        else:
            self._workers.remove(worker)

    def _open_again(self, worker: WorkerProcess, how: str) -> None:
        """Once; what the worker was to do is for the new one."""
        self._log.warning("worker %d %s before it was ready and is replaced", worker.index, how)
        self._hung_openings.add(worker.index)
        successor = self._replace(worker)
        for order in worker.orders.values():
            successor.give(order)  # where it has died already, its sentinel tells

    def _fail_all(self, worker: WorkerProcess, verdict: Verdict) -> None:
        """Account for what the worker has in work. Of trials that run together, those that are late are told from the
        others, which are repeated."""
        for number, order in worker.orders.items():
            if isinstance(order, Evaluate):
                error = f"the evaluation of trial {number} on {order.split}: the worker {verdict.what}"
                self._evaluations[worker] = AutopeftError(error)
                continue
            is_bystander = bool(verdict.trials) and number not in verdict.trials
            cause: Cause = "killed" if is_bystander else verdict.cause
            of_trial = cause in ("time-out", "hang")
            error = f"the trial {verdict.what} and was stopped" if of_trial else f"the worker {verdict.what}"
            if is_bystander:
                error = "the worker was stopped because another of its trials was late"
            seconds, epochs = time.monotonic() - worker.since[number], tuple(worker.records[number])
            self._events.append(Finished(TrialResult.failed(number, cause, error, seconds=seconds, epochs=epochs)))
        worker.orders.clear()

    def _replace(self, worker: WorkerProcess) -> WorkerProcess:
        worker.end()
        self._watch.opened(worker.index)
        self._watch.ends(worker.index)
        successor = self._spawn(worker.index)
        self._workers[self._workers.index(worker)] = successor
        return successor

    def _raise_if_fatal(self) -> None:
        if self._fatal is not None:
            raise self._fatal


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
