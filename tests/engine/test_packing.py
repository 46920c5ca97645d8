"""Trials that train together end as each does alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from autopeft.engine.batches import Batch
from autopeft.engine.micro_batches import MemoryFit
from autopeft.engine.packing import PackedTrials
from autopeft.engine.pool import WorkerPool
from autopeft.engine.rungs import Rung
from autopeft.engine.training import TransformerTrainer
from autopeft.engine.trial import NotFiniteError, TrialJob, TrialResult, read_result
from autopeft.errors import UnknownSiteError
from autopeft.space.architecture import Architecture, place
from autopeft.space.modules import MODULES
from tests.engine.checkpoints import backend
from tests.engine.test_packed import Double
from tests.engine.test_pool import results as results_of
from tests.engine.test_pool import until_finished
from tests.engine.test_reuse import STACKS, Opened, assert_equal, at_the_top

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("garbage_found_fast")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return Opened(tmp_path_factory.mktemp("models"))


def jobs(folder: Path, architectures: Sequence[Architecture], **training: Any) -> list[TrialJob]:
    given = {"epochs": 2, "learning_rate": 1e-3, **training}
    return [
        TrialJob(n, architecture, tuple(given.items()), 100 + n, folder / str(n))
        for n, architecture in enumerate(architectures)
    ]


def train_together(
    trainer: TransformerTrainer, todo: Sequence[TrialJob], size: int, losses: dict[int, list[float]] | None = None
) -> tuple[dict[int, TrialResult | Exception], list[tuple[tuple[int, ...], int]]]:
    """Results by number, and which trials were in work at each step and how many waited; who ends is replaced."""
    pack: PackedTrials = trainer.together()
    left, results, seen = list(todo), dict[int, TrialResult | Exception](), []
    while left or pack.running:
        while left and len(pack.running) < size:
            job = left.pop(0)
            told = [] if losses is None else losses.setdefault(job.number, [])
            pack.begin(job, lambda record: None, on_step=lambda loss, told=told: told.append(float(loss)))
        seen.append((pack.running, len(left)))
        for job, outcome in pack.advance():
            results[job.number] = outcome
    return results, seen


def train_alone(
    trainer: TransformerTrainer, job: TrialJob, losses: dict[int, list[float]] | None = None
) -> TrialResult:
    told = [] if losses is None else losses.setdefault(job.number, [])
    return trainer.train(job, lambda record: None, on_step=lambda loss: told.append(float(loss)))


def weights(job: TrialJob) -> dict[str, Tensor]:
    return load_file(job.folder / "adapter_model.safetensors")


def assert_same_ends(
    trainer: TransformerTrainer,
    folder: Path,
    architectures: Sequence[Architecture],
    size: int,
    tolerance: float,
    **training: Any,
) -> list[Any]:
    mine, theirs = (
        jobs(folder / "together", architectures, **training),
        jobs(folder / "alone", architectures, **training),
    )
    steps, expected_steps = dict[int, list[float]](), dict[int, list[float]]()
    results, seen = train_together(trainer, mine, size, steps)
    for job, other in zip(mine, theirs, strict=True):
        expected, found = train_alone(trainer, other, expected_steps), results[job.number]
        assert isinstance(found, TrialResult), found
        assert found.state == expected.state == "complete"
        assert found.best_epoch == expected.best_epoch
        assert_equal(found, expected, tolerance)
        assert steps[job.number] == pytest.approx(expected_steps[other.number], rel=tolerance, abs=tolerance)
        have, want = weights(job), weights(other)
        assert have.keys() == want.keys()
        for name, tensor in want.items():
            # A bias on all keys, or of all choices, cancels out in the softmax: its gradient is rounding, which Adam
            # blows up.
            if name.endswith("autopeft_bias") and any(part in name for part in (".key.", ".c_attn.", ".k_proj.")):
                continue
            if name.endswith("classifier.bias") and tensor.numel() == 1:
                continue
            assert float((have[name] - tensor).abs().max()) <= tolerance, name
    return seen


def of_all_kinds(family: str, trainer: TransformerTrainer) -> list[Architecture]:
    found = [at_the_top(kind, trainer, STACKS[family]) for kind in MODULES]
    stack = STACKS[family]
    return [*(one for one in found if one is not None), Architecture.of([place(stack, 0, "ffn", "serial", 3)])]


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Double:
    return Double(tmp_path_factory.mktemp("models"))


CASES = [("bert", 10**8), ("bert", 0), ("gpt2", 10**8), ("llama", 10**8), ("t5", 0)]


@pytest.mark.parametrize(("family", "cache"), CASES)
def test_trials_of_all_kinds_end_as_each_does_alone(family: str, cache: int, double: Double, tmp_path: Path) -> None:
    trainer = double.trainer(family, cache)
    architectures = of_all_kinds(family, trainer)
    assert_same_ends(trainer, tmp_path, architectures, len(architectures), 1e-9, epochs=1)


def adapters() -> list[Architecture]:
    """Of several sizes, beginning in several layers."""
    return [
        Architecture.of([place("encoder", 0, "attn.q", "lora", 4), place("encoder", 1, "ffn", "serial", 3)]),
        Architecture.of([place("encoder", 1, "attn.q", "lora", 2)]),
        Architecture.of([place("encoder", 0, "attn.q", "lora", 1), place("encoder", 0, "ffn", "serial", 6)]),
        Architecture.of([place("encoder", 1, "ffn", "serial", 5)]),
        Architecture.of([place("encoder", 1, "attn", "prefix", 3), place("encoder", 1, "attn.q", "lora", 3)]),
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_one_that_ends_is_replaced_by_the_next_at_once(size: int, opened: Opened, tmp_path: Path) -> None:
    bert = opened.trainer("bert")
    todo = [
        replace(job, training=(("epochs", 1 + job.number % 3), ("batch_size", (8, 8, 5)[job.number % 3])))
        for job in jobs(tmp_path / "together", adapters())
    ]
    steps, expected = dict[int, list[float]](), dict[int, list[float]]()
    results, seen = train_together(bert, todo, size, steps)
    for job in todo:
        found = results[job.number]
        assert isinstance(found, TrialResult)
        assert_equal(found, train_alone(bert, job, expected), 1e-6)
    assert {n: len(told) for n, told in steps.items()} == {n: len(told) for n, told in expected.items()}
    assert max(len(numbers) for numbers, _ in seen) == size
    assert all(len(numbers) == size for numbers, n_waiting in seen if n_waiting)


@pytest.mark.parametrize("epochs", [5, pytest.param(34, marks=pytest.mark.slow)])
def test_many_steps_together_are_those_alone(epochs: int, opened: Opened, tmp_path: Path) -> None:
    seen = assert_same_ends(opened.trainer("bert"), tmp_path, adapters()[:3], 3, 1e-6, epochs=epochs)
    assert len(seen) >= 6 * epochs


def test_a_trial_whose_loss_is_nan_fails_alone(opened: Opened, tmp_path: Path) -> None:
    bert = opened.trainer("bert")
    todo = jobs(tmp_path / "together", adapters()[:3])
    pack = bert.together()
    for job in todo:
        pack.begin(job, lambda record: None)
    with torch.no_grad():
        pack._trials[1].trained[0].fill_(float("nan"))
    spoiled = pack._trials[1].job.number
    results = dict[int, Any]()
    while pack.running:
        results |= {job.number: outcome for job, outcome in pack.advance()}
    assert isinstance(results.pop(spoiled), NotFiniteError)
    for job in todo:
        if job.number != spoiled:
            assert_equal(results[job.number], train_alone(bert, job), 1e-6)


def test_a_trial_that_falls_short_leaves_its_place(opened: Opened, tmp_path: Path) -> None:
    bert = opened.trainer("bert")
    todo = jobs(tmp_path, adapters()[:3], epochs=3)
    todo[1] = replace(todo[1], rungs=(Rung(1, 2.0),))
    results, seen = train_together(bert, todo, 2)
    found = [results[n] for n in range(3)]
    assert [getattr(result, "state", result) for result in found] == ["complete", "pruned", "complete"]
    assert (0, 2) in [numbers for numbers, _ in seen], "the next one came while the first was in work"
    assert not (todo[1].folder / "adapter_model.safetensors").exists()


def test_dropout_draws_what_it_draws_alone(opened: Opened, tmp_path: Path) -> None:
    bert = opened.trainer("bert")
    todo = jobs(tmp_path / "together", adapters()[:3])
    todo[1:] = [replace(job, training=(("epochs", 2), ("dropout", 0.5))) for job in todo[1:]]
    results, _ = train_together(bert, todo, 3)
    for job in todo[1:]:
        found = results[job.number]
        assert isinstance(found, TrialResult)
        assert_equal(found, train_alone(bert, job), 1e-6)


def test_trials_whose_common_step_fails_go_on_one_by_one(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bert = opened.trainer("bert")
    todo = jobs(tmp_path, adapters()[:3])
    expected = {job.number: train_alone(bert, job) for job in todo}
    forward = bert._forward

    def limited(model: Any, batch: Batch) -> Tensor:
        if len(batch.input_ids) > 16:
            raise MemoryError
        return forward(model, batch)

    monkeypatch.setattr(bert, "_forward", limited)
    results, _ = train_together(bert, todo, 3)
    for number, result in expected.items():
        found = results[number]
        assert isinstance(found, TrialResult) and found.micro_batch_size is None
        assert_equal(found, result, 1e-6)


def test_a_step_that_does_not_fit_alone_is_made_of_parts(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bert = opened.trainer("bert")
    job, other = jobs(tmp_path, adapters()[:2])
    expected = train_alone(bert, job)
    forward = bert._forward

    def limited(model: Any, batch: Batch) -> Tensor:
        if torch.is_grad_enabled() and not torch.is_inference_mode_enabled() and len(batch.input_ids) > 5:
            raise MemoryError
        return forward(model, batch)

    monkeypatch.setattr(bert, "memory_fit", MemoryFit(None, 16))
    monkeypatch.setattr(bert, "_forward", limited)
    told: list[int] = []
    pack = bert.together()
    pack.begin(job, lambda record: told.append(record.epoch))
    pack.begin(other, lambda record: None)
    results = dict[int, Any]()
    while pack.running:
        results |= {one.number: outcome for one, outcome in pack.advance()}
    assert results[0].micro_batch_size == results[1].micro_batch_size == 4
    assert told == [1, 2]
    assert_equal(results[0], expected, 1e-6)


def test_a_trial_that_cannot_begin_harms_no_other(opened: Opened, tmp_path: Path) -> None:
    bert = opened.trainer("bert")
    good, bad = jobs(tmp_path, [adapters()[0], Architecture.of([place("encoder", 7, "attn.q", "lora", 2)])])
    pack = bert.together()
    pack.begin(good, lambda record: None)
    with pytest.raises(UnknownSiteError):
        pack.begin(bad, lambda record: None)
    assert pack.running == (0,)
    results = dict[int, Any]()
    while pack.running:
        results |= {one.number: outcome for one, outcome in pack.advance()}
    assert_equal(results[0], train_alone(bert, good), 1e-6)


def test_a_worker_trains_a_pack_as_trials_alone(opened: Opened, tmp_path: Path) -> None:
    bert = opened.trainer("bert")
    todo = jobs(tmp_path / "together", adapters()[:3])
    with WorkerPool(backend(opened._root / "bert"), threads=1, pack=2) as pool:
        pool.submit(todo[0])
        pool.submit(todo[1])
        found = results_of(until_finished(pool))
        pool.submit(todo[2])
        found |= results_of(until_finished(pool, 2))
        tested = pool.evaluate(todo[1], "test")
    for job in todo:
        assert_equal(found[job.number], train_alone(bert, replace(job, folder=tmp_path / "alone")), 1e-6)
        assert read_result(job.folder) == found[job.number]
    assert tested.n_rows == 16
