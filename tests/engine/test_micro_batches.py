"""Steps in parts: the same numbers as whole, on as much memory as there is. Too many rows fail here by injection."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autopeft.cli.studies import show_study
from autopeft.engine import training
from autopeft.engine.batches import Batch, TokenisedSplit
from autopeft.engine.micro_batches import Cut, MemoryFit, StepTooLargeError, cheapest_sizes
from autopeft.engine.recipe import TrainingSpec
from autopeft.engine.splits import Split
from autopeft.engine.toy import ToyBackend
from autopeft.engine.training import TransformerTrainer
from autopeft.engine.trial import EpochRecord, TrialJob, TrialResult
from autopeft.engine.worker import run_trial
from autopeft.space.architecture import Architecture, place
from autopeft.study.search import _Session, search
from tests.engine.checkpoints import backend, checkpoint
from tests.study.toy_search import toy_plan

ARCHITECTURE = Architecture.of([place("encoder", 0, "attn.q", "lora", 4), place("encoder", 1, "ffn", "serial", 4)])
SETTINGS = {"batch_size": 8, "epochs": 12, "learning_rate": 3e-3, "precision": "float32", "eval_batch_size": 16}
"""48 rows, less three: each epoch of six steps has a short last batch, of which parts are short too."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("bert"))


class Cramped(TransformerTrainer):
    """Has memory for so many rows in a training step, and for so many in an evaluation."""

    train_rows, eval_rows = 10**9, 10**9
    seen: list[int]

    def _forward(self, adapted: Any, batch: Batch) -> torch.Tensor:
        n = len(batch.rows)
        if torch.is_inference_mode_enabled():
            if n > self.eval_rows:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        elif torch.is_grad_enabled():
            self.seen.append(n)
            if n > self.train_rows:
                raise RuntimeError(
                    "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 8 bytes"
                )
        return super()._forward(adapted, batch)


@pytest.fixture
def trainer(folder: Path) -> Iterator[Cramped]:
    opened = _short(backend(folder, **SETTINGS)).open()
    opened.__class__ = Cramped
    assert isinstance(opened, Cramped)
    opened.seen = []
    yield opened


def _short(made: Any) -> Any:
    data = made.data
    train = data.splits["train"]
    cut = Split(train.texts[:45], train.labels[:45])
    return replace(made, data=replace(data, splits={**data.splits, "train": cut}))


def trained(trainer: Cramped, folder: Path) -> tuple[TrialResult, list[float], list[EpochRecord]]:
    """The result, the losses of all steps of the last attempt, and the epochs that were told."""
    losses, told = list[float](), list[EpochRecord]()
    job = TrialJob(0, ARCHITECTURE, (), 5, folder)
    result = trainer.train(job, told.append, on_step=lambda loss: losses.append(float(loss)))
    return result, losses[-72:], told


def test_a_batch_in_parts_gives_the_same_losses_and_scores(trainer: Cramped, tmp_path: Path) -> None:
    whole, expected, _ = trained(trainer, tmp_path / "whole")
    assert whole.micro_batch_size is None
    trainer.train_rows, trainer.eval_rows, trainer.seen = 3, 5, []
    cut, losses, told = trained(trainer, tmp_path / "cut")
    assert cut.micro_batch_size == 2
    assert len(losses) == 72
    assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) <= 1e-6
    assert [r.metrics[0] for r in cut.epochs] == [r.metrics[0] for r in whole.epochs]
    assert cut.score == whole.score and cut.best_epoch == whole.best_epoch
    assert [record.epoch for record in told] == list(range(1, 13)), "each epoch is told once"
    assert expected[-1] < expected[0] / 2, "it learns, so that losses can differ"


def test_a_batch_cut_by_length_gives_the_same_losses_and_scores(
    trainer: Cramped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, expected, _ = trained(trainer, tmp_path / "whole")
    n_passes = len(trainer.seen)
    monkeypatch.setattr(training, "_PASS", 0)
    trainer.seen = []
    cut, losses, _ = trained(trainer, tmp_path / "cut")
    assert len(trainer.seen) > 1.5 * n_passes, "rows are of several lengths"
    assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) <= 1e-6
    assert [r.metrics[0] for r in cut.epochs] == [r.metrics[0] for r in whole.epochs]
    assert cut.micro_batch_size is None, "it is not for want of memory"


def test_a_batch_is_not_cut_where_the_last_layers_one_token_is_all_that_is_computed(
    trainer: Cramped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "_PASS", 0)
    last = Architecture.of([place("encoder", 1, "attn.q", "lora", 4)])
    trainer.train(TrialJob(0, last, (), 5, tmp_path), lambda record: None)
    assert set(trainer.seen[-6:]) == {8, 5}


@pytest.mark.parametrize("per_part", [0.0, 3.0, 10.0, 40.0, 10**9])
def test_lengths_are_cut_where_all_takes_least_time(per_part: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, 7, 9):
        lengths = torch.randint(1, 20, (n,), generator=generator).sort(descending=True).values.tolist()

        def cost(sizes: Any, lengths: list[int] = lengths) -> float:
            ends = list(itertools.accumulate(sizes))
            return sum(size * lengths[end - size] + per_part for size, end in zip(sizes, ends, strict=True))

        inner = range(1, n)
        ways = [
            [b - a for a, b in itertools.pairwise((0, *ends, n))]
            for k in range(n)
            for ends in itertools.combinations(inner, k)
        ]
        found = cheapest_sizes(torch.tensor(lengths), per_part)
        assert sum(found) == n
        assert cost(found) == min(map(cost, ways))


def test_parts_hold_every_row_once_the_longest_first() -> None:
    lengths = torch.tensor([3, 9, 4, 9, 3, 30])
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    split = TokenisedSplit(torch.ones(int(lengths.sum()), dtype=torch.int32), None, starts, torch.arange(6), 0)
    batch = split.batch(torch.tensor([0, 1, 2, 3, 5]))
    parts = [part.rows.tolist() for part in Cut(rows=2, pass_tokens=5).parts(split, batch)]
    assert parts == [[5], [1, 3], [2, 0]]
    assert [part.rows.tolist() for part in Cut(rows=3).parts(split, batch)] == [[0, 1, 2], [3, 5]]
    assert next(Cut(rows=8).parts(split, batch)) is batch


def test_what_was_found_holds_for_the_next_trials_of_the_worker(trainer: Cramped, tmp_path: Path) -> None:
    trainer.train_rows = 4
    trained(trainer, tmp_path / "first")
    trainer.seen = []
    second, _, _ = trained(trainer, tmp_path / "second")
    assert max(trainer.seen) == 4 and second.micro_batch_size == 4


def test_a_step_that_does_not_fit_row_by_row_is_out_of_memory(trainer: Cramped, tmp_path: Path) -> None:
    trainer.train_rows = 0
    done = run_trial(trainer, TrialJob(0, ARCHITECTURE, (), 5, tmp_path), lambda record: None)
    assert (done.result.cause, done.usable) == ("OOM", False)
    assert "not even row by row: [enforce fail" in (done.result.error or "")
    assert set(trainer.seen) >= {8, 4, 2, 1}


def test_an_evaluation_that_does_not_fit_row_by_row_is_out_of_memory(trainer: Cramped, tmp_path: Path) -> None:
    trainer.eval_rows = 0
    done = run_trial(trainer, TrialJob(0, ARCHITECTURE, (), 5, tmp_path), lambda record: None)
    assert (done.result.cause, done.usable) == ("OOM", False)


def test_other_errors_are_not_taken_for_want_of_memory() -> None:
    fit, tried = MemoryFit(None, 64), list[int]()

    def fails(rows: int) -> None:
        tried.append(rows)
        raise ValueError("a bug")

    for run in (lambda: fit.trained(32, fails), lambda: fit.evaluated(fails)):
        with pytest.raises(ValueError, match="a bug"):
            run()
    assert tried == [32, 64] and fit.rows(32) == 32


def test_parts_are_halved_until_they_fit_and_never_more_than_the_batch() -> None:
    fit, tried = MemoryFit(24, 64), list[int]()

    def fits_five(rows: int) -> int:
        tried.append(rows)
        if rows > 5:
            raise StepTooLargeError("too large")
        return rows

    assert fit.trained(32, fits_five) == 3 and tried == [24, 12, 6, 3]
    assert (fit.rows(32), fit.rows(2)) == (3, 2)


def test_the_recipe_may_say_it_and_no_earlier_study_becomes_another_one_by_it() -> None:
    assert "micro_batch_size" not in TrainingSpec().content()
    assert TrainingSpec(micro_batch_size=4).content()["micro_batch_size"] == 4


def test_show_says_in_what_parts_a_trial_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = _Session._record
    monkeypatch.setattr(_Session, "_record", lambda self, r: real(self, replace(r, micro_batch_size=4)))
    search(toy_plan(tmp_path / "run", 1, ToyBackend()))
    text, data = show_study(["trial", "0"], str(tmp_path / "run"))
    assert "; batches in parts of 4" in text and data["result"]["micro_batch_size"] == 4
