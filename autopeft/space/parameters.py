"""The dimensions of a bound search space: named parameters with a domain and conditions on other parameters."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from autopeft.space.modules import Scalar

Params = Mapping[str, Scalar]
"""What a sampler returns: parameter name → value; only the active parameters matter."""


@dataclass(frozen=True)
class Choices:
    """One of several values. `ordered` ones (sizes) have a meaningful next smaller and next larger."""

    values: tuple[Scalar, ...]
    ordered: bool = False

    def sample(self, rng: np.random.Generator) -> Scalar:
        return self.values[int(rng.integers(len(self.values)))]

    def contains(self, value: Scalar) -> bool:
        is_bool = isinstance(value, bool)
        for v in self.values:  # noqa: SIM110 - a loop, not `any`, as in `Parameter.is_active`
            if v == value and isinstance(v, bool) == is_bool:
                return True
        return False

    def near(self, value: Scalar) -> Iterator[Scalar]:
        """The values next to `value` where they are ordered, else all others."""
        at = self.values.index(value)
        if self.ordered:
            yield from (self.values[i] for i in (at - 1, at + 1) if 0 <= i < len(self.values))
        else:
            yield from (v for i, v in enumerate(self.values) if i != at)


@dataclass(frozen=True)
class Interval:
    """A number from `low` to `high`, even on a logarithmic scale if `log`."""

    low: float
    high: float
    log: bool = False

    def sample(self, rng: np.random.Generator) -> float:
        if self.log:
            return self.round(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return self.round(float(rng.uniform(self.low, self.high)))

    def contains(self, value: Scalar) -> bool:
        return isinstance(value, float) and self.low <= value <= self.high

    def near(self, value: Scalar) -> Iterator[float]:
        """A fifth of the interval up and down."""
        v = float(value)
        for step in (-0.2, 0.2):
            other = v * (self.high / self.low) ** step if self.log else v + step * (self.high - self.low)
            if self.round(other) != v:
                yield self.round(other)

    def round(self, value: float) -> float:
        """Within the bounds, to four digits."""
        return min(max(float(f"{value:.4g}"), self.low), self.high)  # four digits: readable, and equal after storage


Domain = Choices | Interval


@dataclass(frozen=True)
class Parameter:
    """One dimension."""

    name: str
    domain: Domain
    conditions: tuple[tuple[str, frozenset[Scalar]], ...] = ()
    """(parent, values): active only while every parent is active and has one of these values."""
    is_training: bool = False
    """A training setting, no part of the architecture."""
    setting: str = ""
    """Of a training setting: its name in the recipe's `training`, where that is another one."""
    any_of: tuple[tuple[str, frozenset[Scalar]], ...] = ()
    """Active only while one of these holds too, where there are any."""

    def is_active(self, params: Params) -> bool:
        """Whether it matters, given the values of its parents (absent parents are inactive)."""
        for parent, values in self.conditions:  # a loop, not `all`: this is asked hundreds of times for a point
            if parent not in params or params[parent] not in values:
                return False
        return not self.any_of or any(params.get(parent) in values for parent, values in self.any_of)


def first_on(parameter: Parameter) -> Scalar:
    """The first value that is not `off`, the middle of an interval."""
    if isinstance(parameter.domain, Choices):
        return next((v for v in parameter.domain.values if v not in (0, False)), parameter.domain.values[0])
    return middle(parameter)


def nearest(parameter: Parameter, value: Scalar | None) -> Scalar:
    """The value of the parameter's domain that is nearest to a given one; the middle where there is none such."""
    domain = parameter.domain
    if value is None or isinstance(value, str | bool) or not isinstance(domain, Interval):
        return value if value is not None and domain.contains(value) else middle(parameter)
    return domain.round(float(value))


def middle(parameter: Parameter) -> Scalar:
    """The middle value of a parameter's domain."""
    domain = parameter.domain
    if isinstance(domain, Choices):
        return domain.values[len(domain.values) // 2]
    value = (domain.low * domain.high) ** 0.5 if domain.log else (domain.low + domain.high) / 2
    return float(f"{value:.4g}")
