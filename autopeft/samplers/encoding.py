"""Points of a search space as vectors, for surrogates: what is alike for a model is near.

A vector has two parts. The settings, one column a dimension (a choice that has no order takes one column a value):
inactive ones are 0, and a module that is off is one of size 0, so that equal architectures have equal vectors. And the
amounts, which tell a surrogate what an architecture holds whatever the settings are called: of every kind of module how
much there is in each quarter of the depth and at which sites, which share of the budget it takes, and the share of all.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autopeft.samplers.proposal import Earlier
from autopeft.samplers.surrogate import Posterior
from autopeft.space.choices import FILL
from autopeft.space.modules import Scalar
from autopeft.space.parameters import Choices, Parameter, Params
from autopeft.space.search_space import Candidate, SearchSpace
from autopeft.space.units import Entry, Unit

Matrix = NDArray[np.float64]

_KEPT = 50_000
"""Units, and entries of units, whose part of the vector is remembered."""
_BINS = 4
"""Quarters of the depth."""
_ONE_HOT = 1 / math.sqrt(2)
"""Two different values of a choice without order are at distance 1."""


@dataclass(frozen=True)
class _Column:
    """Where a dimension is in the vector and how its values are written there."""

    start: int
    parameter: Parameter

    @property
    def width(self) -> int:
        domain = self.parameter.domain
        return len(domain.values) if isinstance(domain, Choices) and not _is_scale(domain) else 1

    @cached_property
    def table(self) -> dict[Scalar, tuple[int, float]]:
        """Value → (column, entry)."""
        domain = self.parameter.domain
        assert isinstance(domain, Choices)
        if not _is_scale(domain):
            return {value: (self.start + number, _ONE_HOT) for number, value in enumerate(domain.values)}
        return {value: (self.start, level) for value, level in zip(domain.values, _levels(domain.values), strict=True)}

    def write(self, value: Scalar, row: Matrix) -> None:
        domain = self.parameter.domain
        if isinstance(domain, Choices):
            column, level = self.table[value]
            row[column] = level
        else:
            low, high, x = domain.low, domain.high, float(value)
            row[self.start] = (
                math.log(x / low) / math.log(high / low) if domain.log else (x - low) / (high - low)
            )  # fmt: skip


@dataclass
class Encoding:
    """The vectors of a space; `encode` is deterministic and equal in every process."""

    space: SearchSpace
    studies: dict[Earlier, Posterior] = field(default_factory=dict)
    """What is believed of earlier studies, which are told in these vectors."""
    _units: dict[tuple[object, ...], Matrix] = field(default_factory=dict)
    _spreads: dict[tuple[object, ...], Matrix] = field(default_factory=dict)

    @cached_property
    def _columns(self) -> dict[str, _Column]:
        columns, start = {}, 0
        for parameter in self.space.parameters:
            columns[parameter.name] = column = _Column(start, parameter)
            start += column.width
        return columns

    @cached_property
    def n_settings(self) -> int:
        """Columns of the first part."""
        return sum(column.width for column in self._columns.values())

    @cached_property
    def _amounts(self) -> dict[tuple[str, str], int]:
        """(kind, what of it) → column of the second part."""
        names: dict[tuple[str, str], int] = {}
        for unit in self.space.structure.units:
            for entry in unit.entries:
                sites = sorted({role.split(".")[0] for _, roles in entry.role_map for role in roles})
                parts = [f"depth {number}" for number in range(_BINS)] + ["share"]
                for part in parts + (sites if len(sites) > 1 else []):
                    names.setdefault((entry.kind, part), len(names))
        return names

    @property
    def n_columns(self) -> int:
        return self.n_settings + len(self._amounts) + 1

    @cached_property
    def training_columns(self) -> tuple[int, ...]:
        """Columns of training settings, such as the learning rate."""
        columns = (column for column in self._columns.values() if column.parameter.is_training)
        return tuple(at for column in columns for at in range(column.start, column.start + column.width))

    def encode(self, candidates: Sequence[Candidate]) -> Matrix:
        """(n, d), all columns of the order of 1."""
        X = np.zeros((len(candidates), self.n_columns))
        for number, candidate in enumerate(candidates):
            active = dict(candidate.params)
            shared = tuple(map(active.get, self._placing))
            for unit in self.space.structure.in_force(active):
                X[number] += self._of_unit(unit, shared, active)
            for column in self._shared_columns:
                if (value := active.get(column.parameter.name)) is not None:
                    column.write(value, X[number])
            X[number, -1] = candidate.measured[0] / self._scale
        return X

    def _of_unit(self, unit: Unit, shared: tuple[object, ...], active: Params) -> Matrix:
        """(d,): what a unit adds, looked up by its settings and the layers that it has."""
        names = self._names[unit.name]
        key = (unit.name, shared, *map(active.get, names))
        found = self._units.get(key)
        if found is None:
            if len(self._units) > _KEPT:
                self._units.clear()
            found = self._units[key] = np.zeros(self.n_columns)
            for name in names:
                if (value := active.get(name)) is not None:
                    self._columns[name].write(value, found)
            for entry in unit.entries:
                self._add_amounts(unit, entry, active, found[self.n_settings :])
        return found

    @cached_property
    def _names(self) -> dict[str, tuple[str, ...]]:
        """Unit → the dimensions that are its own."""
        names = {}
        for unit in self.space.structure.units:
            own = [unit.tuned_name] if unit.tuned_name else []
            for entry in unit.entries:
                own += [parameter.name for parameter in entry.parameters]
                own += [entry.switch_name(at) for at in entry.mask]
                own += [entry.depth.name] if entry.depth is not None and entry.depth.is_local else []
            names[unit.name] = tuple(name for name in dict.fromkeys(own) if name in self._columns)
        return names

    @cached_property
    def _shared_columns(self) -> tuple[_Column, ...]:
        own = {name for names in self._names.values() for name in names}
        return tuple(column for name, column in self._columns.items() if name not in own)

    @cached_property
    def _placing(self) -> tuple[str, ...]:
        """The shared dimensions that say in which layers a unit is."""
        return tuple(c.parameter.name for c in self._shared_columns if not c.parameter.is_training)

    def _add_amounts(self, unit: Unit, entry: Entry, active: Params, amounts: Matrix) -> None:
        size = entry.value("size", active)
        if size == 0:
            return
        layout = self.space.layout
        positions = layout.positions(unit, entry, active)
        amounts += self._spread(entry, positions, entry.value("roles", active), self._level(entry, size))
        stored = layout.entry_at(unit, entry, layout.grouping(active), active).stored
        amounts[self._amounts[entry.kind, "share"]] += stored / self._scale

    def _spread(self, entry: Entry, positions: Sequence[tuple[str, int]], roles: Scalar, level: float) -> Matrix:
        """What an entry in these layers adds to the amounts, but its share."""
        key = (entry.index, positions, roles, level)
        found = self._spreads.get(key)
        if found is None:
            if len(self._spreads) > _KEPT:
                self._spreads.clear()
            found = self._spreads[key] = np.zeros(len(self._amounts) + 1)
            anatomy = self.space.anatomy
            for stack, index in positions:
                layer = anatomy.layer(stack, index)
                assert layer is not None
                part = self._bin(stack, index)
                found[self._amounts[entry.kind, f"depth {part}"]] += level / self._in_bin[stack, part]
                for site in {role.split(".")[0] for role in entry.roles_at(layer, roles)}:
                    if (column := self._amounts.get((entry.kind, site))) is not None:
                        found[column] += level / anatomy.n_layers
        return found

    def _bin(self, stack: str, index: int) -> int:
        return min(_BINS - 1, index * _BINS // self._lengths[stack])

    @cached_property
    def _in_bin(self) -> Counter[tuple[str, int]]:
        """(stack, quarter) → its layers, times the number of stacks."""
        layers = self.space.anatomy.layers
        counts = Counter((stack, self._bin(stack, index)) for stack, index, _ in layers)
        return Counter({key: n * len(self._lengths) for key, n in counts.items()})

    @cached_property
    def _scale(self) -> int:
        return self.space.budget or max(1, self.space.largest_candidate.measured[0])

    @cached_property
    def _lengths(self) -> dict[str, int]:
        return {stack.name: len(stack.layers) for stack in self.space.anatomy.stacks}

    @cached_property
    def _largest(self) -> dict[str, float]:
        """Kind → the largest of its sizes that are numbers."""
        largest: dict[str, float] = {}
        for unit in self.space.structure.units:
            for entry in unit.entries:
                for size in entry.sizes:
                    if not isinstance(size, str):
                        largest[entry.kind] = max(largest.get(entry.kind, 1.0), float(size))
        return largest

    def _level(self, entry: Entry, size: Scalar) -> float:
        """From 0 (off) to 1 (the largest); of sizes that follow from the budget, by their order."""
        if isinstance(size, str):
            return 1.0 if size == FILL else _levels(entry.sizes)[entry.sizes.index(size)]
        return math.log1p(float(size)) / math.log1p(self._largest[entry.kind])


def _is_scale(domain: Choices) -> bool:
    """Whether the values stand in a row: sizes, and switches."""
    return domain.ordered or set(domain.values) <= {False, True}


def _levels(values: Sequence[Scalar]) -> list[float]:
    """0 for off, the others by their logarithm up to 1; by their order where they are not numbers."""
    numbers = [float(value) for value in values if isinstance(value, bool | int | float)]
    if len(numbers) == len(values) and min(numbers) >= 0 and max(numbers) > 0:
        return [math.log1p(number) / math.log1p(max(numbers)) for number in numbers]
    return [number / max(1, len(values) - 1) for number in range(len(values))]
