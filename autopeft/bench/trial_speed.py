"""Finished trials an hour, ours and the HF Trainer's, side by side in one interleaved run.

A round goes through all configurations of a law, and each contender trains each of them before the next one comes, so
that a slow minute of the machine meets all. Everything a study would pay is charged to our engine within each round:
loading, tokenising, finding where to cut, filling the cache, training, evaluation, saving. Ratios are made within a
round. On a CPU seconds are processor time of one process; on a GPU they are what passes.
"""

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from autopeft.bench.equivalence import Agreement, check_losses
from autopeft.bench.laws import Configuration, configurations
from autopeft.bench.matmul_limit import Replay, recorded
from autopeft.bench.stock_trials import WAYS, StockTask, StockTrials, fresh_process
from autopeft.engine.batches import TokenisedSplit
from autopeft.engine.data import TaskData
from autopeft.engine.devices import choose_device
from autopeft.engine.recipe import TrialRecipe
from autopeft.engine.shared_model import SharedModel, choose_dtype
from autopeft.engine.training import TransformerTrainer
from autopeft.engine.transformer_backend import TransformerBackend
from autopeft.engine.trial import TrialJob
from autopeft.engine.worker import let_garbage_be_found_fast
from autopeft.errors import UnknownNameError, UsageError

OURS = "ours"


@dataclass(frozen=True)
class SpeedSettings:
    """What is measured."""

    model: str
    revision: str | None
    recipe: TrialRecipe
    data: TaskData
    kinds: tuple[str, ...] = ("lora", "serial")
    laws: tuple[str, ...] = ("uniform", "bernoulli")
    ways: tuple[str, ...] = ("b1", "b2")
    rounds: int = 5
    n_configurations: int = 6
    """Of a law, at most."""
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
        if min(self.rounds, self.n_configurations, self.gate_steps, len(self.kinds), len(self.laws)) < 1:
            raise UsageError("bench trials: rounds, configurations, gate steps, kinds and laws must be 1 or more")
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
    n_steps: int = 0
    """Of those that are timed."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Of a whole trial, by contender; of ours without filling the cache."""
    cache: list[float] = field(default_factory=list)
    """Seconds to find where to cut and to fill what was not there."""
    steps: list[float] = field(default_factory=list)
    """Seconds of all training steps of our trial."""
    limit: list[float] = field(default_factory=list)
    """Seconds of their matrix multiplications alone."""

    def ratio(self, way: str) -> Range:
        """How many times as long the other takes, the cache being filled."""
        return Range.of([a / b for a, b in zip(self.seconds[way], self.seconds[OURS], strict=True)])

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

    def ratio(self, way: str, *, top_third: bool = False, charged: bool = True) -> Range | None:
        """How many times as long the other takes for all, everything charged to both; None: no such configurations.

        Without `charged`, opening and filling the cache are left out, as in a study of very many trials.
        """
        chosen = [one for one in self.timed if one.configuration.is_top_third or not top_third]
        if not chosen:
            return None
        ratios = []
        for r in range(len(chosen[0].seconds[OURS])):
            theirs, ours = (sum(one.seconds[name][r] for one in chosen) for name in (way, OURS))
            if charged:
                theirs += self.opening[way][r]
                ours += self.opening[OURS][r] + sum(one.cache[r] for one in chosen)
            ratios.append(theirs / ours)
        return Range.of(ratios)


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
        Suite(law, kind, [Timed(one) for one in configurations(base.anatomy, kind, law, settings.n_configurations, 0)])
        for kind in settings.kinds
        for law in settings.laws
    ]
    agreements = []
    for one in _to_check(suites):
        agreements += check_losses(base, splits, task, [one], settings.gate_steps, settings.seed)
        tell(f"losses   {one.name}: {agreements[-1].largest:.1e} apart at most, {settings.gate_steps} steps")
    let_garbage_be_found_fast()  # as in a worker; the others gain by it, too
    meter = _Meter(settings, task, device)
    for number in range(settings.rounds):
        for suite in suites:
            meter.round(suite, number)
            shown = ", ".join(f"{way} {_last(suite, way):.2f}x" for way in settings.ways)
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
            contenders = [OURS, *self._settings.ways]
            turn = (number + i) % len(contenders)
            for name in contenders[turn:] + contenders[:turn]:
                if name == OURS:
                    self._run_ours(ours, timed)
                else:
                    timed.seconds.setdefault(name, []).append(self._run_stock(name, stock, timed.configuration))

    def _run_ours(self, ours: TransformerTrainer, timed: Timed) -> None:
        architecture = timed.configuration.architecture
        with tempfile.TemporaryDirectory() as folder:
            job = TrialJob(0, architecture, (), self._settings.seed, Path(folder))
            _, filled = self._timed(lambda: ours.prepare(job))
            timed.cache.append(filled)
            if architecture.id not in self._replays:  # also a warm-up; nothing of it is timed
                ends: list[int] = []
                with recorded() as products:
                    ours.train(job, lambda record: None, on_step=lambda loss: ends.append(len(products)))
                self._replays[architecture.id] = Replay(products[ends[0] : ends[-1]], self._device)
            steps = _Steps(self._clock)
            _, seconds = self._timed(lambda: ours.train(job, steps.after_epoch, on_step=steps.after_step))
            timed.seconds.setdefault(OURS, []).append(seconds)
            timed.n_steps = steps.n
            timed.steps.append(steps.seconds)
            _, limit = self._timed(self._replays[architecture.id].run)
            timed.limit.append(limit)

    def _run_stock(self, way: str, stock: Mapping[str, StockTrials], configuration: Configuration) -> float:
        seed = self._settings.seed
        if way not in stock:
            return fresh_process(self._task, WAYS[way], configuration, seed, self._device.type == "cpu")
        _, seconds = self._timed(lambda: stock[way].train(configuration, seed))
        return seconds

    def _timed(self, run: Callable[[], Any]) -> tuple[Any, float]:
        start = self._clock()
        result = run()
        return result, self._clock() - start

    def _clock(self) -> float:
        if self._device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self._device)
        return time.perf_counter()


class _Steps:
    """Adds up the seconds of training steps, without the first and without what lies between epochs."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since: float | None = None
        self.n = 0
        self.seconds = 0.0

    def after_step(self, loss: Any) -> None:
        now = self._clock()
        if self._since is not None:
            self.n += 1
            self.seconds += now - self._since
        self._since = now

    def after_epoch(self, record: Any) -> None:
        self._since = self._clock()


def _last(suite: Suite, way: str) -> float:
    """The ratio of the newest round."""
    ours = sum(one.seconds[OURS][-1] + one.cache[-1] for one in suite.timed) + suite.opening[OURS][-1]
    return (sum(one.seconds[way][-1] for one in suite.timed) + suite.opening[way][-1]) / ours


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
        "seed": settings.seed,
    }
