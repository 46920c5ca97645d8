"""An adapted model on all rows of a split: its predictions and losses, scored by metrics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autopeft.engine.batches import Batch, TokenisedSplit, evaluation_batches
from autopeft.engine.metrics import METRICS, interval
from autopeft.engine.problem_names import METRICS_OF
from autopeft.engine.problems import Problem

__all__ = ["Judged", "judge", "metric_names"]

INTERVAL_SEED = 0


@dataclass(frozen=True)
class Judged:
    """What a model said of `n` rows and what is true, in the order of the rows."""

    predicted: Any
    true: Any
    losses: Tensor
    """Sums of each row's losses `(n,)`."""
    weights: Tensor
    """How many losses those are `(n,)`."""

    @property
    def loss(self) -> float:
        """The mean over all losses."""
        return float(self.losses.sum() / self.weights.sum())

    def scores(self, names: Sequence[str]) -> tuple[tuple[str, float], ...]:
        """These metrics, then the loss."""
        return (*((name, METRICS[name].score(self.predicted, self.true)) for name in names), ("loss", self.loss))

    def interval(self, name: str) -> tuple[float, float]:
        """95 % bootstrap interval of a metric over the rows."""
        return interval(METRICS[name], self.predicted, self.true, seed=INTERVAL_SEED)


def judge(problem: Problem, split: TokenisedSplit, batch_size: int, forward: Callable[[Batch], Tensor]) -> Judged:
    """Run `forward`, which gives a batch's outputs, over all rows; batches have no influence on the results."""
    losses, weights = torch.zeros(2, len(split), dtype=torch.float64)
    predicted: list[Any] = [None] * len(split)
    with torch.inference_mode():
        for batch in evaluation_batches(split, batch_size):
            outputs = forward(batch)
            labels = batch.labels.to(outputs.device)
            losses[batch.rows] = problem.losses(outputs, labels).cpu().double()
            weights[batch.rows] = problem.weights(labels).cpu().double()
            for row, value in zip(batch.rows.tolist(), problem.predictions(outputs, labels), strict=True):
                predicted[row] = value
    return Judged(*problem.compared(predicted, split), losses, weights)


def metric_names(metric: str, problem: Problem) -> tuple[str, ...]:
    """The metric of the search, then the others that make sense for its problem."""
    others = (name for name in METRICS_OF[problem.name] if name != "f1" or problem.n_outputs == 2)
    return tuple(dict.fromkeys([metric, *others]))
