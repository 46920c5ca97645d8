"""What is seen of a search while it runs: a live table on a terminal, one line a trial in a pipe."""

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from autopeft.cli.text import big, duration, share
from autopeft.cli.trial_text import pruned_at, score_text, scored, summary
from autopeft.engine.direction import told
from autopeft.engine.trial import EpochRecord
from autopeft.study.plan import Plan
from autopeft.study.progress import (
    Began,
    EpochEnded,
    Evaluating,
    SearchEvent,
    Stopping,
    TrialBegan,
    TrialEnded,
    WorkerReady,
)
from autopeft.study.record import TrialRecord, best_trial, n_tried


class Progress:
    """The state of a search as its events tell it; both views draw from it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.plan: Plan | None = None
        self.trials: dict[int, TrialRecord] = {}
        self.epochs: dict[int, EpochRecord] = {}
        """The last epoch of each running trial."""
        self.began: dict[int, float] = {}
        """When each running trial began, by `clock`."""

    def take(self, event: SearchEvent) -> None:
        match event:
            case Began(plan=plan, trials=trials):
                self.plan = plan
                self.trials = {trial.number: trial for trial in trials}
            case TrialBegan(trial=trial):
                self.trials[trial.number] = trial
                self.began[trial.number] = self.clock()
            case EpochEnded(number=number, record=record):
                self.epochs[number] = record
            case TrialEnded(trial=trial):
                self.trials[trial.number] = trial
                self.began.pop(trial.number, None)
                self.epochs.pop(trial.number, None)

    @property
    def complete(self) -> list[TrialRecord]:
        return [trial for trial in self.trials.values() if trial.state == "complete"]

    @property
    def n_tried(self) -> int:
        """Trials that count towards the total: complete or pruned."""
        return n_tried(self.trials.values())

    @property
    def best(self) -> TrialRecord | None:
        return best_trial(self.trials.values())

    @property
    def seconds_left(self) -> float | None:
        """Until the last trial ends, by the mean of the finished ones; None before the first."""
        seconds = [trial.result.seconds for trial in self.trials.values() if trial.result]
        if self.plan is None or not seconds:
            return None
        mean = sum(seconds) / max(1, self.n_tried)  # failed and rejected trials take time too
        missing = max(0, self.plan.n_trials - self.n_tried)
        workers = self.plan.n_workers * self.plan.n_pack
        under_way = sum(min(mean, self.clock() - began) for began in self.began.values())
        left = max(0.0, missing * mean - under_way) / workers
        if self.plan.seconds is not None:
            left = min(left, max(0.0, self.plan.seconds - sum(seconds) / workers))
        return left

    @property
    def eta(self) -> str:
        return "?" if self.seconds_left is None else duration(self.seconds_left)


def opening(event: Began) -> list[str]:
    """What is said before the first trial: run folder, state, totals, and what will be searched."""
    plan, progress = event.plan, Progress()
    progress.take(event)
    n_pruned = progress.n_tried - len(progress.complete)
    pruned = f" and {n_pruned} pruned" if n_pruned else ""
    state = f"resumed with {len(progress.complete)} complete{pruned}" if event.is_resumed else "new"
    known = progress.seconds_left is not None
    left = f", about {progress.eta} left" if known else ", time left after the first trial"
    limit = f", at most {plan.settings.time}" if plan.settings.time else ""
    anatomy = plan.space.anatomy
    objective = ", score and stored parameters" if plan.settings.objective == "pareto" else ""
    lines = [f"run folder {plan.run} ({state}): {plan.n_trials} trials{limit}{left}"]
    lines += [f"{name:<8} {value}" for name, value in plan.facts]
    lines += [
        f"{'space':<8} {plan.settings.space}: {big(plan.space.cardinality)} architectures, "
        f"{len(plan.space.parameters)} dimensions; sampler {plan.settings.sampler}{objective}",
        f"{'budget':<8} {plan.budget.text} = {plan.budget_parameters:,} stored parameters of "
        f"{anatomy.n_parameters:,}, task head apart",
    ]
    return lines + [f"note     {note}" for note in (*plan.notes, *plan.space.notes, *event.warnings)]


class LineView:
    """One line a trial, for pipes and logs."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress()

    def __enter__(self) -> "LineView":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def __call__(self, event: SearchEvent) -> None:
        self.progress.take(event)
        match event:
            case Began():
                for line in opening(event):
                    self._say(line)
            case WorkerReady(seconds=seconds, facts=facts):
                self._say(f"worker   ready after {seconds:.1f} s: " + ", ".join(f"{n} {v}" for n, v in facts))
            case TrialEnded(trial=trial):
                self._say(self._line(trial))
            case Stopping():
                self._say(stopping(event))
            case Evaluating(trial=trial):
                self._say(f"scoring trial {trial.number} on the held-out split")

    def _line(self, trial: TrialRecord) -> str:
        assert self.progress.plan is not None and trial.result is not None
        done = f"trial {trial.number:>3}  {self.progress.n_tried}/{self.progress.plan.n_trials}"
        if trial.state == "pruned":
            return (
                f"{done}  {pruned_at(trial)}  {trial.stored:>9,} parameters  {trial.result.seconds:5.1f} s  "
                f"ETA {self.progress.eta:<7} {summary(trial)}"
            )
        if trial.score is None:
            return f"{done}  failed ({trial.result.cause}): {trial.result.error}"
        best = self.progress.best
        mark = " *" if best is not None and best.number == trial.number else "  "
        return (
            f"{done}  {scored(trial)}{mark} {trial.stored:>9,} parameters  "
            f"{trial.result.seconds:5.1f} s  ETA {self.progress.eta:<7} {summary(trial)}"
        )

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


_OTHER_COLUMNS = 62
"""Characters that the columns beside the architecture take at most."""


class LiveView:
    """A table that is redrawn in place: running trials, the five best, budget and time left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress()
        self.note = ""
        self.live = Live(console=console, get_renderable=self._draw, refresh_per_second=4, transient=True)

    def __enter__(self) -> "LiveView":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def __call__(self, event: SearchEvent) -> None:
        self.progress.take(event)
        match event:
            case Began():
                for line in opening(event):
                    self.console.print(line, markup=False, highlight=False, soft_wrap=True)
                self.note = "starting the workers: loading model and data"
                self.live.start()
            case WorkerReady():
                self.note = ""
            case Stopping():
                self.note = stopping(event)
            case Evaluating(trial=trial):
                self.note = f"scoring trial {trial.number} on the held-out split"
            case TrialEnded(trial=trial) if trial.result is not None and trial.state == "failed":
                self.console.print(
                    f"trial {trial.number} failed ({trial.result.cause}): {trial.result.error}",
                    markup=False,
                    style="red",
                )

    def _draw(self) -> Group | Text:
        progress, plan = self.progress, self.progress.plan
        if plan is None:
            return Text("")
        rows = Table(box=None, pad_edge=False, header_style="bold")
        for name, right in (("trial", True), ("score", True), ("parameters", True), ("of budget", True)):
            rows.add_column(name, justify="right" if right else "left", no_wrap=True)
        rows.add_column("seconds", justify="right", no_wrap=True)
        rows.add_column("architecture", no_wrap=True)
        ranked = sorted(progress.complete, key=lambda t: (-(t.score or 0.0), t.stored))[:5]
        for trial in ranked:
            seconds = f"{trial.result.seconds:.1f}" if trial.result else ""
            rows.add_row(*self._cells(trial, score_text(trial), seconds))
        for number, began in progress.began.items():
            record = progress.epochs.get(number)
            state = f"epoch {record.epoch}: {told(*record.metrics[0])[1]:.3f}" if record else "running"
            rows.add_row(*self._cells(progress.trials[number], state, f"{progress.clock() - began:.0f}"), style="cyan")
        failed = sum(trial.state == "failed" for trial in progress.trials.values())
        pruned = progress.n_tried - len(progress.complete)
        line = (
            f"{progress.n_tried}/{plan.n_trials} trials"
            + (f", {pruned} pruned" if pruned else "")
            + (f", {failed} failed" if failed else "")
            + f" | budget {plan.budget_parameters:,} ({plan.budget.text}) | ETA {progress.eta}"
        )
        return Group(rows, Text(line, style="bold"), Text(self.note, style="yellow"))

    def _cells(self, trial: TrialRecord, score: str, seconds: str) -> tuple[str, ...]:
        assert self.progress.plan is not None
        of_budget = share(trial.stored, self.progress.plan.budget_parameters)
        room = max(20, self.console.width - _OTHER_COLUMNS)
        text = summary(trial)
        text = text if len(text) <= room else text[: room - 1] + "…"
        return str(trial.number), score, f"{trial.stored:,}", of_budget, seconds, text


def stopping(event: Stopping) -> str:
    if event.signal == "SIGTERM":
        return "stopping"
    return f"Ctrl-C: finishing what runs, at most {event.grace:.0f} s (Ctrl-C again stops now)"
