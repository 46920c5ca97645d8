"""Asynchronous successive halving: a trial that is not among the best at a rung is stopped there.

A rung is an epoch. Which score a trial has to reach there is known when it begins, from the trials before it: so no
worker waits for another, and how a trial ends depends on outcomes alone. The schedule of the learning rate is that of
all epochs, so that scores at a rung compare. Source: Li et al. 2020, A System for Massively Parallel Hyperparameter
Tuning (ASHA), as a rule that stops rather than one that promotes, since trials are not paused.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autopeft.engine.trial import Rungs
from autopeft.study.record import TrialRecord

ENOUGH = 3
"""Trials that a rung must have seen before one is stopped there: the best of fewer says little."""


@dataclass(frozen=True)
class Halving:
    """Of the trials that reach a rung, the best 1/`eta` go on."""

    rungs: tuple[int, ...]
    """Epochs, ascending, the last one of a trial not among them."""
    eta: int

    @classmethod
    def over(cls, epochs: int, first_rung: float, eta: int) -> "Halving":
        """Rungs of a trial of so many epochs: the first after that share of them, rounded up, each next `eta` times as
        late. None where a trial has one epoch.
        """
        rungs = []
        rung = math.ceil(first_rung * epochs - 1e-9)  # 0.07 * 100 is a little above 7
        while rung < epochs:
            rungs.append(rung)
            rung *= eta
        return cls(tuple(rungs), eta)

    def thresholds(self, settled: Sequence[TrialRecord], stored: int | None = None) -> Rungs:
        """What the next trial has to reach, rung by rung, after the `settled` ones.

        `stored`: where a Pareto front is searched, the parameters of the next trial; it is then compared with the
        trials that have at most as many, which alone could keep it from the front.
        """
        compared = [trial for trial in settled if stored is None or trial.stored <= stored]
        found = []
        for rung in self.rungs:
            reached = sorted(
                (score for trial in compared if (score := _score_at(trial, rung)) is not None), reverse=True
            )
            if len(reached) >= ENOUGH:
                n_best = math.ceil((len(reached) + 1) / self.eta)  # of those that came and the next one
                found.append((rung, reached[n_best - 1]))
        return tuple(found)


def _score_at(trial: TrialRecord, rung: int) -> float | None:
    """The best score up to that epoch; None where the trial did not come so far. One that patience ended, did."""
    if trial.result is None or trial.state not in ("complete", "pruned"):
        return None
    epochs = trial.result.epochs
    if trial.state == "pruned" and epochs[-1].epoch < rung:
        return None
    return max(epoch.metrics[0][1] for epoch in epochs if epoch.epoch <= rung)
