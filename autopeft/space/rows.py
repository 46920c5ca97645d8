"""A space cut into independent tables: for every state of what is shared, the rows of each entry with their costs.

A state fixes the grouping, the depths that several entries share, and how many layers of each sort the shared mask
leaves on. Given a state, entries differ independently (within a unit, but for exclusions), so that points are counted
and drawn by table instead of one by one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, product
from math import comb, prod

from autopeft.errors import UsageError
from autopeft.space.layout import NOTHING, Counts, Layout
from autopeft.space.modules import WITHOUT_GATE, Scalar
from autopeft.space.parameters import Choices, Parameter, Params
from autopeft.space.units import Entry, Position, Structure, Unit, matches

MAX_ROWS = 200_000
"""Rows of one entry up to which a space is tabulated."""


@dataclass(frozen=True)
class Row:
    """One choice of an entry's settings, as far as parameters are counted by them."""

    params: tuple[tuple[str, Scalar], ...]
    prior: float
    """Probability when every active parameter is drawn uniformly from its values."""
    points: int
    """Points of the space that are alike in all that is counted."""
    stored: int
    """Least stored parameters (a size that fills the budget is taken as 1)."""
    n_placements: int
    trained: int
    """Least trained parameters."""
    switched_on: Counts | None = None
    """Layers of each type that the entry's own mask leaves on."""


@dataclass(frozen=True)
class Placed:
    """An entry in a state: the layers it may be in, and its rows."""

    entry: Entry
    positions: tuple[Position, ...]
    """Before its own depth and mask; empty under a shared mask, whose layers are chosen later."""
    counts: Counts
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class PlacedUnit:
    unit: Unit
    placed: tuple[Placed, ...]


@dataclass(frozen=True)
class State:
    """What is shared by several entries."""

    params: tuple[tuple[str, Scalar], ...]
    prior: float
    multiplicity: int
    """Masks and allocations that are alike in all that is counted."""
    units: tuple[PlacedUnit, ...]
    switched_on: tuple[tuple[tuple[Position, ...], int], ...] = ()
    """(layers of one sort, how many of them the shared mask leaves on)."""

    @property
    def placed(self) -> Iterator[tuple[PlacedUnit, Placed]]:
        return ((unit, placed) for unit in self.units for placed in unit.placed)


class TooManyError(UsageError):
    """The space has too many rows or states to be tabulated."""


@dataclass
class Tables:
    """The states of a space and the rows of its entries."""

    structure: Structure
    layout: Layout
    _rows: dict[tuple[int, Counts, tuple[Counts, ...]], tuple[Row, ...]] = field(default_factory=dict)
    _points: dict[tuple[object, ...], tuple[int, int]] = field(default_factory=dict)

    # ---- states

    def n_states(self) -> int:
        """An upper bound."""
        structural = [p for p in self.structure.parameters if p.name in ("groups", "pattern")]
        n = prod(len(p.domain.values) for p in structural if isinstance(p.domain, Choices))
        n *= prod(len(depth.values) for depth in self.structure.depths)
        if self.structure.mask:
            n *= max(
                prod(len(positions) + 1 for positions in self._sorts(dict(params))) for params, _ in self._structural()
            )
        return n

    def states(self) -> Iterator[State]:
        allocations = next((p.domain for p in self.structure.parameters if p.name == "allocation"), None)
        free = len(allocations.values) if isinstance(allocations, Choices) else 1
        for params, prior in self._structural():
            active = dict(params)
            if not self.structure.mask:
                yield self._state(active, prior, free, ())
                continue
            sorts = self._sorts(active)
            n_masks = 2 ** len(self.structure.mask)
            for numbers in product(*(range(len(positions) + 1) for positions in sorts)):
                masks = prod(comb(len(positions), n) for positions, n in zip(sorts, numbers, strict=True))
                on = tuple(zip(sorts, numbers, strict=True))
                yield self._state(active, prior * masks / n_masks, free * masks, on)

    def _structural(self) -> Iterator[tuple[tuple[tuple[str, Scalar], ...], float]]:
        """(params, prior) of groups, pattern and shared depths."""
        names = {"groups", "pattern", *(depth.name for depth in self.structure.depths)}

        def extend(
            active: dict[str, Scalar], prior: float, rest: Sequence[Parameter]
        ) -> Iterator[tuple[tuple[tuple[str, Scalar], ...], float]]:
            if not rest:
                yield tuple(active.items()), prior
            elif not rest[0].is_active(active):
                yield from extend(active, prior, rest[1:])
            elif isinstance(rest[0].domain, Choices):
                for value in rest[0].domain.values:
                    yield from extend({**active, rest[0].name: value}, prior / len(rest[0].domain.values), rest[1:])

        yield from extend({}, 1.0, [p for p in self.structure.parameters if p.name in names])

    def _sorts(self, active: Params) -> tuple[tuple[Position, ...], ...]:
        """The masked layers, those together that no count tells apart: of one type, in the same units."""
        groups = self.layout.groups(*self.layout.grouping(active))
        sorts: dict[tuple[object, ...], list[Position]] = {}
        for at in self.structure.mask:
            sorts.setdefault((self.layout.tally((at,)), groups.get(at)), []).append(at)
        return tuple(map(tuple, sorts.values()))

    def _state(
        self,
        active: dict[str, Scalar],
        prior: float,
        multiplicity: int,
        on: tuple[tuple[tuple[Position, ...], int], ...],
    ) -> State:
        n_groups, pattern = self.layout.grouping(active)
        units = []
        for unit in self.structure.units:
            if unit.group is not None and unit.group > n_groups:
                continue
            positions = self.layout.unit_positions(unit, n_groups, pattern)
            placed = tuple(self._placed(entry, positions, active, on) for entry in unit.entries)
            units.append(PlacedUnit(unit, tuple(p for p in placed if p is not None)))
        return State(tuple(active.items()), prior, multiplicity, tuple(units), on)

    def _placed(
        self,
        entry: Entry,
        positions: tuple[Position, ...],
        active: Params,
        on: tuple[tuple[tuple[Position, ...], int], ...],
    ) -> Placed | None:
        """None where the entry is beyond its depth, and has no settings there."""
        if on:
            counts = [0] * len(self.layout.types)
            for layers, n in on:
                if layers and layers[0] in positions:
                    for number, one in enumerate(self.layout.tally(layers[:1])):
                        counts[number] += n * one
            return Placed(entry, (), tuple(counts), self.rows(entry, tuple(counts), ()))
        if entry.depth is not None and not entry.depth.is_local:
            positions = self.layout.within_depth(entry, positions, entry.depth.value(active))
            if not positions and self._is_per_layer(entry):
                return None
        by_depth: tuple[Counts, ...] = ()
        if entry.depth is not None and entry.depth.is_local:
            by_depth = tuple(
                self.layout.tally(self.layout.within_depth(entry, positions, k)) for k in entry.depth.values
            )
        counts_here = self.layout.tally(positions)
        return Placed(entry, positions, counts_here, self.rows(entry, counts_here, by_depth))

    def _is_per_layer(self, entry: Entry) -> bool:
        """Whether the entry's settings exist only in the layers that its depth reaches."""
        return any(unit.position is not None and entry in unit.entries for unit in self.structure.units)

    # ---- rows

    def rows(self, entry: Entry, counts: Counts, by_depth: tuple[Counts, ...]) -> tuple[Row, ...]:
        """
        Raises:
            TooManyError: over `MAX_ROWS`.
        """
        key = (entry.index, counts, by_depth)
        if key not in self._rows:
            found: list[Row] = []
            for row in self._entry_rows(entry, counts, by_depth):
                found.append(row)
                if len(found) > MAX_ROWS:
                    raise TooManyError(f"{entry.prefix}: over {MAX_ROWS} combinations of its settings")
            self._rows[key] = tuple(found)
        return self._rows[key]

    def _entry_rows(self, entry: Entry, counts: Counts, by_depth: tuple[Counts, ...]) -> Iterator[Row]:
        domains = {p.name: p.domain.values for _, p in entry.counted if isinstance(p.domain, Choices)}
        others = [name for name in domains if name != entry.size_name]
        for size in entry.sizes:
            prior = 1 / len(entry.sizes)
            sized: tuple[tuple[str, Scalar], ...] = ((entry.size_name, size),) if entry.size_parameter else ()
            if size == 0:
                yield Row(sized, prior, 1, *NOTHING)
                continue
            for values in product(*(domains[name] for name in others)):
                params = (*sized, *zip(others, values, strict=True))
                chosen = dict(params)
                share = prior / prod(len(domains[name]) for name in others)
                points = self._alike(entry, chosen)
                for depth, reached in zip(*self._depths(entry, by_depth, counts), strict=True):
                    deep = ((entry.depth.name, depth),) if entry.depth is not None and by_depth else ()
                    yield from self._masked(entry, reached, (*params, *deep), share / max(1, len(by_depth)), points)

    def _depths(
        self, entry: Entry, by_depth: tuple[Counts, ...], counts: Counts
    ) -> tuple[tuple[int, ...], tuple[Counts, ...]]:
        if not by_depth or entry.depth is None:
            return (0,), (counts,)
        return entry.depth.values, by_depth

    def _masked(
        self, entry: Entry, counts: Counts, params: tuple[tuple[str, Scalar], ...], prior: float, points: int
    ) -> Iterator[Row]:
        named = dict(params)
        values = tuple(named.get(name) for name in entry.counted_names)
        if entry.depth is not None and not entry.depth.is_searched:
            params = tuple(item for item in params if item[0] != entry.depth.name)
        if not entry.mask:
            yield Row(params, prior, points, *self.layout.entry_cost(entry, counts, values))
            return
        for on in product(*(range(n + 1) for n in counts)):
            masks = prod(comb(n, k) for n, k in zip(counts, on, strict=True))
            cost = self.layout.entry_cost(entry, on, values)
            yield Row(params, prior * masks / 2 ** sum(counts), points * masks, *cost, on)

    def _alike(self, entry: Entry, chosen: Params) -> int:
        """Combinations of the settings that no count hangs on, where they are active."""
        counted = set(entry.counted_names)
        ungated = entry.value("gate", chosen) == "none" if "gate" in entry.options else True
        lengths = [
            len(p.domain.values)
            for p in entry.parameters
            if isinstance(p.domain, Choices)
            and p.name not in counted
            and (entry.depth is None or p.name != entry.depth.name)
            and (ungated or p.name.rsplit(".", 1)[-1] not in WITHOUT_GATE)
        ]
        return prod(lengths)

    # ---- how many points

    @cached_property
    def cardinality(self) -> int:
        """Points that hold at least one module and keep the constraints.

        Raises:
            TooManyError: too many rows.
        """
        total = 0
        for state in self.states():
            points, empty = 1, 1
            for unit in state.units:
                all_of_it, holding_nothing = self.unit_points(unit)
                points, empty = points * all_of_it, empty * holding_nothing
            total += state.multiplicity * (points - empty)
        return total

    def unit_points(self, unit: PlacedUnit) -> tuple[int, int]:
        """(points of the unit that keep the constraints, those of them that hold nothing)."""
        key = (unit.unit.name, tuple((p.counts, len(p.rows), p.positions) for p in unit.placed))
        if key not in self._points:
            points = empty = 0
            for sign, tables in self.signed_tables(unit):
                points += sign * prod(sum(row.points for row in rows) for rows in tables)
                empty += sign * prod(sum(row.points for row in rows if not row.n_placements) for rows in tables)
            is_switched = unit.unit.tuned_name is not None
            self._points[key] = (points + is_switched, empty + is_switched)
        return self._points[key]

    def signed_tables(self, unit: PlacedUnit) -> Iterator[tuple[int, list[list[Row]]]]:
        """By inclusion and exclusion: tables whose products, with these signs, add up to what is allowed."""
        forbidden = self.forbidden_rows(unit)
        for n in range(len(forbidden) + 1):
            for chosen in combinations(forbidden, n):
                tables = [
                    [row for k, row in enumerate(placed.rows) if all(k in rows[number] for rows in chosen)]
                    for number, placed in enumerate(unit.placed)
                ]
                yield (-1) ** n, tables

    def forbidden_rows(self, unit: PlacedUnit) -> list[list[frozenset[int]]]:
        """For each combination that is not allowed: of every entry, the rows that take part in it."""
        found = []
        everything = [frozenset(range(len(placed.rows))) for placed in unit.placed]
        if unit.unit.must_hold:
            found.append([
                frozenset(k for k, row in enumerate(p.rows) if p.entry.value("size", dict(row.params)) == 0)
                for p in unit.placed
            ])  # fmt: skip
        present = {placed.entry.module for placed in unit.placed}
        for exclusion in self.structure.exclude:
            if not {module for module, _, _ in exclusion} <= present:
                continue
            rows = list(everything)
            for number, placed in enumerate(unit.placed):
                for module, setting, values in exclusion:
                    if placed.entry.module == module:
                        rows[number] &= frozenset(
                            k
                            for k, row in enumerate(placed.rows)
                            if matches(placed.entry, setting, values, dict(row.params))
                        )
            found.append(rows)
        return found
