"""What runs in a worker's process: opens the backend once, then serves trials over a pipe until it is told to stop.

The supervisor decides when a worker ends, so SIGINT, SIGTERM and SIGHUP, which a terminal or a batch system sends to
the whole group, are ignored here; a watchdog ends the process the moment its parent is gone.
"""

import ctypes
import errno
import faulthandler
import gc
import logging
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from autopeft.engine.causes import OVER_A_LIMIT, Cause, is_out_of_memory
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
    TrialDone,
)
from autopeft.engine.pulse import Beat, Pulse, no_beat
from autopeft.engine.trial import (
    RESULT_FILE,
    Backend,
    EpochRecord,
    NotFiniteError,
    Trainer,
    TrialJob,
    TrialResult,
    TrialsTogether,
    write_result,
)
from autopeft.errors import AutopeftError, DataError, EnvironmentProblem, OverLimitError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Numbers of options in glibc's malloc.h."""
_KEPT_BYTES = 2**30
"""Of freed memory, at most."""
_MAPPED_BYTES = 2**26
"""From which on a block comes from the system and goes back there: most activations are smaller, caches larger."""

_DATA_DO_NOT_FIT = ("is out of bounds", "index out of range in self")
"""What a loss says of a label, and an embedding of a token, that the model does not have."""


def serve(pipe: Connection, index: int, threads: int, log_file: Path | None) -> None:
    """The process: its first message is the backend, pickled, and all further ones are orders."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    _end_with_parent()
    _redirect_output(log_file)
    _limit_threads(threads)
    start = time.monotonic()
    try:
        backend: Backend = pickle.loads(pipe.recv_bytes())
        if not backend.is_settled:
            if index == 0:
                choices = backend.settle(index)
                pipe.send(Settled(choices))
            else:  # by now all is imported
                choices = pipe.recv()
            backend = backend.settled(choices)
        trainer = backend.open(index)
        let_garbage_be_found_fast()
        keep_freed_memory()
    except Exception as error:
        pipe.send(CannotGoOn(_as_autopeft_error(error, "the worker could not start"), traceback.format_exc()))
        return
    _limit_threads(threads)
    pipe.send(Opened(time.monotonic() - start, dict(trainer.facts)))
    together = trainer.together()
    begun: dict[int, Begun] = {}
    while True:
        while not together.running or pipe.poll():
            try:
                order: Order = pipe.recv()
            except EOFError:
                return
            if not _answered(pipe, partial(_obey, trainer, together, begun, order, pipe)):
                return
        for job, outcome in together.advance():
            if not _answered(pipe, partial(begun.pop(job.number).end, outcome)):
                return


def _answered(pipe: Connection, answer: Callable[[], Message | None]) -> bool:
    """Send the answer, if there is one; whether the worker can go on after it."""
    try:
        message = answer()
    except EnvironmentProblem as error:
        message = CannotGoOn(error, traceback.format_exc())
    if message is not None:
        pipe.send(message)
    return not isinstance(message, CannotGoOn)


def _obey(
    trainer: Trainer, together: TrialsTogether, begun: "dict[int, Begun]", order: Order, pipe: Connection
) -> Message | None:
    """The answer to an order; None where it comes later.

    Raises:
        EnvironmentProblem: no trial can go on.
    """
    job = order.job
    beat = Pulse(lambda beats, silence: pipe.send(Alive(beats, silence)))

    def on_epoch(record: EpochRecord) -> None:
        pipe.send(EpochDone(job.number, record))

    match order:
        case Evaluate(split=split):
            try:
                return EvaluationDone(job.number, trainer.evaluate(job, split, beat), None)
            except Exception as error:
                what = f"trial {job.number} could not be evaluated on {split}"
                return EvaluationDone(job.number, _as_autopeft_error(error, what), traceback.format_exc())
        case Join():
            trial = begun[job.number] = Begun(job, on_epoch)
            try:
                together.begin(job, trial.keep, beat)
            except Exception as error:
                return begun.pop(job.number).end(error)
            return None
    return run_trial(trainer, job, on_epoch, beat)


class Begun:
    """A trial that has begun: its result file of an earlier attempt, if there is one, is taken away.

    Raises:
        EnvironmentProblem: the folder cannot be written.
    """

    def __init__(self, job: TrialJob, on_epoch: Callable[[EpochRecord], None]) -> None:
        self._job, self._on_epoch = job, on_epoch
        self._start = time.monotonic()
        self._records: list[EpochRecord] = []
        with _written(job.folder):
            (job.folder / RESULT_FILE).unlink(missing_ok=True)

    def keep(self, record: EpochRecord) -> None:
        """An epoch is done."""
        self._records.append(record)
        self._on_epoch(record)

    def end(self, outcome: TrialResult | Exception) -> TrialDone:
        """Write the result file; whatever was raised becomes a failed result.

        Raises:
            EnvironmentProblem: the folder cannot be written, or that is what was raised.
        """
        trace, usable = None, True
        if isinstance(outcome, Exception):
            if isinstance(outcome, EnvironmentProblem):
                raise outcome
            if _is_about_the_disk(outcome):
                raise EnvironmentProblem(f"{self._job.folder}: cannot be written: {describe(outcome)}") from outcome
            trace, usable = "".join(traceback.format_exception(outcome)), not _spoils_the_process(outcome)
            outcome = TrialResult.failed(
                self._job.number,
                classify(outcome),
                describe(outcome),
                seconds=time.monotonic() - self._start,
                epochs=tuple(self._records),
                peak_memory_bytes=peak_memory_bytes(),
            )
        with _written(self._job.folder):
            write_result(self._job.folder, outcome)
        return TrialDone(outcome, trace, usable)


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnvironmentProblem(f"{folder}: cannot be written: {error.strerror or error}") from error


def run_trial(
    trainer: Trainer, job: TrialJob, on_epoch: Callable[[EpochRecord], None], beat: Beat = no_beat
) -> TrialDone:
    """Train `job`; whatever it raises becomes a failed result, but for problems that every trial would have.

    The result file is written last, and only by a trial that came to its end, well or badly; one that an earlier
    attempt left there is taken away first.

    Raises:
        EnvironmentProblem: the folder cannot be written, or the trainer raised it.
    """
    begun = Begun(job, on_epoch)
    outcome: TrialResult | Exception
    try:
        outcome = trainer.train(job, begun.keep, beat)
    except Exception as error:
        outcome = error
    return begun.end(outcome)


def classify(error: BaseException) -> Cause:
    """The cause of failure that an exception stands for."""
    if isinstance(error, NotFiniteError):
        return "NaN"
    if isinstance(error, OverLimitError):
        return OVER_A_LIMIT
    if is_out_of_memory(error):
        return "OOM"
    does_not_fit = isinstance(error, IndexError) and any(text in str(error) for text in _DATA_DO_NOT_FIT)
    return "data" if does_not_fit or isinstance(error, DataError | UnicodeError) else "bug"


def describe(error: BaseException) -> str:
    """The exception in one line, with its class unless the message is meant for users."""
    first = next(iter(str(error).strip().splitlines()), "")
    return first if isinstance(error, AutopeftError) else f"{type(error).__name__}: {first}".rstrip(": ")


def let_garbage_be_found_fast() -> None:
    """Leave all that is alive now out of later searches for garbage: each trial ends with one, and the modules of torch
    and transformers alone make it take longer than a short trial."""
    gc.collect()
    gc.freeze()


def keep_freed_memory() -> None:
    """Leave what a training step has freed to the next one, where the C library is glibc.

    Else its allocator may hand hundreds of pages back to the system after each step, which zeroes and maps them anew in
    the next one: where it did, steps of 100 to 300 ms took 4 % longer. The high-water mark rose from 775 to 797 MB.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another way to load it
        return
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    if not mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES):
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES // 2)  # the most that older versions take


def peak_memory_bytes() -> int | None:
    """High-water mark of this process' resident memory; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _is_about_the_disk(error: Exception) -> bool:
    full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
    return full or "No space left on device" in str(error)  # safetensors raises an error of its own


def _spoils_the_process(error: BaseException) -> bool:
    # After a CUDA error every further call on the device fails; after want of memory it is fragmented.
    return is_out_of_memory(error) or "CUDA error" in str(error)


def _as_autopeft_error(error: Exception, what: str) -> AutopeftError:
    """`error` itself where it is meant for users and survives the pipe, else one that says `what` failed."""
    if isinstance(error, AutopeftError):
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            return AutopeftError(str(error))
        return error
    if is_out_of_memory(error):
        return EnvironmentProblem(f"{what}: out of memory")
    return AutopeftError(f"{what}: {describe(error)}")


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "a worker is started by multiprocessing"

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="watchdog", daemon=True).start()


def _redirect_output(log_file: Path | None) -> None:
    """Send stdout and stderr, also those of C libraries, to the log: a terminal belongs to the supervisor."""
    target: Any = log_file or os.devnull
    descriptor = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    faulthandler.enable()
    if hasattr(faulthandler, "register"):  # not on Windows; the supervisor sends it to a worker that hangs
        faulthandler.register(signal.SIGUSR1, chain=True)
    logging.captureWarnings(True)


def _limit_threads(threads: int) -> None:
    """The environment, set by the supervisor, limits what reads it; torch may have been told otherwise since."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(threads)
