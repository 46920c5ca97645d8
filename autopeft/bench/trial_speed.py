"""Finished trials an hour, ours and the HF Trainer's, side by side in one interleaved run.

A round goes through all configurations of a law, and each contender trains each of them before the next one comes, so
that a slow minute of the machine meets all. Everything a study would pay is charged to our engine within each round:
to a trial, finding where to cut the model, training, evaluation, saving; to the study once, loading, tokenising and
filling the cache for each place where a trial begins. Ratios are made within a round. On a CPU seconds are processor
time of one process; on a GPU they are what passes. Fresh processes take longest and differ least: they are measured in
the first round alone, on one configuration in three.
"""

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from autopeft.bench.equivalence import Agreement, check_losses
from autopeft.bench.laws import Configuration, configurations
from autopeft.bench.matmul_limit import Product, Replay, recorded
from autopeft.bench.stock_trials import WAYS, StockTask, StockTrials, fresh_process
from autopeft.engine.batches import TokenisedSplit
from autopeft.engine.data import TaskData
from autopeft.engine.devices import choose_device
from autopeft.engine.recipe import TrialRecipe
from autopeft.engine.shared_model import SharedModel, choose_dtype
from autopeft.engine.training import TransformerTrainer
from autopeft.engine.transformer_backend import TransformerBackend
from autopeft.engine.trial import TrialJob
from autopeft.engine.worker import keep_freed_memory, let_garbage_be_found_fast
from autopeft.errors import UnknownNameError, UsageError

OURS = "ours"
_FRESH = 3
"""One configuration in so many is trained in a fresh process."""


@dataclass(frozen=True)
class Study:
    """What ratios are told for: so many trials, the configurations equally often among them, of so many epochs.

    All epochs of a trial are the same work, so that the seconds of many follow from those of a few.
    """

    trials: int = 60
    epochs: int = 20


@dataclass(frozen=True)
class SpeedSettings:
    """What is measured."""

    model: str
    revision: str | None
    recipe: TrialRecipe
    data: TaskData
    kinds: tuple[str, ...] = ("lora",)
    laws: tuple[str, ...] = ("uniform",)
    ways: tuple[str, ...] = ("b1", "b2")
    rounds: int = 3
    n_configurations: int = 6
    """Of a law, at most."""
    study: Study = Study()
    gate_steps: int = 50
    seed: int = 0

    def check(self) -> None:
        """
        Raises:
            UnknownNameError: no such baseline.
            UsageError: nothing to measure, or labels that are no classes.
        """
        for way in self.ways:
            if way not in WAYS:
                raise UnknownNameError("baseline", way, tuple(WAYS))
        counts = (self.rounds, self.n_configurations, self.study.trials, self.study.epochs, self.gate_steps)
        if min(*counts, len(self.kinds), len(self.laws)) < 1:
            raise UsageError("bench trials: all numbers, and how many kinds and laws there are, must be 1 or more")
        if self.data.problem_name != "classification":
            raise UsageError("bench trials: only classification is measured")


@dataclass(frozen=True)
class Range:
    """The median over rounds, and the extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Range":
        return cls(median(values), min(values), max(values))


@dataclass
class Timed:
    """One configuration, by rounds."""

    configuration: Configuration
    n_epochs: int = 1
    """Of a trial."""
    n_steps: int = 0
    """Of those that are timed."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Of a whole trial, by contender; of ours with finding where to cut the model, without filling the cache."""
    epochs: dict[str, list[float]] = field(default_factory=dict)
    """Those of it that pass in its epochs."""
    found: list[float] = field(default_factory=list)
    """Seconds of ours to find where to cut the model, the first time."""
    filled: list[float] = field(default_factory=list)
    """Seconds to fill what was not in the cache."""
    steps: list[float] = field(default_factory=list)
    """Seconds of the training steps of our trial's first epoch, but its first step."""
    limit: list[float] = field(default_factory=list)
    """Seconds of their matrix multiplications alone."""

    def ratio(self, way: str, study: Study | None = None) -> Range | None:
        """How many times as long the other takes, the cache being filled; None: not measured."""
        rounds = range(len(self.seconds.get(way, ())))
        ratios = [self.trial(way, r, study) / self.trial(OURS, r, study) for r in rounds]
        return Range.of(ratios) if ratios else None

    def trial(self, name: str, r: int, study: Study | None) -> float:
        """Seconds of a trial in round `r`: with as many epochs as in a study, or as it was measured."""
        more = study.epochs / self.n_epochs - 1 if study else 0
        return self.seconds[name][r] + (more * self.epochs[name][r] if more else 0)

    @property
    def share_of_limit(self) -> Range:
        return Range.of([a / b for a, b in zip(self.limit, self.steps, strict=True)])

    @property
    def step_seconds(self) -> float:
        return median(self.steps) / self.n_steps


@dataclass
class Suite:
    """All configurations of one law and kind."""

    law: str
    kind: str
    timed: list[Timed]
    opening: dict[str, list[float]] = field(default_factory=dict)
    """Seconds to load and to tokenise, by contender and round."""

    def ratio(self, way: str, study: Study | None = None, *, top_third: bool = False) -> Range | None:
        """How many times as long the other takes for a study; None: for these configurations alone, as measured.

        None where none of them was measured.
        """
        ratios = self.ratios(way, study, top_third=top_third)
        return Range.of(ratios) if ratios else None

    def ratios(self, way: str, study: Study | None = None, *, top_third: bool = False) -> list[float]:
        """The same by rounds."""
        chosen = [one for one in self.timed if one.configuration.is_top_third or not top_third]
        measured = [one for one in chosen if way in one.seconds]
        ratios = []
        for r in range(len(measured[0].seconds[way]) if measured else 0):
            n = study.trials if study else len(chosen)
            once = self.opening[OURS][r] + sum(one.filled[r] for one in chosen)
            theirs, ours = (fmean(one.trial(name, r, study) for one in measured) for name in (way, OURS))
            ratios.append((self.opening[way][r] + n * theirs) / (once + n * ours))
        return ratios


@dataclass(frozen=True)
class Speeds:
    """What was measured, and where."""

    agreements: tuple[Agreement, ...]
    suites: tuple[Suite, ...]
    ways: tuple[str, ...]
    facts: Mapping[str, Any]


def measure(settings: SpeedSettings, tell: Callable[[str], None]) -> Speeds:
    """Check that losses agree, then measure.

    Raises:
        LossesDifferError: our engine trains something else; nothing was measured.
        UsageError: settings that cannot be measured.
    """
    settings.check()
    with warnings.catch_warnings():  # PEFT asks transformers for what is deprecated there
        warnings.simplefilter("ignore", FutureWarning)
        return _measure(settings, tell)


def _measure(settings: SpeedSettings, tell: Callable[[str], None]) -> Speeds:
    device = choose_device(0)
    base = SharedModel.load(
        settings.model,
        settings.revision,
        problem=settings.data.problem,
        device=device,
        dtype=torch.float32,
    )
    task = StockTask(settings.model, settings.revision, settings.recipe, settings.data, base.head, device.type)
    longest = min(settings.recipe.training.max_length, base.max_tokens)
    splits = {name: base.encode(split, longest) for name, split in settings.data.splits.items()}
    suites = [
        Suite(
            law,
            kind,
            [
                Timed(one, settings.recipe.training.epochs)
                for one in configurations(base.anatomy, kind, law, settings.n_configurations, 0)
            ],
        )
        for kind in settings.kinds
        for law in settings.laws
    ]
    agreements = []
    for one in _to_check(suites):
        agreements += check_losses(base, splits, task, [one], settings.gate_steps, settings.seed)
        tell(f"losses   {one.name}: {agreements[-1].largest:.1e} apart at most, {settings.gate_steps} steps")
    let_garbage_be_found_fast()  # this and the next as in a worker; the others gain by it, too
    keep_freed_memory()
    meter = _Meter(settings, task, device)
    for number in range(settings.rounds):
        for suite in suites:
            meter.round(suite, number)
            ratios = {way: suite.ratios(way, settings.study) for way in settings.ways}
            shown = ", ".join(f"{way} {found[number]:.2f}x" for way, found in ratios.items() if len(found) > number)
            tell(f"round {number + 1}/{settings.rounds}  {suite.kind} {suite.law}: {shown}")
    return Speeds(tuple(agreements), tuple(suites), settings.ways, _facts(settings, splits, device))


def _to_check(suites: Sequence[Suite]) -> Iterator[Configuration]:
    """One of each suite: the one in the middle, as its trials begin neither at the bottom nor at the top."""
    seen = set()
    for suite in suites:
        middle = sorted(suite.timed, key=lambda one: one.configuration.first)[len(suite.timed) // 2].configuration
        if middle.architecture.id not in seen:
            seen.add(middle.architecture.id)
            yield middle


class _Meter:
    """Runs rounds."""

    def __init__(self, settings: SpeedSettings, task: StockTask, device: torch.device) -> None:
        self._settings, self._task, self._device = settings, task, device
        self._backend = TransformerBackend(
            model=settings.model, revision=settings.revision, recipe=settings.recipe, data=settings.data
        )
        self._replays: dict[str, Replay] = {}

    def round(self, suite: Suite, number: int) -> None:
        ours, opened = self._timed(self._backend.open)
        suite.opening.setdefault(OURS, []).append(opened)
        stock: dict[str, StockTrials] = {}
        for way in self._settings.ways:
            if WAYS[way].fresh_process:
                suite.opening.setdefault(way, []).append(0.0)
            else:
                stock[way], opened = self._timed(partial(StockTrials, self._task, WAYS[way]))
                suite.opening.setdefault(way, []).append(opened)
        for i, timed in enumerate(suite.timed):
            contenders = [OURS, *stock]
            if number == 0 and i % _FRESH == min(1, len(suite.timed) - 1):
                contenders += [way for way in self._settings.ways if WAYS[way].fresh_process]
            turn = (number + i) % len(contenders)
            for name in contenders[turn:] + contenders[:turn]:
                if name == OURS:
                    self._run_ours(ours, timed)
                else:
                    seconds, of_epochs = self._run_stock(name, stock, timed.configuration)
                    timed.seconds.setdefault(name, []).append(seconds)
                    timed.epochs.setdefault(name, []).append(of_epochs)

    def _run_ours(self, ours: TransformerTrainer, timed: Timed) -> None:
        architecture = timed.configuration.architecture
        with tempfile.TemporaryDirectory() as folder:
            job = TrialJob(0, architecture, (), self._settings.seed, Path(folder))
            _, found = self._timed(lambda: ours.find(job))
            timed.found.append(found)
            _, filled = self._timed(lambda: ours.prepare(job))
            timed.filled.append(filled)
            if architecture.id not in self._replays:  # also a warm-up; nothing of it is timed
                self._replays[architecture.id] = Replay(_first_epoch(ours, job), self._device)
            steps = _Steps(self._clock)
            _, seconds = self._timed(lambda: ours.train(job, steps.after_epoch, steps.before_batch, steps.after_step))
            timed.seconds.setdefault(OURS, []).append(found + seconds)
            timed.epochs.setdefault(OURS, []).append(steps.of_epochs)
            timed.n_steps = steps.n
            timed.steps.append(steps.seconds)
            _, limit = self._timed(self._replays[architecture.id].run)
            timed.limit.append(limit)

    def _run_stock(
        self, way: str, stock: Mapping[str, StockTrials], configuration: Configuration
    ) -> tuple[float, float]:
        """Seconds of a trial, and of its epochs."""
        seed = self._settings.seed
        if way not in stock:
            return fresh_process(self._task, WAYS[way], configuration, seed, self._device.type == "cpu")
        of_epochs, seconds = self._timed(lambda: stock[way].train(configuration, seed, clock=self._clock))
        return seconds, of_epochs

    def _timed(self, run: Callable[[], Any]) -> tuple[Any, float]:
        start = self._clock()
        result = run()
        return result, self._clock() - start

    def _clock(self) -> float:
        if self._device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self._device)
        return time.perf_counter()


class _EnoughError(Exception):
    """The first epoch is over."""


def _first_epoch(ours: TransformerTrainer, job: TrialJob) -> list[Product]:
    """What is multiplied in the steps of the first epoch, but its first step."""
    ends: list[int] = []

    def stop(record: Any) -> None:
        raise _EnoughError

    with recorded() as products, suppress(_EnoughError):
        ours.train(job, stop, on_step=lambda loss: ends.append(len(products)))
    return products[ends[0] : ends[-1]]


class _Steps:
    """Adds up the seconds of the training steps of the first epoch, without the first step; and those of all epochs."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begin: float | None = None
        self._since: float | None = None
        self._is_over = False
        self.n = 0
        self.seconds = 0.0
        self.of_epochs = 0.0

    def before_batch(self) -> None:
        self._begin = self._clock() if self._begin is None else self._begin

    def after_step(self, loss: Any) -> None:
        if self._is_over:
            return
        now = self._clock()
        if self._since is not None:
            self.n += 1
            self.seconds += now - self._since
        self._since = now

    def after_epoch(self, record: Any) -> None:
        assert self._begin is not None
        self.of_epochs = self._clock() - self._begin
        self._is_over = True


def _facts(settings: SpeedSettings, splits: Mapping[str, TokenisedSplit], device: torch.device) -> Mapping[str, Any]:
    lengths = splits["train"].lengths.double()
    spec = settings.recipe.training
    return {
        "model": settings.model,
        "data": settings.data.name,
        "train_rows": len(splits["train"]),
        "validation_rows": len(splits["validation"]),
        "mean_tokens": round(float(lengths.mean()), 1),
        "longest": int(lengths.max()),
        "epochs": spec.epochs,
        "batch_size": spec.batch_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": str(choose_dtype(device, spec.precision)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "seconds": "processor time" if device.type == "cpu" else "passed",
        "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "rounds": settings.rounds,
        "study_trials": settings.study.trials,
        "study_epochs": settings.study.epochs,
        "seed": settings.seed,
    }
