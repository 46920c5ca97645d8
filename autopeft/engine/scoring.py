"""An adapted model on all rows of a split: its predictions and losses, scored by metrics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from autopeft.engine.batches import Batch, TokenisedSplit, evaluation_batches
from autopeft.engine.direction import sought
from autopeft.engine.metrics import METRICS, Metric, interval
from autopeft.engine.problem_names import GENERATED, METRICS_OF
from autopeft.engine.problems import Problem

__all__ = ["Judged", "judge", "metric_names", "searched"]

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
        scores = {name: METRICS[name].score(*self._read(METRICS[name])) for name in names}
        return tuple({**scores, "loss": self.loss}.items())

    def interval(self, name: str) -> tuple[float, float]:
        """95 % bootstrap interval of a metric over the rows."""
        return interval(METRICS[name], *self._read(METRICS[name]), seed=INTERVAL_SEED)

    def _read(self, metric: Metric) -> tuple[Any, Any]:
        if metric.reads == "losses":
            return self.losses.numpy(), self.weights.numpy()
        return self.predicted, self.true

    def with_texts(self, texts: Sequence[str]) -> "Judged":
        """With the texts that the model made as its predictions."""
        return replace(self, predicted=texts)


def searched(scores: tuple[tuple[str, float], ...]) -> tuple[tuple[str, float], ...]:
    """Scores with the first as a search maximises it."""
    name, value = scores[0]
    return (sought(name, value), *scores) if METRICS[name].is_minimised else scores


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
    """The metric of the search, then the others that make sense for its problem and are cheap."""
    left_out = {*GENERATED, *(() if problem.n_outputs == 2 else ("f1",))}
    others = (name for name in METRICS_OF[problem.name] if name not in left_out)
    return tuple(dict.fromkeys([metric, *others]))
