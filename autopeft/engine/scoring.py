"""An adapted model on all rows of a split: its predictions and losses, scored by metrics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from autopeft.engine.batches import Batch, TokenisedSplit, evaluation_batches
from autopeft.engine.direction import sought
from autopeft.engine.metrics import Metric, find_metric, interval
from autopeft.engine.problem_names import GENERATED, METRICS_OF
from autopeft.engine.problems import Problem

__all__ = ["Judged", "judge", "metrics_of", "searched"]

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
        return float(self.losses.sum() / self.weights.sum().clamp(min=1))

    def scores(self, metrics: Sequence[Metric]) -> tuple[tuple[str, float], ...]:
        """These metrics, then the loss."""
        scores = {metric.name: metric.score(*self._read(metric)) for metric in metrics}
        return tuple({**scores, "loss": self.loss}.items())

    def interval(self, metric: Metric) -> tuple[float, float]:
        """95 % bootstrap interval of a metric over the rows."""
        return interval(metric, *self._read(metric), seed=INTERVAL_SEED)

    def _read(self, metric: Metric) -> tuple[Any, Any]:
        if metric.reads == "losses":
            return self.losses.numpy(), self.weights.numpy()
        return self.predicted, self.true

    def with_texts(self, texts: Sequence[str]) -> "Judged":
        """With the texts that the model made as its predictions."""
        return replace(self, predicted=texts)


def searched(metric: Metric, scores: tuple[tuple[str, float], ...]) -> tuple[tuple[str, float], ...]:
    """Scores of which the first is `metric`'s, with that as a search maximises it."""
    return (sought(*scores[0]), *scores) if metric.is_minimised else scores


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


def metrics_of(metric: str, problem: Problem) -> tuple[Metric, ...]:
    """The metric of the search, then the others that make sense for its problem and are cheap."""
    left_out = {*GENERATED, *(() if problem.n_outputs == 2 else ("f1",))}
    others = (name for name in METRICS_OF[problem.name] if name not in left_out)
    return tuple(find_metric(name, problem.name) for name in dict.fromkeys([metric, *others]))
