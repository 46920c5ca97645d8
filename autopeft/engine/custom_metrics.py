"""Metrics of other packages, by entry points of the group `autopeft.metrics`.

    [project.entry-points."autopeft.metrics"]
    final_number = "my_package.metrics:final_number"

Such a metric is a function of predictions and references, one of each for a row, that gives a number: class numbers,
real numbers, 0/1 rows, tags by name, or texts, as the problem has them. It may have the attributes `is_minimised` (a
smaller number is better) and `reads` (`losses`: it gets the sums of the rows' losses and their numbers). Only what is
installed can be named: a recipe, which may be anybody's file, does not name code to run.
"""

import math
from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import numpy as np

from autopeft.errors import ConfigError, EnvironmentProblem

__all__ = ["GROUP", "by_rows", "installed_metrics", "load_metric"]

GROUP = "autopeft.metrics"

Function = Callable[[Any, Any], float]


def installed_metrics() -> dict[str, EntryPoint]:
    """Entry points by name."""
    return {point.name: point for point in entry_points(group=GROUP)}


def load_metric(name: str) -> Function:
    """The function of an installed metric.

    Raises:
        ConfigError: none of this name is installed.
        EnvironmentProblem: it cannot be imported, or is no function.
    """
    point = installed_metrics().get(name)
    if point is None:
        raise ConfigError([f"task.metric: no metric '{name}' is installed (entry points of the group {GROUP})"])
    try:
        function = point.load()
    except Exception as error:  # the code of another package
        raise EnvironmentProblem(f"metric {name} ({point.value}): cannot be imported: {error}") from error
    if not callable(function):
        raise EnvironmentProblem(f"metric {name} ({point.value}): is no function but {type(function).__name__}")
    return function


def by_rows(name: str, function: Function) -> Callable[[Any, Any, Any], Any]:
    """The function over rows that are drawn `weights (R, n)` times: rows are repeated as often."""
    return partial(_weighted, name, function)


def _weighted(name: str, function: Function, P: Any, Y: Any, weights: Any) -> Any:
    scores = []
    for row in weights:
        drawn = np.repeat(np.arange(len(row)), row.astype(int))
        score = function(_take(P, drawn), _take(Y, drawn))
        if isinstance(score, bool) or not isinstance(score, int | float | np.integer | np.floating):
            raise TypeError(f"metric {name} gave {type(score).__name__}, it must give a number")
        scores.append(float(score))
        if math.isnan(scores[-1]):
            raise ArithmeticError(f"metric {name} gave NaN")
    return np.asarray(scores)


def _take(values: Any, rows: Any) -> Any:
    return values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]
