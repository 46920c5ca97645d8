"""Workers that have several trials in work."""

from pathlib import Path

from autopeft.engine.pool import PoolEvent, Progress, WorkerPool
from autopeft.engine.toy import ToyBackend
from autopeft.engine.watch import Bounds
from tests.engine.test_pool import failing, job, results, until_finished


def test_trials_of_a_worker_take_turns_and_a_place_is_free_when_one_ends(tmp_path: Path) -> None:
    with WorkerPool(ToyBackend(epochs=3), pack=3) as pool:
        assert pool.n_free == 3
        for number in range(3):
            pool.submit(job(number, tmp_path))
        assert pool.n_free == 0 and pool.running == (0, 1, 2)
        events: list[PoolEvent] = until_finished(pool, 3)
        assert pool.n_free == 3
    epochs = [(event.number, event.record.epoch) for event in events if isinstance(event, Progress)]
    assert sorted(epochs) == [(number, epoch) for number in range(3) for epoch in (1, 2, 3)]
    assert epochs.index((2, 1)) < epochs.index((0, 3)), "they ran one after the other"
    assert all(result.state == "complete" for result in results(events).values())


def test_packs_fill_all_workers(tmp_path: Path) -> None:
    with WorkerPool(ToyBackend(), n_workers=2, pack=2) as pool:
        for number in range(4):
            pool.submit(job(number, tmp_path))
        assert pool.n_free == 0
        assert len(results(until_finished(pool, 4))) == 4
        assert pool.evaluate(job(0, tmp_path), "test").split == "test"


def test_what_a_trial_raises_is_its_own_failure(tmp_path: Path) -> None:
    with WorkerPool(ToyBackend(epochs=3, failures={0: "raise", 2: "nan"}), pack=4) as pool:
        for number in range(4):
            pool.submit(job(number, tmp_path))
        found = results(until_finished(pool, 4))
    assert {n: result.cause for n, result in found.items()} == {0: "bug", 1: None, 2: "NaN", 3: None}
    assert found[0].error == "RuntimeError: this trial was told to fail"


def test_a_worker_that_dies_costs_all_its_trials_a_repetition(tmp_path: Path) -> None:
    with WorkerPool(ToyBackend(epochs=3, seconds_per_epoch=0.05, failures={1: "kill"}), pack=3) as pool:
        for number in range(3):
            pool.submit(job(number, tmp_path))
        found = results(until_finished(pool, 3))
        assert {result.cause for result in found.values()} == {"killed"}
        assert pool.n_free == 3
        pool.submit(job(3, tmp_path))
        assert results(until_finished(pool))[3].state == "complete"


def test_a_late_trial_is_told_from_those_that_ran_with_it(tmp_path: Path) -> None:
    with WorkerPool(ToyBackend(failures=failing(hang=0)), pack=2, bounds=Bounds(trial_seconds=2)) as pool:
        pool.submit(job(0, tmp_path))
        assert pool.wait(timeout=60)
        while pool.wait(timeout=0.5):  # until it hangs
            pass
        pool.submit(job(1, tmp_path))
        found = results(until_finished(pool, 2))
    assert (found[0].cause, found[0].error) == ("time-out", "the trial took longer than 2 s and was stopped")
    assert found[1].cause == "killed"
    assert found[1].error == "the worker was stopped because another of its trials was late"
