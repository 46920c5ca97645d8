"""The samplers by name, with a line each; kept apart so that lists need not import Optuna."""

from collections.abc import Mapping
from types import MappingProxyType

TITLES: Mapping[str, str] = MappingProxyType(
    {
        "random": "feasible architectures at random: the baseline",
        "tpe": "tree-structured Parzen estimator of Optuna, repaired to the budget (the default)",
    }
)
