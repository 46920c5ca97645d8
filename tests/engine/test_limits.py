"""Limits that are measured: how they are written, what is measured, and that a rejected trial leaves no trace."""

import math
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from autopeft.engine import gauge
from autopeft.engine.causes import OVER_A_LIMIT
from autopeft.engine.gauge import latency_overhead, training_memory
from autopeft.engine.limits import Limits, parse_memory, parse_overhead
from autopeft.engine.trial import TrialResult
from autopeft.errors import BudgetError
from tests.engine.checkpoints import backend, checkpoint
from tests.engine.test_training import assert_same, job, run, state, without_time

torch.set_num_threads(1)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize(("text", "ratio"), [("1.2", 1.2), ("20%", 1.2), ("2", 2.0), ("100%", 2.0), ("0.5%", 1.005)])
def test_overheads_are_read_as_written(text, ratio):
    assert math.isclose(parse_overhead(text), ratio)


@pytest.mark.parametrize(
    "text", ["", "1", "0.9", "0%", "-20%", "nan", "inf", "1,2", "20 %", "x", "１.2", "1e1", "9" * 20]
)
def test_what_is_no_overhead_is_refused(text):
    with pytest.raises(BudgetError, match="--max-latency-overhead"):
        parse_overhead(text)


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("8GB", 8 * 10**9), ("800MB", 8 * 10**8), ("6GiB", 6 * 2**30), ("0.5MiB", 2**19)]
)
def test_memory_is_read_as_written(text, n_bytes):
    assert parse_memory(text) == n_bytes


@pytest.mark.parametrize("text", ["", "8", "8G", "8gb", "0GB", "-1GB", "nanGB", "1 GB", "1TB", "GB", "1.GB", "８GB"])
def test_what_is_no_memory_is_refused(text):
    with pytest.raises(BudgetError, match="--max-memory"):
        parse_memory(text)


def test_memory_is_that_of_weights_of_what_backward_needs_and_of_the_optimiser():
    frozen, trained = nn.Linear(10, 20, bias=False).requires_grad_(False), nn.Linear(20, 3, bias=False)
    model = nn.Sequential(frozen, nn.ReLU(), trained)
    x = torch.randn(5, 10)
    weights, hidden, adam = 200 + 60, 5 * 20, 3 * 60  # gradient and two moments of each trained weight
    # The hidden activations are kept for the trained map. Nothing before it has a gradient, so ReLU keeps nothing.
    assert training_memory(model, lambda: model(x).sum(), CPU) == 4 * (weights + hidden + adam)
    assert all(p.grad is None for p in model.parameters())


def test_measuring_memory_leaves_random_numbers_as_they_were():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(10, 3))
    torch.manual_seed(3)
    training_memory(model, lambda: model(torch.ones(5, 10)).sum(), CPU)
    after = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(3), after)


def test_overhead_is_the_median_over_pairs_and_the_first_pair_is_left_out(monkeypatch):
    """By a clock that is told how long each pass takes, with and without adapters in turn."""
    seconds = iter([90.0, 1.0, *[3.0, 2.0] * 8, *[50.0, 2.0, 2.0, 50.0] * 2, *[3.0, 2.0] * 99])
    now = 0.0

    def process_time() -> float:
        return now

    def forward() -> None:
        nonlocal now
        now += next(seconds)

    monkeypatch.setattr(gauge.time, "process_time", process_time)
    assert latency_overhead(forward, nullcontext, CPU) == 1.5


def test_a_trial_within_its_limits_is_the_same_and_tells_what_was_measured(bert: Path, tmp_path: Path) -> None:
    free = run(backend(bert, dropout=0.1).open(), job(tmp_path / "free")).result
    limits = Limits(latency_overhead=1e6, memory_bytes=10**12)
    limited = run(replace(backend(bert, dropout=0.1), limits=limits).open(), job(tmp_path / "limited")).result
    assert limited.latency_overhead is not None and limited.latency_overhead > 0
    assert limited.training_memory_bytes is not None and limited.training_memory_bytes > 4 * limited.trained
    assert (free.latency_overhead, free.training_memory_bytes) == (None, None)
    assert without_time(free) == without_time(replace(limited, latency_overhead=None, training_memory_bytes=None))
    assert TrialResult.from_json(limited.to_json()) == limited


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        (Limits(latency_overhead=1e-6), r"a forward pass takes .* times the base model's, over --max-latency-overhead"),
        (Limits(memory_bytes=100_000), r"training takes .* MB at its peak, over --max-memory 0\.1MB"),
    ],
)
def test_what_is_over_a_limit_is_rejected_before_it_is_trained(limits, told, bert: Path, tmp_path: Path) -> None:
    trainer = replace(backend(bert), limits=limits).open()
    before = state(trainer)
    done = run(trainer, job(tmp_path / "rejected"))
    assert (done.result.cause, done.result.epochs, done.usable) == (OVER_A_LIMIT, (), True)
    assert re.fullmatch(told + ".*", done.result.error or "")
    assert [path.name for path in (tmp_path / "rejected").iterdir()] == ["result.json"]
    assert_same(before, state(trainer))


def test_results_of_before_there_were_limits_are_read():
    result = TrialResult.failed(3, "killed", "gone", seconds=1.0)
    data = result.to_json()
    del data["latency_overhead"], data["training_memory_bytes"]
    assert TrialResult.from_json(data) == result
