"""How much a point promises: expected improvement in logarithms, which stay informative where it is tiny.

Sources: Ament et al. 2023 (LogEI, BoTorch's); Emmerich et al. 2006 (expected improvement of the dominated volume).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def log_expected_improvement(mean: Vector, deviation: Vector, best: Vector | float) -> Vector:
    """(n,) logarithms of the expected improvement over `best`, of normal beliefs."""
    import torch
    from botorch.acquisition.analytic import _log_ei_helper

    standardised = torch.from_numpy(np.asarray((mean - best) / deviation))
    helped: Vector = _log_ei_helper(standardised).numpy()
    return helped + np.log(deviation)


@dataclass(frozen=True)
class Staircase:
    """The best mean within each number of parameters: what a new point can improve on.

    The number of parameters is known before training, so that the expected improvement of the dominated volume is
    exact: a sum over the steps of (expected improvement on the step) times (length of the step that the point can
    reach), lengths in logarithms of parameters.
    """

    edges: Vector
    """(k + 1,) logarithms of parameters: where the steps begin, and the budget where the last one ends."""
    heights: Vector
    """(k,) best means, ascending; the first is the reference."""

    @classmethod
    def of(cls, stored: Vector, mean: Vector, smallest: int, budget: int) -> "Staircase":
        """From trained points; `smallest` is the least that any architecture stores."""
        reference = float(mean.min())
        edges, heights = [np.log(max(1, smallest))], [reference]
        for at in np.lexsort((-mean, stored)):
            if mean[at] > heights[-1]:
                where = float(np.log(max(1, stored[at])))
                if where <= edges[-1]:
                    heights[-1] = float(mean[at])
                else:
                    edges.append(where)
                    heights.append(float(mean[at]))
        end = max(float(np.log(budget)), edges[-1]) + 0.05  # a point that spends the budget in full has its share too
        return cls(np.array([*edges, end]), np.array(heights))

    def log_expected_improvement(self, mean: Vector, deviation: Vector, stored: Vector) -> Vector:
        """(n,) logarithms of the expected gain in dominated volume."""
        costs = np.log(np.maximum(1, stored))[:, None]
        lengths = np.maximum(0, self.edges[1:] - np.maximum(self.edges[:-1], costs))  # (n, k)
        gains = log_expected_improvement(mean[:, None], deviation[:, None], self.heights[None, :])
        with np.errstate(divide="ignore"):
            total: Vector = np.logaddexp.reduce(gains + np.log(lengths), axis=1)
        return total
