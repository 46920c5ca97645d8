"""What a trial has to reach on the way, and how far it has come: by its score and its loss together.

Early scores are coarse: until outputs cross, all trials have that of the majority class, while their losses differ.
Late losses rise again where a model grows too sure of itself, while scores do not. So both count, each by its best.
"""

from collections.abc import Sequence
from typing import NamedTuple

SCREENING = 0
"""The epoch of the rung before the first one: a training of its own on a part of the rows."""

Metrics = tuple[tuple[str, float], ...]
"""Of one epoch: the score first, the loss under its name."""


class Reached(NamedTuple):
    """How far a trial has come."""

    score: float
    """The best so far."""
    loss: float | None
    """The lowest so far on the validation split; None where it is not told."""

    @classmethod
    def by(cls, epochs: Sequence[Metrics]) -> "Reached":
        """At the end of the last of `epochs`, of which there is one at least."""
        losses = [dict(metrics)["loss"] for metrics in epochs if "loss" in dict(metrics)]
        return cls(max(metrics[0][1] for metrics in epochs), min(losses, default=None))

    def standing(self, loss_weight: float) -> float:
        """In units of the score."""
        return self.score if self.loss is None else self.score - loss_weight * self.loss


class Rung(NamedTuple):
    """A trial that stands lower at the end of the epoch is stopped there."""

    epoch: int
    """From 1; or `SCREENING`."""
    least: float
    """The standing that is needed."""
    loss_weight: float = 0.0
    """Score that a loss lower by 1 is worth."""

    def is_missed(self, epochs: Sequence[Metrics]) -> bool:
        return Reached.by(epochs).standing(self.loss_weight) < self.least


Rungs = tuple[Rung, ...]
