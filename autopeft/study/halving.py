"""Asynchronous successive halving: a trial that is not among the best at a rung is stopped there.

A rung is an epoch. How a trial has to stand there is known when it begins, from the trials before it: so no worker
waits for another, and how a trial ends depends on outcomes alone. The schedule of the learning rate is that of all
epochs, so that trials at a rung compare. The first rung may be a training of its own on a part of the rows instead.
Source: Li et al. 2020, A System for Massively Parallel Hyperparameter Tuning (ASHA), as a rule that stops rather than
one that promotes, since trials are not paused.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from autopeft.engine.rungs import SCREENING, Reached, Rung, Rungs
from autopeft.study.record import TrialRecord

ENOUGH = 3
"""Trials that a rung must have seen before one is stopped there: the best of fewer says little."""

_IMAGINED = 100


@dataclass(frozen=True)
class Halving:
    """Of the trials that reach a rung, the best 1/`eta` go on."""

    rungs: tuple[int, ...]
    """Epochs, ascending, the last one of a trial not among them; the first may be `SCREENING`."""
    eta: int
    screen: float | None = None
    """Share of the train rows on which trials are trained before they begin."""

    @classmethod
    def over(cls, epochs: int, first_rung: float, eta: int, *, on_rows: bool = False) -> "Halving":
        """Rungs of a trial of so many epochs: the first after that share of them, rounded up, each next twice as late.

        With `on_rows` the first is a training on that share of the rows. There is none where a trial has one epoch,
        unless it is `on_rows`.
        """
        rungs = []
        rung = math.ceil(first_rung * epochs - 1e-9)  # 0.07 * 100 is a little above 7
        while rung < epochs:
            rungs.append(rung)
            rung *= 2
        if not on_rows:
            return cls(tuple(rungs), eta)
        return cls((SCREENING, *rungs[1:]), eta, first_rung)

    def thresholds(self, settled: Sequence[TrialRecord], stored: int | None = None) -> Rungs:
        """What the next trial has to reach, rung by rung, after the `settled` ones.

        `stored`: where a Pareto front is searched, the parameters of the next trial; it is then compared with the
        trials that have at most as many, which alone could keep it from the front.
        """
        compared = [trial for trial in settled if stored is None or trial.stored <= stored]
        found = []
        for rung in self.rungs:
            reached = [came for trial in compared if (came := _reached(trial, rung)) is not None]
            if len(reached) >= ENOUGH:
                weight = _loss_weight(reached)
                standings = sorted((came.standing(weight) for came in reached), reverse=True)
                found.append(Rung(rung, standings[self._n_best(len(reached) + 1) - 1], weight))
        return tuple(found)

    def expected_cost(self, n_trials: int, n_spared: int, epochs: int) -> float:
        """Share of the training of `n_trials` that is done, on average; screening can make it more than all.

        For trials whose standing at a rung says nothing of the others', one after the other; the first `n_spared` are
        not stopped. Ties make it more.
        """
        rng = random.Random(0)
        done = 0.0
        for _ in range(_IMAGINED):
            came: dict[int, list[float]] = {rung: [] for rung in self.rungs}
            for number in range(n_trials):
                trained = 1.0
                for rung in self.rungs:
                    standing, others = rng.random(), came[rung]
                    least = sorted(others, reverse=True)[self._n_best(len(others) + 1) - 1 :][:1]
                    others.append(standing)
                    if len(others) > ENOUGH and number >= n_spared and standing < least[0]:
                        trained = rung / epochs
                        break
                done += trained + (self.screen or 0.0)
        return done / _IMAGINED / n_trials

    def _n_best(self, n: int) -> int:
        """How many of `n` go on: the nearest whole number to their part, at least one."""
        return max(1, (2 * n + self.eta) // (2 * self.eta))


def _reached(trial: TrialRecord, rung: int) -> Reached | None:
    """How far the trial had come at the rung; None where it did not come there. One that patience ended, did."""
    if trial.result is None or trial.state not in ("complete", "pruned"):
        return None
    if rung == SCREENING:
        screened = trial.result.screened
        return None if screened is None else Reached.by([screened.metrics])
    epochs = trial.result.epochs
    if not epochs or (trial.state == "pruned" and epochs[-1].epoch < rung):
        return None
    return Reached.by([epoch.metrics for epoch in epochs if epoch.epoch <= rung])


def _loss_weight(reached: Sequence[Reached]) -> float:
    """What makes losses differ as much as scores do; 1 where all scores are the same, 0 where losses say nothing."""
    losses = [came.loss for came in reached if came.loss is not None]
    if len(losses) < len(reached) or not (of_losses := _spread(losses)):
        return 0.0
    return _spread([came.score for came in reached]) / of_losses or 1.0


def _spread(numbers: Sequence[float]) -> float:
    """Mean distance from the median: a loss that diverged counts, but not by its square."""
    middle = sorted(numbers)[len(numbers) // 2]
    return sum(abs(number - middle) for number in numbers) / len(numbers)
