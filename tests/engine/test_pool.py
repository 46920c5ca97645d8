import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from autopeft.engine import watch
from autopeft.engine.pool import Chosen, Finished, PoolEvent, Progress, Ready, WorkerPool
from autopeft.engine.toy import Failure, ToyBackend, ToyTrainer
from autopeft.engine.trial import RESULT_FILE, TrialJob, TrialResult, read_result, trial_seed
from autopeft.engine.watch import Bounds
from autopeft.errors import AutopeftError, EnvironmentProblem, ModelError
from autopeft.space.architecture import Architecture, place

PATIENCE = 60.0
"""Seconds after which a wait counts as hung; nothing here takes more than two."""


def job(number: int, folder: Path, size: int = 8) -> TrialJob:
    architecture = Architecture.of([place("encoder", 0, "attn.q", "lora", size)])
    return TrialJob(number, architecture, (), trial_seed(0, number), folder / f"{number:04d}")


def until_finished(pool: WorkerPool, n: int = 1) -> list[PoolEvent]:
    """All events up to the n-th `Finished`."""
    events: list[PoolEvent] = []
    end = time.monotonic() + PATIENCE
    while sum(isinstance(event, Finished) for event in events) < n:
        assert time.monotonic() < end, f"only {events}"
        events += pool.wait(timeout=1)
    return events


def results(events: list[PoolEvent]) -> dict[int, TrialResult]:
    return {event.result.number: event.result for event in events if isinstance(event, Finished)}


@pytest.fixture(autouse=True)
def no_orphans() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def failing(**by_name: int) -> Mapping[int, Failure]:
    return {number: name for name, number in by_name.items()}  # type: ignore[misc]


def test_events_of_a_trial_come_in_order(tmp_path: Path) -> None:
    with WorkerPool(ToyBackend(epochs=3)) as pool:
        pool.submit(job(7, tmp_path))
        assert pool.n_free == 0 and pool.running == (7,)
        events = until_finished(pool)
        assert pool.n_free == 1 and pool.running == ()
    ready, *progress, finished = events
    assert isinstance(ready, Ready) and ready.facts == {"device": "toy"}
    assert [(e.number, e.record.epoch) for e in progress if isinstance(e, Progress)] == [(7, 1), (7, 2), (7, 3)]
    assert isinstance(finished, Finished) and finished.result.state == "complete"
    assert finished.result.epochs == tuple(e.record for e in progress if isinstance(e, Progress))
    assert read_result(tmp_path / "0007") == finished.result


def test_no_failure_of_a_trial_harms_the_next_one(tmp_path: Path) -> None:
    kinds = ("raise", "nan", "memory", "abort", "exit", "kill", "data")
    backend = ToyBackend(failures=dict(enumerate(kinds)))
    with WorkerPool(backend, n_workers=2) as pool:
        events: list[PoolEvent] = []
        for number in range(len(kinds) + 1):
            while pool.n_free == 0:
                events += pool.wait(timeout=PATIENCE)
            pool.submit(job(number, tmp_path))
        events += until_finished(pool, len(kinds) + 1 - len(results(events)))
    found = results(events)
    assert {number: result.cause for number, result in found.items()} == {
        0: "bug",
        1: "NaN",
        2: "OOM",
        3: "killed",
        4: "killed",
        5: "killed",
        6: "data",
        7: None,
    }
    assert found[0].error == "RuntimeError: this trial was told to fail"
    assert found[3].error == "the worker was killed by SIGABRT"
    assert found[4].error == "the worker ended with exit code 3"
    assert found[5].error == "the worker was killed by SIGKILL"
    assert all(len(found[number].epochs) == 1 for number in range(7)), "epochs before the failure are kept"
    assert found[7].state == "complete"
    for number in (0, 1, 2, 6):
        assert read_result(tmp_path / f"{number:04d}") == found[number]
    for number in (3, 4, 5):
        assert read_result(tmp_path / f"{number:04d}") is None, "a killed trial is not finished"


def test_a_trial_that_hangs_is_stopped_at_its_time_limit(tmp_path: Path) -> None:
    with WorkerPool(ToyBackend(failures=failing(hang=0)), bounds=Bounds(trial_seconds=0.5)) as pool:
        pool.submit(job(0, tmp_path))
        result = results(until_finished(pool))[0]
        assert (result.cause, result.error) == ("time-out", "the trial took longer than 0.5 s and was stopped")
        assert result.seconds >= 0.5
        pool.submit(job(1, tmp_path))
        assert results(until_finished(pool))[1].state == "complete"


def test_a_worker_that_makes_no_progress_is_replaced(tmp_path: Path) -> None:
    with WorkerPool(ToyBackend(failures=failing(hang=0)), bounds=Bounds(silence_seconds=0.05)) as pool:
        pool.submit(job(0, tmp_path))
        result = results(until_finished(pool))[0]
        assert result.cause == "hang" and re.fullmatch(
            r"the trial made no progress for [\d.]+ s and was stopped", result.error or ""
        )
        assert len(result.epochs) == 1
        pool.submit(job(1, tmp_path))
        assert results(until_finished(pool))[1].state == "complete"


@pytest.mark.skipif(sys.platform == "win32", reason="memory is counted otherwise")
def test_a_worker_that_holds_too_much_memory_is_replaced(tmp_path: Path) -> None:
    with WorkerPool(ToyBackend(failures=failing(swell=0)), bounds=Bounds(memory_bytes=300 << 20)) as pool:
        pool.submit(job(0, tmp_path))
        result = results(until_finished(pool))[0]
        assert result.cause == "memory" and re.fullmatch(
            r"the worker held \d+ MiB of memory, over --worker-memory 300 MiB", result.error or ""
        )
        pool.submit(job(1, tmp_path))
        assert results(until_finished(pool))[1].state == "complete"


def test_a_worker_that_dies_between_trials_is_replaced(tmp_path: Path) -> None:
    with WorkerPool(ToyBackend()) as pool:
        assert [type(event) for event in pool.wait(PATIENCE)] == [Ready]
        (child,) = multiprocessing.active_children()
        child.kill()
        child.join(PATIENCE)
        pool.submit(job(0, tmp_path))
        assert results(until_finished(pool))[0].state == "complete"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_workers_leave_signals_to_the_supervisor(tmp_path: Path) -> None:
    with WorkerPool(ToyBackend(failures=failing(hang=0)), bounds=Bounds(trial_seconds=5)) as pool:
        pool.submit(job(0, tmp_path))
        while not any(isinstance(event, Progress) for event in pool.wait(PATIENCE)):
            pass
        (child,) = multiprocessing.active_children()
        assert child.pid is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(child.pid, number)
        assert results(until_finished(pool))[0].cause == "time-out"


def test_a_backend_that_does_not_open_raises_its_own_error(tmp_path: Path) -> None:
    with WorkerPool(ToyBackend(broken="no such model"), n_workers=2) as pool:
        pool.submit(job(0, tmp_path))
        with pytest.raises(ModelError, match=r"^no such model$") as raised:
            until_finished(pool)
        assert raised.value.exit_code == 2
        with pytest.raises(ModelError):
            pool.wait(PATIENCE)


@dataclass(frozen=True)
class Defective(ToyBackend):
    """Has a bug."""

    def open(self, worker: int = 0) -> ToyTrainer:
        raise LookupError("internal\ndetails")


@dataclass(frozen=True)
class Vanishing(ToyBackend):
    def open(self, worker: int = 0) -> ToyTrainer:
        os._exit(9)


def test_any_other_error_at_opening_is_told_in_one_line() -> None:
    with WorkerPool(Defective()) as pool, pytest.raises(AutopeftError) as raised:
        pool.wait(PATIENCE)
    assert str(raised.value) == "the worker could not start: LookupError: internal"


class Telling(ToyTrainer):
    def __init__(self, backend: "Undecided") -> None:
        super().__init__(backend)
        self._decided = backend.decided

    @property
    def facts(self) -> Mapping[str, int]:
        return {"decided": self._decided or 0}


@dataclass(frozen=True)
class Undecided(ToyBackend):
    """Has something to be measured: the number of the process that does."""

    decided: int | None = None

    @property
    def is_settled(self) -> bool:
        return self.decided is not None

    def settle(self, worker: int = 0) -> Mapping[str, int]:
        return {"decided": os.getpid()}

    def settled(self, choices: Mapping[str, object]) -> "Undecided":
        return replace(self, decided=choices["decided"])  # type: ignore[arg-type]

    def open(self, worker: int = 0) -> ToyTrainer:
        return Telling(self)


def test_what_has_to_be_measured_is_measured_by_one_worker_for_all() -> None:
    with WorkerPool(Undecided(), n_workers=3) as pool:
        events: list[PoolEvent] = []
        while sum(isinstance(event, Ready) for event in events) < 3:
            events += pool.wait(PATIENCE)
    chosen, *ready = events
    assert isinstance(chosen, Chosen)
    assert [event.facts for event in ready if isinstance(event, Ready)] == [chosen.choices] * 3


@dataclass(frozen=True)
class Endless(ToyBackend):
    def open(self, worker: int = 0) -> ToyTrainer:
        threading.Event().wait()
        return ToyTrainer(self)


def test_a_backend_that_does_not_fit_into_the_memory_of_a_worker_is_a_problem_of_the_environment() -> None:
    with (
        WorkerPool(Endless(), bounds=Bounds(memory_bytes=1 << 20)) as pool,
        pytest.raises(EnvironmentProblem, match=r"a worker held .* over --worker-memory 1 MiB before it was ready"),
    ):
        pool.wait(PATIENCE)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Bounds:
    """Bounds under which a worker that waits while it opens is a hang after two seconds."""
    monkeypatch.setattr(watch, "OPENING_SECONDS", 2.0)
    return Bounds(silence_seconds=0.05)


def test_a_worker_that_hangs_while_it_opens_is_replaced_once_and_then_told_of(
    impatient: Bounds, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        WorkerPool(Endless(), bounds=impatient) as pool,
        pytest.raises(
            EnvironmentProblem, match=r"a worker did nothing for .* before it was ready; .*--hang-after never"
        ),
    ):
        pool.submit(job(0, tmp_path))
        until_finished(pool)
    assert [record.levelname for record in caplog.records if "is replaced" in record.message] == ["WARNING"]


@dataclass(frozen=True)
class EndlessAtFirst(ToyBackend):
    """Opens where the file is there already."""

    file: Path = Path()

    def open(self, worker: int = 0) -> ToyTrainer:
        if not self.file.exists():
            self.file.touch()
            threading.Event().wait()
        return ToyTrainer(self)


def test_the_one_in_its_place_does_what_it_was_to_do(impatient: Bounds, tmp_path: Path) -> None:
    log = logging.getLogger("tests.pool.hang")
    handler = logging.FileHandler(tmp_path / "run.log")
    log.addHandler(handler)
    try:
        with WorkerPool(EndlessAtFirst(file=tmp_path / "seen"), bounds=impatient, log=log, pack=2) as pool:
            pool.submit(job(0, tmp_path))
            pool.submit(job(1, tmp_path))
            found = results(until_finished(pool, 2))
        assert {number: result.state for number, result in found.items()} == {0: "complete", 1: "complete"}
    finally:
        log.removeHandler(handler)
        handler.close()
    told = (tmp_path / "run.log").read_text()
    assert "worker 0 did nothing for" in told
    if sys.platform != "win32":
        assert re.search(r'File ".*test_pool.py", line \d+ in open', told), "the log says where it stood"


def test_a_worker_that_dies_at_opening_is_a_problem_of_the_environment() -> None:
    with WorkerPool(Vanishing()) as pool, pytest.raises(EnvironmentProblem, match="ended with exit code 9 before"):
        pool.wait(PATIENCE)


def test_an_evaluation_waits_for_a_free_worker_and_keeps_the_events(tmp_path: Path) -> None:
    with WorkerPool(ToyBackend()) as pool:
        pool.submit(job(0, tmp_path))
        evaluation = pool.evaluate(job(0, tmp_path), "test")
        assert evaluation.split == "test" and evaluation.interval[0] < evaluation.metrics[0][1] < evaluation.interval[1]
        assert pool.n_free == 1
        assert results(pool.wait(0))[0].state == "complete"


def test_an_evaluation_that_fails_raises_and_harms_nothing(tmp_path: Path) -> None:
    with WorkerPool(ToyBackend()) as pool:
        with pytest.raises(ModelError, match="no such file"):
            pool.evaluate(job(3, tmp_path), "test")
        pool.submit(job(3, tmp_path))
        until_finished(pool)
        assert pool.evaluate(job(3, tmp_path), "test") == pool.evaluate(job(3, tmp_path), "test")


def test_waiting_without_work_returns_nothing() -> None:
    with WorkerPool(ToyBackend()) as pool:
        assert [type(event) for event in pool.wait()] == [Ready]
        assert pool.wait() == []
        assert pool.wait(timeout=0.01) == []


def test_stopping_with_grace_lets_a_running_trial_finish(tmp_path: Path) -> None:
    with WorkerPool(ToyBackend(seconds_per_epoch=0.2)) as pool:
        pool.submit(job(0, tmp_path))
        assert results(pool.stop(grace=PATIENCE))[0].state == "complete"


def test_stopping_at_once_leaves_no_process_and_no_result(tmp_path: Path) -> None:
    with WorkerPool(ToyBackend(failures=failing(hang=0))) as pool:
        pool.submit(job(0, tmp_path))
        while not any(isinstance(event, Progress) for event in pool.wait(PATIENCE)):
            pass
        start = time.monotonic()
        assert results(pool.stop(grace=0)) == {}
        assert time.monotonic() - start < 10
        assert multiprocessing.active_children() == []
    assert read_result(tmp_path / "0000") is None


def test_a_result_of_an_earlier_attempt_does_not_count(tmp_path: Path) -> None:
    with WorkerPool(ToyBackend(failures=failing(kill=1))) as pool:
        pool.submit(job(0, tmp_path))
        until_finished(pool)
        again = TrialJob(1, job(0, tmp_path).architecture, (), 5, tmp_path / "0000")
        pool.submit(again)
        assert results(until_finished(pool))[1].cause == "killed"
    assert read_result(tmp_path / "0000") is None


def test_a_folder_that_cannot_be_written_stops_everything(tmp_path: Path) -> None:
    (tmp_path / "0000").write_text("a file where the folder should be")
    with WorkerPool(ToyBackend()) as pool:
        pool.submit(job(0, tmp_path))
        with pytest.raises(EnvironmentProblem, match="0000: cannot be written"):
            until_finished(pool)


@dataclass(frozen=True)
class Talkative(ToyBackend):
    def open(self, worker: int = 0) -> ToyTrainer:
        print("said aloud")
        os.write(2, b"from a C library\n")
        return ToyTrainer(self)


def test_what_workers_print_goes_to_the_log_and_not_to_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("tests.pool")
    handler = logging.FileHandler(tmp_path / "run.log")
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    try:
        with WorkerPool(Talkative(failures=failing(**{"raise": 0})), log=log) as pool:
            pool.submit(job(0, tmp_path))
            until_finished(pool)
            pool.submit(job(1, tmp_path))
            until_finished(pool)
    finally:
        log.removeHandler(handler)
        handler.close()
    text = (tmp_path / "run.log").read_text()
    assert "from a C library" in text
    assert "said aloud" in text
    assert "Traceback" in text and "and the second line is not shown" in text
    assert capfd.readouterr() == ("", "")


class Revealing(ToyTrainer):
    @property
    def facts(self) -> Mapping[str, str]:
        return {name: value for name, value in os.environ.items() if name.startswith("OMP_")}


@dataclass(frozen=True)
class RevealingBackend(ToyBackend):
    def open(self, worker: int = 0) -> ToyTrainer:
        return Revealing(self)


def test_threads_are_limited_before_a_worker_imports_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    with WorkerPool(RevealingBackend(), threads=3) as pool:
        (ready,) = pool.wait(PATIENCE)
        assert os.environ["OMP_NUM_THREADS"] == "7" and "OMP_WAIT_POLICY" not in os.environ
    assert isinstance(ready, Ready)
    assert ready.facts == {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "passive"}


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_no_worker_outlives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "supervisor.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from pathlib import Path
            from autopeft.engine.pool import Progress, WorkerPool
            from autopeft.engine.toy import ToyBackend
            from autopeft.engine.trial import TrialJob
            from autopeft.space.architecture import Architecture

            if __name__ == "__main__":
                with WorkerPool(ToyBackend(failures={0: "hang", 1: "hang"}), n_workers=2) as pool:
                    for number in (0, 1):
                        pool.submit(TrialJob(number, Architecture(), (), 0, Path(sys.argv[1]) / str(number)))
                    hanging = 0
                    while hanging < 2:
                        hanging += sum(isinstance(event, Progress) for event in pool.wait(60))
                    print("both hang", flush=True)
                    pool.wait()
            """
        )
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as supervisor:
        assert supervisor.stdout is not None and supervisor.stdout.readline() == "both hang\n"
        children = psutil.Process(supervisor.pid).children(recursive=True)
        assert len(children) >= 2
        supervisor.kill()
        supervisor.wait(PATIENCE)
        _, alive = psutil.wait_procs(children, timeout=PATIENCE)
    assert alive == []


def test_a_script_that_forgets_its_pool_ends(tmp_path: Path) -> None:
    script = tmp_path / "careless.py"
    script.write_text(
        textwrap.dedent(
            """
            from autopeft.engine.pool import WorkerPool
            from autopeft.engine.toy import ToyBackend

            if __name__ == "__main__":
                pool = WorkerPool(ToyBackend()).__enter__()
                pool.wait(60)
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, str(script)], check=True, timeout=PATIENCE, env=environment)


def test_the_result_file_is_the_last_to_be_written(tmp_path: Path) -> None:
    with WorkerPool(ToyBackend()) as pool:
        pool.submit(job(0, tmp_path))
        until_finished(pool)
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "0000").iterdir()}
    assert max(written, key=lambda name: written[name]) == RESULT_FILE
