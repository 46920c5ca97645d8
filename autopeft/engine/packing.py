"""Trials that one worker trains together: each goes its own way, and they share what the model computes.

A trial has its own first weights, order of batches, optimiser, schedule, clipping, evaluation and end, as if it were
alone (`autopeft.engine.fitting`); only the forward and the backward pass are common. One that ends makes room at once.
What it gives does not hang on its company, but for the last bits of its numbers. Some run beside the others and not
with them: trials with dropout, which draw random numbers of their own; with prompts, which make the sequence longer;
those whose head reads another token of the last layer; all trials of a model whose rows mix (int8); and those of a
common step that failed, or did not fit into the memory, so that only the one to blame fails.
"""

import gc
import logging
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.engine.batches import Batch, TokenisedSplit, evaluation_batches
from autopeft.engine.fitting import Answer, Fitting, Learn, Score, Scored, Wanted
from autopeft.engine.micro_batches import StepTooLargeError, told_once
from autopeft.engine.optimising import parameter_groups, trained_of, training_of
from autopeft.engine.packed import PackedModel
from autopeft.engine.pulse import Beat, no_beat
from autopeft.engine.recipe import TrainingSpec
from autopeft.engine.reuse import FrozenPartReuse, NoReuse, Plan
from autopeft.engine.shared_model import SharedModel, save_adapter
from autopeft.engine.training import Fitted, TransformerTrainer
from autopeft.engine.trial import Ended, EpochRecord, TrialJob
from autopeft.hybrid.detached import DetachedAdapter, detached
from autopeft.hybrid.stacked import lay_out

MOST_OUTPUTS = 4096
"""Numbers for each row: wider outputs are not kept for all rows of a split, so their trials are scored one by one."""


@dataclass(eq=False)
class _Trial:
    job: TrialJob
    adapter: DetachedAdapter
    plan: Plan
    trained: list[nn.Parameter]
    fitting: Fitting[Fitted]
    start: float
    measured: tuple[float | None, int | None]
    spec: TrainingSpec
    rows: int
    """That it goes through at a time."""
    again: Callable[[], None]
    """Begins the trial anew."""
    random: "_RandomNumbers | None"
    """Those that it draws; None where it draws none."""
    wanted: Wanted = field(init=False)
    is_apart: bool = False
    """Whether it runs on its own because a common pass has failed, or rows would mix."""

    @property
    def company(self) -> Hashable:
        """Trials that have this in common run together."""
        if self.is_apart or self.random is not None or self.adapter.prompts:
            return self.job.number
        return self.plan.reads or "all"

    @property
    def depth(self) -> float:
        """The first layer that it adapts: deeper ones stand last in a pack, and leave it whole where they begin."""
        return min((placement.layer for placement in self.job.architecture.placements), default=float("inf"))


class PackedTrials:
    """The trials that a worker has in work."""

    def __init__(
        self,
        trainer: TransformerTrainer,
        base: SharedModel,
        reuse: FrozenPartReuse | NoReuse,
        splits: Mapping[str, TokenisedSplit],
        forward: Callable[[Any, Batch], Tensor],
        eval_batch_size: int,
    ) -> None:
        self._trainer = trainer
        self._base = base
        self._reuse = reuse
        self._splits = splits
        self._forward = forward
        self._eval_batch_size = eval_batch_size
        self._trials: list[_Trial] = []
        self._packs: dict[Hashable, tuple[tuple[_Trial, ...], PackedModel]] = {}
        """By company: its members, and the model with them."""
        self._installed: PackedModel | None = None
        self._undo = ExitStack()
        self._log = logging.getLogger(__name__)

    @property
    def running(self) -> tuple[int, ...]:
        """Numbers of the trials in work."""
        return tuple(trial.job.number for trial in self._trials)

    def begin(
        self,
        job: TrialJob,
        on_epoch: Callable[[EpochRecord], None],
        beat: Beat = no_beat,
        on_step: Callable[[Tensor], None] = lambda loss: None,
    ) -> None:
        """Let a trial join; `beat` is called with every batch of any trial, until another one joins.

        Raises:
            As `TransformerTrainer.train`, of what it raises before the first step.
        """
        self._trainer.follow(beat)
        self._begin(job, told_once(on_epoch, lambda record: record.epoch), on_step, time.monotonic())

    def _begin(
        self,
        job: TrialJob,
        on_epoch: Callable[[EpochRecord], None],
        on_step: Callable[[Tensor], None],
        start: float,
        is_apart: bool = False,
    ) -> None:
        spec = training_of(self._trainer.recipe, job)
        rows = self._trainer.memory_fit.rows(spec.batch_size)
        self._install(None)
        with self._base.adapted(job.architecture, dropout=spec.dropout, seed=job.seed) as adapted:
            measured = self._trainer.gauge(adapted, spec, rows)
            forward = partial(self._forward, adapted)
            plan = self._reuse.plan(job.architecture, forward)
            self._reuse.provide(plan, forward, [kept for trial in self._trials for kept in trial.plan.kept])
            trained, groups = trained_of(adapted), parameter_groups(adapted, spec)
            adapter = detached(self._base.model)
            random = _RandomNumbers(self._base.device) if spec.dropout else None
        lay_out(adapter)
        cut = self._trainer.cut(rows, plan)
        fitting = self._trainer.fit(trained, groups, spec, cut, job, start, on_epoch, on_step)
        again = partial(self._begin, job, on_epoch, on_step, start, is_apart=True)
        trial = _Trial(job, adapter, plan, trained, fitting, start, measured, spec, rows, again, random)
        trial.is_apart = is_apart or isinstance(self._reuse, NoReuse)
        trial.wanted = next(fitting)
        self._trials.append(trial)
        self._trials.sort(key=lambda one: (one.depth, one.job.number))

    def advance(self) -> list[Ended]:
        """Carry every trial a step on, those that end an epoch first; how those ended that did."""
        ended: list[Ended] = []
        scoring = [trial for trial in self._trials if isinstance(trial.wanted, Score)]
        for together in _companies(scoring):
            ended += self._score(together)
        for together in _companies(self._trials):
            ended += self._learn(together)
        return ended

    def _learn(self, trials: list[_Trial]) -> list[Ended]:
        """One step of trials that run together, or of each alone where that fails."""
        try:
            told = self._passed(trials)
        except Exception as error:
            if len(trials) == 1:
                return self._go_on(trials[0], partial(trials[0].fitting.throw, error))
            self._part(trials, error)
            return [one for trial in trials for one in self._learn([trial])]
        return [
            one
            for trial, answer in zip(trials, told, strict=True)
            for one in self._go_on(trial, partial(trial.fitting.send, answer))
        ]

    def _passed(self, trials: list[_Trial]) -> list[Answer]:
        """Forward and backward pass: each has its gradients; the losses of each."""
        packed, places = self._packed(trials)
        wanted = [trial.wanted for trial in trials]
        learning = [one for one in wanted if isinstance(one, Learn)]
        batches = {place: one.batch for place, one in zip(places, learning, strict=True)}
        with nullcontext() if (random := trials[0].random) is None else random.drawn():
            outputs = packed.run("train", self._splits["train"], batches, training=True)
            told = [one.loss_of(output) for one, output in zip(learning, outputs, strict=True)]
            torch.stack([loss for loss, *_ in told]).sum().backward()
        packed.hand_out_gradients(places)
        return [tuple(one.detach() for one in of_trial) for of_trial in told]

    def _score(self, trials: list[_Trial]) -> list[Ended]:
        """Score trials that run together on the split that they want to be scored on."""
        ended: list[Ended] = []
        kept: dict[_Trial, list[tuple[Batch, Tensor]]] = {}
        if len(trials) > 1:
            try:
                kept = self._outputs(trials)
            except Exception as error:
                self._part(trials, error)
        for trial in trials:
            assert isinstance(trial.wanted, Score)
            forward = partial(_known, kept.get(trial, []), partial(self._alone, trial, trial.wanted.split))
            answer = Scored(forward, partial(self._whole, trial))
            ended += self._go_on(trial, partial(trial.fitting.send, answer))
        return ended

    def _outputs(self, trials: list[_Trial]) -> dict[_Trial, list[tuple[Batch, Tensor]]]:
        """What the model gives for each batch of the split, by trial; nothing where that is too much to keep."""
        packed, places = self._packed(trials)
        assert isinstance(trials[0].wanted, Score)
        name = trials[0].wanted.split
        found: dict[_Trial, list[tuple[Batch, Tensor]]] = {trial: [] for trial in trials}
        with torch.inference_mode():
            for batch in evaluation_batches(self._splits[name], self._eval_batch_size):
                outputs = packed.run(name, self._splits[name], dict.fromkeys(places, batch))
                if outputs[0][0].numel() > MOST_OUTPUTS:
                    return {}
                for trial, output in zip(trials, outputs, strict=True):
                    found[trial].append((batch, output))
        return found

    def _alone(self, trial: _Trial, split: str, batch: Batch) -> Tensor:
        packed, (place,) = self._packed([trial])
        return packed.run(split, self._splits[split], {place: batch})[0]

    def _go_on(self, trial: _Trial, step: Callable[[], Wanted]) -> list[Ended]:
        """Let a trial take what it wanted; how it ended, if it did."""
        try:
            trial.wanted = step()
        except StopIteration as end:
            return [(trial.job, self._end(trial, end.value))]
        except StepTooLargeError as error:
            return self._with_fewer_rows(trial, error)
        except Exception as error:
            self._drop(trial)
            return [(trial.job, error)]
        return []

    def _with_fewer_rows(self, trial: _Trial, error: StepTooLargeError) -> list[Ended]:
        """Begin a trial anew whose steps do not fit into the memory; how it ended, if they cannot."""
        self._drop(trial)
        try:
            self._trainer.memory_fit.lessen(trial.rows, error)
            trial.again()
        except Exception as problem:
            return [(trial.job, problem)]
        return []

    def _end(self, trial: _Trial, fitted: Fitted) -> Any:
        """Save the weights, unless it was pruned; the result, or what went wrong."""
        self._drop(trial)
        try:
            if fitted.best is not None:
                with self._whole(trial) as adapted:
                    save_adapter(adapted, trial.job.folder)
            seconds = time.monotonic() - trial.start
            return self._trainer.result(trial.job, trial.spec, trial.rows, fitted, seconds, trial.measured)
        except Exception as error:
            return error

    @contextmanager
    def _whole(self, trial: _Trial) -> Iterator[Any]:
        """The trial's adapters in the model, as they are now, and no others."""
        self._install(None)
        with self._base.adapted(trial.job.architecture, dropout=0.0, seed=trial.job.seed) as adapted:
            with torch.no_grad():
                for parameter, value in zip(trained_of(adapted), trial.trained, strict=True):
                    parameter.copy_(value)
            yield adapted

    def _drop(self, trial: _Trial) -> None:
        self._install(None)
        self._trials.remove(trial)
        self._packs.pop(trial.company, None)
        gc.collect()  # PEFT's wrappers hold each other

    def _part(self, trials: list[_Trial], error: Exception) -> None:
        """From now on these trials run each on its own, beginning with the step that failed."""
        self._log.warning(
            "trials %s cannot run together and go on one by one: %s",
            ", ".join(str(trial.job.number) for trial in trials),
            str(error).partition("\n")[0],
        )
        self._install(None)
        self._packs.clear()
        for trial in trials:
            trial.is_apart = True
            for parameter in trial.trained:
                parameter.grad = None
        error.__traceback__ = None  # it holds what the failed pass computed
        if self._base.device.type == "cuda":
            torch.cuda.empty_cache()

    def _packed(self, trials: Sequence[_Trial]) -> tuple[PackedModel, list[int]]:
        """The model with all trials that these run together with, ready to run, and the places of these among them."""
        company = trials[0].company
        members = tuple(trial for trial in self._trials if trial.company == company)
        known = self._packs.get(company)
        if known is None or known[0] != members:
            self._install(None)
            plans = [trial.plan for trial in members]
            packed = PackedModel(
                self._base.model,
                [trial.adapter for trial in members],
                [plan.stand_ins for plan in plans],
                partial(self._forward, self._base.model),
                self._reuse.read,
                partial(self._reuse.last_layer, plans[0].reads),
            )
            known = self._packs[company] = members, packed
        self._install(known[1])
        return known[1], [members.index(trial) for trial in trials]

    def _install(self, packed: PackedModel | None) -> None:
        if packed is not self._installed:
            self._undo.close()
            self._installed = packed
            if packed is not None:
                self._undo.enter_context(packed.installed())


class _RandomNumbers:
    """The state of torch's generators as one trial sees it, while others use them, too."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._state = self._now()

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """Within it, random numbers are those that this trial draws next."""
        before = self._now()
        self._put(self._state)
        try:
            yield
        finally:
            self._state = self._now()
            self._put(before)

    def _now(self) -> tuple[Tensor, Tensor | None]:
        is_cuda = self._device.type == "cuda"
        return torch.get_rng_state(), torch.cuda.get_rng_state(self._device) if is_cuda else None

    def _put(self, state: tuple[Tensor, Tensor | None]) -> None:
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], self._device)


def _companies(trials: Sequence[_Trial]) -> list[list[_Trial]]:
    found: dict[Hashable, list[_Trial]] = {}
    for trial in trials:
        found.setdefault(trial.company, []).append(trial)
    return list(found.values())


def _known(known: list[tuple[Batch, Tensor]], forward: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
    """What was computed for this batch before, if it was: batches come in the same order."""
    if known and torch.equal(known[0][0].rows, batch.rows):
        return known.pop(0)[1]
    return forward(batch)
