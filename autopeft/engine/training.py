"""Real trials: hybrid adapters and a task head on a frozen transformer, trained by a loop of our own.

A worker's trials share the model and the tokenised data. The frozen model stays in eval mode, so that all randomness of
a trial is its first weights, the order of its batches and, where asked for, dropout within the adapters, each drawn
from the trial's seed: on a CPU the same job gives the same numbers in every process that has as many threads.
"""

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from autopeft.engine.batches import Batch, TokenisedSplit, training_batches
from autopeft.engine.devices import name_of
from autopeft.engine.fitting import Fitting, Scored, alone, scored
from autopeft.engine.gauge import latency_overhead, longest_batch, refuse_over_limit, training_memory, typical_batch
from autopeft.engine.generating import generate
from autopeft.engine.limits import NO_LIMITS, Limits
from autopeft.engine.micro_batches import Cut, MemoryFit, backward, told_once
from autopeft.engine.optimising import parameter_groups, rate_at, refuse_not_finite, trained_of, training_of
from autopeft.engine.precision import in_force
from autopeft.engine.pulse import Beat, no_beat
from autopeft.engine.quantisation import is_exact_by_row
from autopeft.engine.recipe import TrainingSpec, TrialRecipe
from autopeft.engine.reuse import DEFAULT_CACHE, CacheMemory, FrozenPartReuse, NoReuse, Plan
from autopeft.engine.scoring import Judged, judge, metrics_of, searched
from autopeft.engine.shared_model import (
    SharedModel,
    let_adapters_drop,
    save_adapter,
)
from autopeft.engine.trial import EpochRecord, Evaluation, TrialJob, TrialResult
from autopeft.engine.worker import peak_memory_bytes
from autopeft.space.modules import Scalar

if TYPE_CHECKING:
    from autopeft.engine.packing import PackedTrials

_GPU_CHECK = 16
"""Steps between looks at the loss on a GPU: each look waits for all that is queued."""

_PASS = 32 * 384**2
"""What a pass of one layer costs on a CPU besides its tokens, as tokens times the square of the width that they are
multiplied with: measured on a model 384 wide, where 16 to 80 tokens are equally good."""
_BESIDES = 2
"""Layers that what runs outside of the layers costs as much as: embeddings, the last layer's one token, the head."""


class Fitted(NamedTuple):
    """How a training ended, and what it was on the way."""

    best: EpochRecord | None
    """The best epoch, whose weights the model has now; None: pruned."""
    records: list[EpochRecord]
    screened: EpochRecord | None


Measured = tuple[float | None, int | None]
"""Of what is limited: (latency overhead, bytes of training)."""


class TransformerTrainer:
    """Trains and scores adapters on one shared model."""

    def __init__(
        self,
        base: SharedModel,
        recipe: TrialRecipe,
        splits: Mapping[str, TokenisedSplit],
        limits: Limits = NO_LIMITS,
        cache: CacheMemory = DEFAULT_CACHE,
    ) -> None:
        self._base = base
        self._recipe = recipe
        self._splits = splits
        self._limits = limits
        self.memory_fit = MemoryFit(recipe.training.micro_batch_size, recipe.training.eval_batch_size)
        self._beat = no_beat
        """Of the order in work."""
        self._problem = base.problem
        self._metrics = metrics_of(recipe.task.metric_for(base.problem.name), base.problem)
        read = {name: splits[name] for name in ("train", "validation")}
        self._reuse: FrozenPartReuse | NoReuse = NoReuse("off: 8-bit products hang on all rows of a batch")
        if is_exact_by_row(recipe.model.quantisation):
            reads_one = base.problem.reads_one_token
            self._reuse = FrozenPartReuse(base.model, read, base.device, cache, base.site_map, may_read_one=reads_one)

    @property
    def facts(self) -> Mapping[str, Scalar]:
        found: dict[str, Scalar] = {"device": name_of(self._base.device), "precision": self._precision}
        found |= {"threads": torch.get_num_threads(), "cache": self._reuse.memory}
        return MappingProxyType({**found, "train_tokens": len(self._splits["train"].tokens)})

    @property
    def recipe(self) -> TrialRecipe:
        return self._recipe

    def follow(self, beat: Beat) -> None:
        """Call `beat` with every batch from now on."""
        self._beat = beat

    def together(self) -> "PackedTrials":
        """Trials that share the model and what it computes, none yet."""
        from autopeft.engine.packing import PackedTrials

        size = self._recipe.training.eval_batch_size
        return PackedTrials(self, self._base, self._reuse, self._splits, self._forward, size)

    @property
    def _precision(self) -> str:
        return in_force(self._recipe.training.precision, self._base.dtype, self._base.device)

    def find(self, job: TrialJob) -> None:
        """Find where the model is cut for a trial of this architecture, as `train` does the first time.

        Raises:
            As `train`.
        """
        with self._base.adapted(job.architecture, dropout=0.0, seed=job.seed) as adapted:
            self._reuse.plan(job.architecture, partial(self._forward, adapted))

    def prepare(self, job: TrialJob) -> None:
        """Fill the cache with what a trial of this architecture reads, as `train` does where it is not there.

        Raises:
            As `train`.
        """
        with (
            self._base.adapted(job.architecture, dropout=0.0, seed=job.seed) as adapted,
            self._reuse.shortened(job.architecture, partial(self._forward, adapted)),
        ):
            pass

    def train(
        self,
        job: TrialJob,
        on_epoch: Callable[[EpochRecord], None],
        beat: Beat = no_beat,
        on_step: Callable[[Tensor], None] = lambda loss: None,
    ) -> TrialResult:
        """Train, keep the best epoch's weights and write them to `job.folder`; a pruned trial leaves none.

        `on_step` gets the loss of each step, after the step.

        Raises:
            NotFiniteError: the loss or a metric is NaN or infinite.
            ConfigError: `job.training` has fields that the recipe does not have, or that trials share.
            UnknownSiteError: the model has no place for a placement.
            OverLimitError: the architecture is too slow or takes too much memory; it was not trained.
        """
        start = time.monotonic()
        self._beat = beat
        spec = training_of(self._recipe, job)
        if self._base.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._base.device)
        tell = told_once(on_epoch, lambda record: record.epoch)

        def attempt(rows: int) -> tuple[Fitted, Measured]:
            with self._base.adapted(job.architecture, dropout=spec.dropout, seed=job.seed) as adapted:
                measured = self.gauge(adapted, spec, rows)
                with self._reuse.shortened(job.architecture, partial(self._forward, adapted)) as forward:
                    groups = parameter_groups(adapted, spec)
                    cut = self.cut(rows, forward.plan)
                    fitting = self.fit(trained_of(adapted), groups, spec, cut, job, start, tell, on_step)
                    fitted = alone(fitting, forward, adapted, partial(let_adapters_drop, adapted))
                if fitted.best is not None:
                    save_adapter(adapted, job.folder)
                return fitted, measured

        try:
            fitted, measured = self.memory_fit.trained(spec.batch_size, attempt)
        finally:
            gc.collect()  # PEFT's wrappers hold each other
        rows = self.memory_fit.rows(spec.batch_size)
        return self.result(job, spec, rows, fitted, time.monotonic() - start, measured)

    def result(
        self,
        job: TrialJob,
        spec: TrainingSpec,
        rows: int,
        fitted: Fitted,
        seconds: float,
        measured: Measured,
    ) -> TrialResult:
        """Of a trial that came to its end, with so many `rows` at a time; `measured` as `gauge` did."""
        count = self._base.count(job.architecture)
        return TrialResult(
            number=job.number,
            state="complete" if fitted.best else "pruned",
            score=fitted.best.metrics[0][1] if fitted.best else None,
            best_epoch=fitted.best.epoch if fitted.best else None,
            epochs=tuple(fitted.records),
            stored=count.stored,
            trained=count.trained,
            head=count.head,
            seconds=seconds,
            peak_memory_bytes=self._peak_memory(),
            latency_overhead=measured[0],
            training_memory_bytes=measured[1],
            screened=fitted.screened,
            precision=self._precision,
            micro_batch_size=rows if rows < spec.batch_size else None,
        )

    def cut(self, rows: int, plan: Plan) -> Cut:
        """How steps are cut into parts of at most so many `rows`, where the model is cut by `plan`.

        On a processor also by length: a pass costs little besides its tokens there.
        """
        if self._base.device.type != "cpu" or not plan.n_layers:
            return Cut(rows)
        layers = (plan.n_layers + _BESIDES) / plan.n_layers
        return Cut(rows, _PASS / self._base.anatomy.hidden**2 * layers)

    def gauge(self, adapted: Any, spec: TrainingSpec, rows: int) -> tuple[float | None, int | None]:
        """What is limited, measured: (latency overhead, bytes of training).

        Raises:
            OverLimitError: it is over its limit.
        """
        overhead = memory = None
        if self._limits.latency_overhead is not None:
            typical = typical_batch(self._splits["validation"])
            overhead = latency_overhead(
                lambda: self._forward(adapted, typical), adapted.disable_adapter, self._base.device
            )
            refuse_over_limit(self._limits, overhead, None)
        if self._limits.memory_bytes is not None:
            batch = longest_batch(self._splits["train"], rows)
            let_adapters_drop(adapted, True)
            memory = training_memory(
                adapted, lambda: self._losses(self._forward(adapted, batch), batch), self._base.device
            )
            let_adapters_drop(adapted, False)
            refuse_over_limit(self._limits, None, memory)
        return overhead, memory

    def evaluate(self, job: TrialJob, split: str, beat: Beat = no_beat) -> Evaluation:
        """
        Raises:
            ModelError: no adapter in `job.folder`, or it does not fit the model exactly.
        """
        self._beat = beat
        with self._base.loaded(job.folder) as adapted:
            judged = self._judged(Scored(partial(self._forward, adapted), partial(nullcontext, adapted)), split)
        return Evaluation(split, judged.scores(self._metrics), judged.interval(self._metrics[0]), len(judged.losses))

    def fit(
        self,
        trained: Sequence[nn.Parameter],
        groups: list[dict[str, Any]],
        spec: TrainingSpec,
        cut: Cut,
        job: TrialJob,
        start: float,
        on_epoch: Callable[[EpochRecord], None],
        on_step: Callable[[Tensor], None] = lambda loss: None,
    ) -> Fitting[Fitted]:
        """Train these parameters and leave the best epoch's values in them.

        No best epoch where the trial falls short at a rung. `groups` are the same parameters, for AdamW; `cut` says
        in what parts a step's batch is gone through.
        """
        screened = None
        if job.screen:
            screened = yield from self._screened(trained, groups, spec, cut, job)
            if job.fails_screening(screened):
                return Fitted(None, [], screened)
        records, kept = list[EpochRecord](), list[Tensor]()
        best: EpochRecord | None = None
        epochs = self._epochs(trained, groups, spec, cut, job.seed, torch.arange(len(self._splits["train"])), on_step)
        for epoch in range(1, spec.epochs + 1):
            step, loss = yield from epochs(epoch)
            metrics = yield from self._validated()
            record = EpochRecord(epoch, step, loss, metrics, time.monotonic() - start)
            records.append(record)
            on_epoch(record)
            if best is None or metrics[0][1] > best.metrics[0][1]:
                best, kept = record, [p.detach().clone() for p in trained]
            elif spec.patience is not None and epoch - best.epoch >= spec.patience:
                break
            if job.falls_short(records):
                return Fitted(None, records, screened)
        assert best is not None
        with torch.no_grad():
            for parameter, value in zip(trained, kept, strict=True):
                parameter.copy_(value)
        return Fitted(best, records, screened)

    def _screened(
        self,
        trained: Sequence[nn.Parameter],
        groups: list[dict[str, Any]],
        spec: TrainingSpec,
        cut: Cut,
        job: TrialJob,
    ) -> Fitting[EpochRecord]:
        """The end of a training on the job's share of the rows, the same for all trials, with a schedule of its own.

        Parameters and random numbers are afterwards what they were, so that a trial which goes on is trained as if it
        had not been screened.
        """
        assert job.screen is not None
        start = time.monotonic()
        before = [p.detach().clone() for p in trained]
        device = self._base.device
        random, on_gpu = torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        n_rows = len(self._splits["train"])
        chosen = np.random.default_rng(0).permutation(n_rows)[: math.ceil(job.screen * n_rows)]
        epochs = self._epochs(trained, groups, spec, cut, job.seed, torch.from_numpy(chosen).sort().values)
        for epoch in range(1, spec.epochs + 1):
            steps, loss = yield from epochs(epoch)
        torch.set_rng_state(random)
        if on_gpu is not None:
            torch.cuda.set_rng_state(on_gpu, device)
        metrics = yield from self._validated()
        with torch.no_grad():
            for parameter, value in zip(trained, before, strict=True):
                parameter.copy_(value)
        return EpochRecord(spec.epochs, steps, loss, metrics, time.monotonic() - start)

    def _epochs(
        self,
        trained: Sequence[nn.Parameter],
        groups: list[dict[str, Any]],
        spec: TrainingSpec,
        cut: Cut,
        seed: int,
        chosen: Tensor,
        on_step: Callable[[Tensor], None] = lambda loss: None,
    ) -> Callable[[int], Fitting[tuple[int, float]]]:
        """Trains on the chosen rows of the split, a step's batch as it is `cut`.

        What is given carries the epoch of that number out, from 1: the steps so far and the mean loss of the epoch.
        """
        optimiser = torch.optim.AdamW(groups, lr=spec.learning_rate, fused=True)
        split = self._splits["train"]
        steps_per_epoch = math.ceil(len(chosen) / spec.batch_size)

        def train_epoch(epoch: int) -> Fitting[tuple[int, float]]:
            step = (epoch - 1) * steps_per_epoch
            total, n = torch.zeros(2, device=self._base.device)
            for batch in training_batches(split, spec.batch_size, seed, epoch, chosen):
                step += 1
                share = rate_at(step, steps_per_epoch * spec.epochs, spec.warmup_fraction)
                for group in optimiser.param_groups:
                    group["lr"] = share * group["peak"]
                weights = self._problem.weights(batch.labels).sum().clamp(min=1).to(total.device)
                losses = yield from backward(split, batch, cut, weights, self._losses)
                nn.utils.clip_grad_norm_(trained, spec.gradient_clip)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                total += losses
                n += weights
                if total.device.type == "cpu" or step % _GPU_CHECK == 0:
                    refuse_not_finite(total, step)
                on_step(losses / weights)
            return step, float(total / n)

        return train_epoch

    def _validated(self) -> Fitting[tuple[tuple[str, float], ...]]:
        model = yield from scored("validation")
        return searched(self._metrics[0], self._judged(model, "validation").scores(self._metrics))

    def _forward(self, adapted: Any, batch: Batch) -> Tensor:
        """What the problem reads of the logits, in float32 `(B, ...)`."""
        self._beat()
        device, dtype = self._base.device, self._base.dtype
        batch = batch.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            logits: Tensor = adapted(**self._problem.inputs(batch)).logits
        return self._problem.read(logits, batch).float()

    def _losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The sum of a batch's losses."""
        return self._problem.losses(outputs, batch.labels.to(outputs.device)).sum()

    def _judged(self, model: Scored, split: str) -> Judged:
        rows = self._splits[split]
        judged = self.memory_fit.evaluated(lambda size: judge(self._problem, rows, size, model.forward))
        if self._metrics[0].reads != "texts":
            return judged
        with model.whole() as adapted:
            return judged.with_texts(
                self.memory_fit.evaluated(lambda size: generate(self._base, adapted, rows, size, self._beat))
            )

    def _peak_memory(self) -> int | None:
        device = self._base.device
        return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes()
