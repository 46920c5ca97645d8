"""The search loop: asks the sampler, has the workers train, writes down every step.

Whatever stops it, the same call goes on where it stopped: trials that were running are run again under their numbers,
or taken from their result files where the worker had finished.
"""

import logging
import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import optuna

from autopeft.engine.causes import RETRIED
from autopeft.engine.pool import Chosen, Finished, PoolEvent, Progress, Ready, WorkerPool
from autopeft.engine.trial import RESULT_FILE, Evaluation, TrialJob, TrialResult, read_result, trial_seed
from autopeft.errors import AutopeftError
from autopeft.resources import atomic_write
from autopeft.samplers import Ask, Observation, SpaceExhaustedError, propose
from autopeft.samplers.optuna_study import stored_distribution
from autopeft.space.parameters import Params
from autopeft.study.database import DATABASE_FILE
from autopeft.study.earlier import EARLIER_SUMMARY, to_json
from autopeft.study.identity import check
from autopeft.study.layout import LOG_FILE, cache_folder
from autopeft.study.lock import RunLock
from autopeft.study.plan import HELD_OUT, Plan
from autopeft.study.progress import (
    Began,
    EpochEnded,
    Evaluating,
    Listener,
    Stopping,
    TrialBegan,
    TrialEnded,
    WorkerReady,
    silent,
)
from autopeft.study.reader import read_study
from autopeft.study.record import (
    CONTEXT_SUMMARY,
    HELD_OUT_SUMMARY,
    PACK_SUMMARY,
    SETTLED_SUMMARY,
    StudyView,
    TrialRecord,
    TrialStart,
    best_trial,
    n_tried,
    pareto_front,
)
from autopeft.study.stopping import GRACE_SECONDS, FailurePolicy, Stop, signals
from autopeft.study.store import Store

_TICK_SECONDS = 0.2

StopReason = Literal["trials", "time", "exhausted", "SIGINT", "SIGTERM"]


@dataclass(frozen=True)
class SearchOutcome:
    """How a search ended."""

    view: StudyView
    reason: StopReason
    message: str = ""
    """More about the reason, where there is more."""

    @property
    def best(self) -> TrialRecord | None:
        return best_trial(self.view.trials)


def search(plan: Plan, listener: Listener = silent, *, rebuild: bool = False) -> SearchOutcome:
    """Run the plan's study to its end, or from where it stopped; `rebuild` makes a damaged one anew from its events.

    Raises:
        StudyError: the run folder is busy, damaged, or holds another study.
        FailurePolicyError: too many trials fail.
        AutopeftError: what the backend says when it cannot be opened.
    """
    optuna.logging.disable_default_handler()
    with RunLock(plan.run), signals() as stop, _log(plan) as log:
        if rebuild:
            Store.rebuild(plan.run).close()
        store, warnings = _open_store(plan)
        with store:
            listener(Began(plan, store.trials, warnings))
            return _Session(plan, store, stop, listener, log).run()


class _Session:
    """One session of a study, under its lock."""

    def __init__(self, plan: Plan, store: Store, stop: Stop, listener: Listener, log: logging.Logger) -> None:
        self.plan, self.store, self.stop, self.listener, self.log = plan, store, stop, listener, log
        self.distributions = {p.name: stored_distribution(p) for p in plan.space.parameters}
        self.failures = FailurePolicy()
        self.cut_off = deque(store.unfinished())
        """Trials that were running when an earlier session died."""
        self.waiting: deque[TrialRecord] = deque()
        """Trials that are proposed and wait for a worker."""
        self.exhausted = ""
        self.n_pack = self._pack_of_study()
        choices = store.summary.get(SETTLED_SUMMARY)
        self.backend = plan.backend if choices is None else plan.backend.settled(choices)

    def run(self) -> SearchOutcome:
        for trial in tuple(self.cut_off):
            if (result := read_result(self._job(trial).folder)) is not None:
                self.cut_off.remove(trial)
                self._record(result)
        if not self._wants_more(0):
            return self._end(None)
        self._drop_cache()  # of a session that was killed
        try:
            with WorkerPool(
                self.backend, self.plan.n_workers, bounds=self.plan.bounds, log=self.log, pack=self.n_pack
            ) as pool:
                self._loop(pool)
                if self.stop.now:
                    for event in pool.stop(0):
                        self._handle(event)
                return self._end(pool)
        finally:
            self._drop_cache()

    def _pack_of_study(self) -> int:
        """What the plan says or, where the user left it open, what it said when the study was begun."""
        if self.plan.settings.pack != "auto":
            return self.plan.n_pack
        known = self.store.summary.get(PACK_SUMMARY)
        if isinstance(known, int):
            return known
        self.store.set_summary(PACK_SUMMARY, self.plan.n_pack)
        return self.plan.n_pack

    @property
    def n_at_a_time(self) -> int:
        """Trials that may be in work."""
        return self.plan.n_workers * self.n_pack

    def _drop_cache(self) -> None:
        shutil.rmtree(cache_folder(self.plan.run), ignore_errors=True)

    def _loop(self, pool: WorkerPool) -> None:
        is_told = False
        while not self.stop.now:
            self._submit(pool)
            if not pool.running:
                return
            if self.stop.signal and not is_told:
                is_told = True
                self.listener(Stopping(self.stop.signal, GRACE_SECONDS))
            deaths: set[str | None] = set()
            for event in pool.wait(_TICK_SECONDS):
                self._handle(event)
                if isinstance(event, Finished) and event.result.error not in deaths:
                    self.failures.count(event.result)
                    # A worker takes all that it had in work with it: that is one failure.
                    deaths |= {event.result.error} if event.result.cause in RETRIED else set()

    def _submit(self, pool: WorkerPool) -> None:
        """Give every free worker a trial, then propose what is to be proposed ahead, while they train."""
        while self.stop.signal is None:
            if self.waiting and pool.n_free:
                trial = self.waiting.popleft()
                self.listener(TrialBegan(trial))
                pool.submit(self._job(trial))
                continue
            is_ahead = len(self.waiting) >= pool.n_free + self.plan.settings.ahead
            if is_ahead or not self._wants_more(len(pool.running) + len(self.waiting)) or not self._is_settled():
                return
            if (proposed := self._next_trial()) is None:
                return
            self.waiting.append(proposed)

    def _wants_more(self, running: int) -> bool:
        """Whether another trial may begin: tried and running ones are not the total yet, and there is time."""
        return (
            n_tried(self.store.trials) + running < self.plan.n_trials
            and not self._is_out_of_time()
            and not self.exhausted
        )

    def _is_out_of_time(self) -> bool:
        spent = sum(trial.result.seconds for trial in self.store.trials if trial.result)
        return self.plan.seconds is not None and spent / self.n_at_a_time >= self.plan.seconds

    def _next_trial(self) -> TrialRecord | None:
        """One that was cut off, one whose worker was lost, the next baseline, or the sampler's proposal."""
        if self.cut_off:
            return self.cut_off.popleft()
        repeated = {trial.retry_of for trial in self.store.trials}
        for trial in self.store.trials[: max(0, self._n_settled())]:
            may_be_chance = trial.result is not None and trial.result.cause in RETRIED
            if may_be_chance and trial.retry_of is None and trial.number not in repeated:
                start = TrialStart(trial.architecture, trial.stored, trial.training, trial.number, trial.baseline)
                return self._begin(trial.params, start)
        begun = {trial.architecture.id for trial in self.store.trials}
        for baseline in self.plan.baselines:
            point = baseline.candidate
            if point.architecture.id not in begun:
                start = TrialStart(point.architecture, point.stored, point.training, baseline=baseline.name)
                return self._begin(dict(point.params), start)
        settled = self._n_settled()
        timed = self.plan.settings.cost_aware
        past = [_observation(trial, trial.number < settled, timed) for trial in self.store.trials]
        try:
            seed = trial_seed(self.plan.settings.seed, len(past))
            settings = self.plan.settings
            ask = Ask(
                self.plan.space, past, seed, settings.objective, self.plan.earlier, per_second=settings.cost_aware
            )
            candidate = propose(self.plan.sampler, ask)
        except SpaceExhaustedError as error:
            self.exhausted = str(error)
            return None
        start = TrialStart(candidate.architecture, candidate.stored, candidate.training)
        return self._begin(dict(candidate.params), start)

    def _n_settled(self) -> int:
        """Trials, from the first, whose outcome the next proposal may know.

        The last ones, one fewer than may run or wait at a time, count as running even if they have ended: so a
        proposal depends on outcomes alone and never on which of them was faster, and a study is the same however often
        it is killed.
        """
        return len(self.store.trials) - self.n_at_a_time - self.plan.settings.ahead + 1

    def _is_settled(self) -> bool:
        """Whether the next trial may begin: all that its proposal may know has ended."""
        if self.cut_off:
            return True
        return all(trial.state != "running" for trial in self.store.trials[: max(0, self._n_settled())])

    def _begin(self, params: Params, start: TrialStart) -> TrialRecord:
        if (halving := self.plan.halving) is not None and start.baseline is None:
            settled = self.store.trials[: max(0, self._n_settled())]
            stored = start.stored if self.plan.settings.objective == "pareto" else None
            start = replace(start, rungs=halving.thresholds(settled, stored))
        number = self.store.begin(params, {name: self.distributions[name] for name in params}, start)
        self.log.info("trial %d begins: architecture %s, %d parameters", number, start.architecture.id, start.stored)
        return self.store.trials[number]

    def _handle(self, event: PoolEvent) -> None:
        match event:
            case Chosen(choices=choices):
                self.backend = self.backend.settled(choices)
                self.store.set_summary(SETTLED_SUMMARY, dict(choices))
                self.log.info("for all trials of the study: %s", dict(choices))
            case Ready(seconds=seconds, facts=facts):
                self.log.info("worker ready after %.1f s: %s", seconds, dict(facts))
                self.listener(WorkerReady(seconds, tuple((name, str(value)) for name, value in facts.items())))
            case Progress(number=number, record=record):
                self.listener(EpochEnded(number, record))
            case Finished(result=result):
                self._record(result)

    def _record(self, result: TrialResult) -> None:
        self.store.finish(result.number, result)
        told = result.error if result.score is None else f"{result.score:.4f}"
        if result.state == "pruned":
            told = f"not among the best after {f'epoch {len(result.epochs)}' if result.epochs else 'screening'}"
        self.log.info("trial %d %s after %.1f s: %s", result.number, result.state, result.seconds, told)
        self._drop_weights()
        self.listener(TrialEnded(self.store.trials[result.number]))

    def _drop_weights(self) -> None:
        """Keep those of the best trials, and of the front where it is searched; failed and pruned trials leave none."""
        ranked = sorted((t for t in self.store.trials if t.score is not None), key=lambda t: -(t.score or 0.0))
        front = pareto_front(self.store.trials) if self.plan.settings.objective == "pareto" else ()
        kept = {trial.number for trial in front}
        for trial in (t for t in ranked[self.plan.settings.keep :] if t.number not in kept):
            for file in self._job(trial).folder.glob("*"):
                if file.name != RESULT_FILE:
                    file.unlink()
        for trial in self.store.trials:
            if trial.state in ("failed", "pruned"):
                shutil.rmtree(self._job(trial).folder, ignore_errors=True)

    def _end(self, pool: WorkerPool | None) -> SearchOutcome:
        """Score the best trial on the held-out split, unless that is on record already."""
        reason, message = self._reason()
        best = best_trial(self.store.trials)
        if best is not None and self.stop.signal is None:
            known = self.store.summary.get(HELD_OUT_SUMMARY)
            if not (isinstance(known, dict) and known.get("trial") == best.number):
                self.listener(Evaluating(best))
                self.store.set_summary(HELD_OUT_SUMMARY, _evaluation_json(best.number, self._evaluate(best, pool)))
        return SearchOutcome(
            StudyView(self.store.identity, self.store.trials, dict(self.store.summary)), reason, message
        )

    def _evaluate(self, best: TrialRecord, pool: WorkerPool | None) -> Evaluation:
        if pool is not None:
            return pool.evaluate(self._job(best), HELD_OUT)
        with WorkerPool(self.backend, 1, bounds=self.plan.bounds, log=self.log) as own:
            return own.evaluate(self._job(best), HELD_OUT)

    def _reason(self) -> tuple[StopReason, str]:
        if self.stop.signal == "SIGTERM":
            return "SIGTERM", "stopped by a signal"
        if self.stop.signal == "SIGINT":
            return "SIGINT", "stopped by Ctrl-C"
        if self.exhausted:
            return "exhausted", self.exhausted
        if n_tried(self.store.trials) < self.plan.n_trials:
            return "time", f"the {self.plan.settings.time} of training are spent"
        return "trials", ""

    def _job(self, trial: TrialRecord) -> TrialJob:
        return self.plan.job(trial.number, trial.architecture, trial.training, trial.rungs)


def _observation(trial: TrialRecord, is_settled: bool, is_timed: bool) -> Observation:
    """What the sampler is told of a trial; its seconds, which no other run repeats, only if it is to weigh them."""
    known = (tuple(trial.params.items()), trial.architecture.id)
    if not is_settled or trial.result is None:
        return Observation(*known, "running", None, trial.stored)
    curve = tuple(epoch.metrics[0][1] for epoch in trial.result.epochs if epoch.metrics)
    seconds = trial.result.seconds if is_timed else None
    screened = trial.result.screened.metrics[0][1] if trial.result.screened else None
    return Observation(*known, trial.state, trial.score, trial.stored, seconds, curve, screened)


def _evaluation_json(number: int, evaluation: Evaluation) -> dict[str, object]:
    return {
        "trial": number,
        "split": evaluation.split,
        "metrics": dict(evaluation.metrics),
        "interval": list(evaluation.interval),
        "rows": evaluation.n_rows,
    }


def _open_store(plan: Plan) -> tuple[Store, tuple[str, ...]]:
    """The run folder's study, made if there is none; warnings about what differs and may."""
    is_new = not (plan.run / DATABASE_FILE).exists()
    if not is_new:
        check(read_study(plan.run).identity, plan.identity)  # before anything is opened for writing
    store = Store.create(plan.run, plan.identity) if is_new else Store.open(plan.run)
    try:
        warnings = store.extend(plan.identity)
        for name, text in plan.files:
            atomic_write(plan.run / name, text)
        if CONTEXT_SUMMARY not in store.summary and plan.context:
            store.set_summary(CONTEXT_SUMMARY, dict(plan.context))
        if EARLIER_SUMMARY not in store.summary and plan.earlier:
            store.set_summary(EARLIER_SUMMARY, to_json(plan.earlier))
        return store, warnings
    except BaseException:
        store.close()
        raise


@contextmanager
def _log(plan: Plan) -> Iterator[logging.Logger]:
    """A logger of this run's own that writes to its `autopeft.log`."""
    log = logging.getLogger(f"autopeft.run.{plan.run.resolve()}".replace(".", "_"))
    log.setLevel(logging.DEBUG)
    log.propagate = False
    handler = logging.FileHandler(plan.run / LOG_FILE, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield log
    except AutopeftError as error:
        log.error("%s: %s", type(error).__name__, error)
        raise
    except Exception:
        log.exception("the search ended with an error")
        raise
    finally:
        log.removeHandler(handler)
        handler.close()
