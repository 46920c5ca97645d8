"""How a search space writes what may be chosen: values, lists, ranges, sizes, shares of the budget, depths.

Every setting is a *choice*: a value fixes it, a list has it searched, a mapping stands for many values.
"""

from typing import Self

from pydantic import Field, field_validator, model_validator

from autopeft.config import Frozen
from autopeft.errors import did_you_mean
from autopeft.space.modules import Scalar

FILL = "fill"
MAX_SIZE = 1_000_000
_MAX_SIZES = 4_096
"""Sizes that one range may stand for."""


class Range(Frozen):
    """All numbers from `low` to `high`."""

    low: float
    high: float
    log: bool = False
    """Even on a logarithmic scale."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.high:
            raise ValueError(f"low <= high must hold, got low={self.low:g}, high={self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low > 0 must hold on a log scale, got low={self.low:g}")
        return self


class Halvings(Frozen):
    """Sizes floor(H / 2^k), k = 0 … `halvings`, of a model of width H (AutoPEFT's sizes)."""

    halvings: int = Field(ge=0, le=20)
    """The largest k; with H = 768, 10 gives 768, 384, 192, 96, 48, 24, 12, 6, 3, 1, 0."""


class SizeRange(Frozen):
    """Sizes from `low` to `high`: every one, every `step`-th, or every power (low, low·power, low·power², …)."""

    low: int = Field(ge=1, le=MAX_SIZE)
    high: int = Field(ge=1, le=MAX_SIZE)
    step: int = Field(default=1, ge=1)
    power: int | None = Field(default=None, ge=2, le=1_024)
    """`{low: 1, high: 64, power: 2}` is 1, 2, 4, 8, 16, 32, 64."""
    off: bool = False
    """0 is allowed too."""

    @model_validator(mode="after")
    def _countable(self) -> Self:
        if not self.low <= self.high:
            raise ValueError(f"low <= high must hold, got low={self.low}, high={self.high}")
        if self.power is not None and self.step != 1:
            raise ValueError("give step or power, not both")
        if self.power is None and (self.high - self.low) // self.step >= _MAX_SIZES:
            raise ValueError(f"over {_MAX_SIZES} sizes. Give a larger step, or a power")
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """All of them, ascending."""
        found = list(range(self.low, self.high + 1, self.step)) if self.power is None else [self.low]
        while self.power is not None and found[-1] * self.power <= self.high:
            found.append(found[-1] * self.power)
        return (0, *found) if self.off else tuple(found)


class Shares(Frozen):
    """Sizes as shares of the budget: the largest size whose cost, over all its layers, is at most that share."""

    share: float | tuple[float, ...]
    """Above 0, at most 1; 0.25 is written 25% among the parameters of a trial. At least size 1 is placed."""
    off: bool = False
    """0 is allowed too."""

    @field_validator("share")
    @classmethod
    def _fractions(cls, value: float | tuple[float, ...]) -> float | tuple[float, ...]:
        for share in as_tuple(value):
            if not 0 < float(share) <= 1:
                raise ValueError(f"shares must be above 0 and at most 1, got {share}")
        if not as_tuple(value):
            raise ValueError("must name at least one share")
        return value

    @property
    def sizes(self) -> tuple[Scalar, ...]:
        """All of them as words, ascending."""
        words = [share_word(float(share)) for share in sorted(set(as_tuple(self.share)), key=float)]
        return (0, *words) if self.off else tuple(words)


class Depth(Frozen):
    """How many layers of a stack a module is in, counted from its beginning or its end."""

    first: int | tuple[int, ...] | None = None
    """The first k layers (NOAH)."""
    last: int | tuple[int, ...] | None = None
    """The last k layers: all from the first adapted one on."""

    @model_validator(mode="after")
    def _one_side(self) -> Self:
        if (self.first is None) == (self.last is None):
            raise ValueError("give either first or last")
        if not self.values or any(not 1 <= k <= 10_000 for k in self.values):
            raise ValueError("depths must be from 1 to 10000")
        return self

    @property
    def values(self) -> tuple[int, ...]:
        given = self.first if self.first is not None else self.last
        return given if isinstance(given, tuple) else (given or 0,)


class GroupLists(Frozen):
    """Layer groups written out; a layer that is in none holds no module that is set per group."""

    lists: tuple[tuple[int, ...], ...] = Field(min_length=1, max_length=64)
    """The layers of each group, from 0."""

    @field_validator("lists")
    @classmethod
    def _disjoint(cls, value: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        layers = [layer for group in value for layer in group]
        if any(not group for group in value) or any(not 0 <= layer < 10_000 for layer in layers):
            raise ValueError("every group must name layers, from 0 on")
        if twice := sorted({layer for layer in layers if layers.count(layer) > 1}):
            raise ValueError(f"layer {twice[0]} stands in two groups")
        return value


def as_tuple(choice: Scalar | tuple[Scalar, ...]) -> tuple[Scalar, ...]:
    """The values of a choice that is one value or several."""
    return choice if isinstance(choice, tuple) else (choice,)


def share_word(share: float) -> str:
    """0.25 → `25%`."""
    return f"{100 * share:.10g}%"


def share_of(size: Scalar) -> float | None:
    """`25%` → 0.25; None for a size that is a number or `fill`."""
    return float(size[:-1]) / 100 if isinstance(size, str) and size.endswith("%") else None


def size_order(size: Scalar) -> float:
    """Sizes in the order of what they cost: numbers, then shares, then `fill`."""
    if size == FILL:
        return float("inf")
    share = share_of(size)
    return float(size) if share is None else MAX_SIZE + share


def expand_roles(text: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """`q,v` → (`attn.q`, `attn.v`); `all` → every allowed role.

    Raises:
        ValueError: a name that is none of the allowed roles, written in full or by its last word.
    """
    short = {role.rsplit(".", 1)[-1]: role for role in allowed}
    if text.strip() == "all":
        return allowed
    roles = []
    for word in (part.strip() for part in text.split(",")):
        role = word if word in allowed else short.get(word)
        if role is None:
            raise ValueError(f"unknown site '{word}'.{did_you_mean(word, short)} Known: all, {', '.join(short)}")
        roles.append(role)
    return tuple(sorted(set(roles), key=allowed.index))
