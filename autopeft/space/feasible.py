"""Drawing from exactly the points within a budget, and counting them, by dynamic programming over the tables.

Costs are rounded down to one of some thousand steps of the budget, which makes sums of tables short. Rounding
down never loses a point that fits; the few that do not fit are drawn and thrown away, so that what is kept has exactly
the wanted distribution.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autopeft.space.modules import Scalar
from autopeft.space.rows import Placed, PlacedUnit, Row, State, Tables, TooManyError
from autopeft.space.units import switch_name

Measure = Literal["prior", "points"]
"""`prior`: every active parameter uniform over its values. `points`: every point alike."""

_MAX_STATES = 5_000
_MAX_TABLES = 40_000
"""States times entries."""
_STEPS_PER_ENTRY = 128
_MAX_NUMBERS = 8_000_000
_KEPT_STATES = 32

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Bounds:
    """The most stored and trained parameters, and how much each counts in the one cost that tables are summed by."""

    stored: int
    trained: int | None = None
    weights: tuple[int, int] = (1, 0)
    """Not both 0. A point within both bounds has a cost of at most 1 whatever they are."""

    def admit(self, row: Row) -> bool:
        return row.stored <= self.stored and (self.trained is None or row.trained <= self.trained)

    def steps(self, row: Row, n_steps: int) -> int:
        """The row's cost, rounded down to one of `n_steps` parts of the bound."""
        by_stored, by_trained = self.weights
        if not by_trained or self.trained is None:
            return row.stored * n_steps // self.stored
        if not by_stored:
            return row.trained * n_steps // self.trained
        cost = by_stored * row.stored * self.trained + by_trained * row.trained * self.stored
        return cost * n_steps // ((by_stored + by_trained) * self.stored * self.trained)


@dataclass
class _Leaf:
    """One entry's rows by their rounded costs."""

    placed: Placed
    bins: NDArray[np.int64]
    weights: Vector
    rows: list[list[Row]]
    cumulative: list[Vector]

    @classmethod
    def of(cls, placed: Placed, bounds: Bounds, n_steps: int, measure: Measure) -> "_Leaf":
        total = sum(row.points for row in placed.rows)
        found: dict[int, list[tuple[Row, float]]] = {}
        for row in placed.rows:
            if bounds.admit(row):
                weight = row.prior if measure == "prior" else row.points / total
                found.setdefault(bounds.steps(row, n_steps), []).append((row, weight))
        bins = sorted(found)
        cumulative = [np.cumsum([weight for _, weight in found[b]]) for b in bins]
        weights = np.array([float(c[-1]) for c in cumulative])
        return cls(
            placed, np.array(bins, dtype=np.int64), weights, [[r for r, _ in found[b]] for b in bins], cumulative
        )

    def draw(self, at: int, rng: np.random.Generator, out: "_Drawn") -> None:
        cumulative = self.cumulative[at]
        index = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
        out.rows.append((self.placed, self.rows[at][min(index, len(cumulative) - 1)]))


@dataclass
class _Sum:
    """Independent parts, and for the first i of them the weight of every total cost."""

    parts: "list[_Leaf | _Switch]"
    prefixes: list[Vector]

    @classmethod
    def of(cls, parts: "list[_Leaf | _Switch]", n_steps: int) -> "_Sum":
        prefix = np.zeros(n_steps + 1)
        prefix[0] = 1.0
        prefixes = [prefix]
        for part in parts:
            after = np.zeros(n_steps + 1)
            for b, weight in zip(part.bins.tolist(), part.weights.tolist(), strict=True):
                after[b:] += weight * prefix[: n_steps + 1 - b]
            prefix = after
            prefixes.append(prefix)
        return cls(parts, prefixes)

    def draw(self, total: int, rng: np.random.Generator, out: "_Drawn") -> None:
        for part, before in zip(reversed(self.parts), reversed(self.prefixes[:-1]), strict=True):
            fitting = int(np.searchsorted(part.bins, total, side="right"))
            weights = part.weights[:fitting] * before[total - part.bins[:fitting]]
            at = _pick(weights, rng)
            part.draw(at, rng, out)
            total -= int(part.bins[at])


@dataclass
class _Switch:
    """A unit that may be left out."""

    unit: PlacedUnit
    inside: _Sum
    bins: NDArray[np.int64]
    weights: Vector
    on: float

    @classmethod
    def of(cls, unit: PlacedUnit, inside: _Sum, measure: Measure) -> "_Switch":
        n_points = 1
        for placed in unit.placed:
            n_points *= sum(row.points for row in placed.rows)
        on = 0.5 if measure == "prior" else n_points / (n_points + 1)
        weights = on * inside.prefixes[-1]
        weights[0] += 1 - on
        bins = np.flatnonzero(weights)
        return cls(unit, inside, bins, weights[bins], on)

    def draw(self, at: int, rng: np.random.Generator, out: "_Drawn") -> None:
        total = int(self.bins[at])
        off = 1 - self.on if total == 0 else 0.0
        is_on = rng.random() * self.weights[at] >= off
        assert self.unit.unit.tuned_name is not None
        out.params[self.unit.unit.tuned_name] = bool(is_on)
        if is_on:
            self.inside.draw(total, rng, out)


@dataclass
class _Drawn:
    params: dict[str, Scalar] = field(default_factory=dict)
    rows: list[tuple[Placed, Row]] = field(default_factory=list)


class FeasibleSet:
    """The points of a space that fit into its budgets, as far as rounding and constraints within units tell."""

    def __init__(self, tables: Tables, bounds: Bounds, measure: Measure) -> None:
        """
        Raises:
            TooManyError: the space has too many states or rows.
        """
        n_entries = sum(len(unit.entries) for unit in tables.structure.units)
        n_states = tables.n_states()
        if n_states > _MAX_STATES or n_states * n_entries > _MAX_TABLES:
            raise TooManyError("too many states for a table")
        self.bounds, self.measure, self._layout = bounds, measure, tables.layout
        self.n_steps = max(256, min(_STEPS_PER_ENTRY * n_entries, _MAX_NUMBERS // max(1, n_entries), bounds.stored))
        self.states = tuple(tables.states())
        self._leaves: dict[tuple[object, ...], _Leaf] = {}
        self._sums: dict[int, _Sum] = {}
        raw = [_raw_points(state) for state in self.states]
        self.n_raw_points = sum(raw)
        """Points before constraints, those that hold nothing included."""
        priors = [state.prior for state in self.states] if measure == "prior" else [n / self.n_raw_points for n in raw]
        self.weights = np.array([p * float(self._sum(number).prefixes[-1].sum()) for number, p in enumerate(priors)])
        """Of each state, as far as it is within the budget; the whole space has 1."""

    def draw(self, rng: np.random.Generator) -> dict[str, Scalar]:
        """Params that are within the budget but for rounding; those that nothing is counted by are left open.

        The sum of `weights` must be above 0.
        """
        number = _pick(self.weights, rng)
        state, total = self.states[number], self._sum(number)
        out = _Drawn(dict(state.params))
        total.draw(_pick(total.prefixes[-1], rng), rng, out)
        for layers, n in state.switched_on:
            out.params |= _switches({at: switch_name(at) for at in layers}, n, rng)
        for placed, row in out.rows:
            out.params |= dict(row.params)
            if row.switched_on is not None:
                out.params |= self._own_switches(placed, row, rng)
        return out.params

    def _own_switches(self, placed: Placed, row: Row, rng: np.random.Generator) -> dict[str, Scalar]:
        entry = placed.entry
        depth = entry.depth
        positions = placed.positions
        if depth is not None and depth.is_local:
            positions = self._layout.within_depth(entry, positions, depth.value(dict(row.params)))
        params: dict[str, Scalar] = {}
        assert row.switched_on is not None
        for number, n in enumerate(row.switched_on):
            alike = [at for at in positions if self._layout.tally((at,))[number]]
            params |= _switches({at: entry.switch_name(at) for at in alike}, n, rng)
        return params

    def _sum(self, number: int) -> _Sum:
        """The state's sum; the latest are kept."""
        found = self._sums.pop(number, None)
        if found is None:
            found = self._made(self.states[number])
            while len(self._sums) >= _KEPT_STATES:
                del self._sums[next(iter(self._sums))]
        self._sums[number] = found
        return found

    def _made(self, state: State) -> _Sum:
        parts: list[_Leaf | _Switch] = []
        for unit in state.units:
            leaves: list[_Leaf | _Switch] = [self._leaf(placed) for placed in unit.placed]
            if unit.unit.tuned_name is None:
                parts += leaves
            else:
                parts.append(_Switch.of(unit, _Sum.of(leaves, self.n_steps), self.measure))
        return _Sum.of(parts, self.n_steps)

    def _leaf(self, placed: Placed) -> _Leaf:
        key = (placed.entry.index, placed.counts, placed.positions)
        if key not in self._leaves:
            self._leaves[key] = _Leaf.of(placed, self.bounds, self.n_steps, self.measure)
        return self._leaves[key]


def tightest(tables: Tables, bounds: Bounds, measure: Measure) -> FeasibleSet:
    """The set by that cost which leaves the fewest points over that do not fit.

    Raises:
        TooManyError: the space has too many states or rows.
    """
    if bounds.trained is None:
        return FeasibleSet(tables, bounds, measure)
    if not _tell_apart(tables):
        return FeasibleSet(tables, Bounds(min(bounds.stored, bounds.trained)), measure)
    sets = [FeasibleSet(tables, replace(bounds, weights=weights), measure) for weights in ((1, 0), (0, 1), (1, 1))]
    return min(sets, key=lambda one: float(one.weights.sum()))


def _tell_apart(tables: Tables) -> bool:
    """Whether some module trains another number of parameters than it stores."""
    return any(row.stored != row.trained for state in tables.states() for _, p in state.placed for row in p.rows)


def _raw_points(state: State) -> int:
    points = state.multiplicity
    for unit in state.units:
        inside = 1
        for placed in unit.placed:
            inside *= sum(row.points for row in placed.rows)
        points *= inside + (unit.unit.tuned_name is not None)
    return points


def _pick(weights: Vector, rng: np.random.Generator) -> int:
    """An index, with probability in proportion to its weight."""
    cumulative = np.cumsum(weights)
    index = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
    return min(index, len(weights) - 1)


def _switches(names: "dict[tuple[str, int], str]", n_on: int, rng: np.random.Generator) -> dict[str, Scalar]:
    """`n_on` of the layers on, the rest off, each choice alike."""
    order = list(names.values())
    on = {order[int(i)] for i in rng.permutation(len(order))[:n_on]}
    return {name: name in on for name in order}


def share_within(tables: Tables, bounds: Bounds, max_terms: int = 3_000_000) -> int | None:
    """Points within the bounds that hold a module and keep the constraints; None where they are too many to add up."""
    terms = found = 0
    if tables.n_states() > _MAX_STATES or (bounds.trained is not None and _tell_apart(tables)):
        return None
    budget = bounds.stored if bounds.trained is None else min(bounds.stored, bounds.trained)
    for state in tables.states():
        sums: dict[int, int] = {0: 1}
        empty = 1
        for unit in state.units:
            part: dict[int, int] = {0: 1} if unit.unit.tuned_name is not None else {}
            for sign, rows in tables.signed_tables(unit):
                signed: dict[int, int] = {0: sign}
                for table in rows:
                    costs = _by_cost(table)
                    terms += len(signed) * len(costs)
                    if terms > max_terms:
                        return None
                    signed = _added(signed, costs, budget)
                for cost, n in signed.items():
                    part[cost] = part.get(cost, 0) + n
            terms += len(sums) * len(part)
            if terms > max_terms:
                return None
            sums = _added(sums, part, budget)
            empty *= tables.unit_points(unit)[1]
        found += state.multiplicity * (sum(sums.values()) - empty)
    return found


def _by_cost(rows: Sequence[Row]) -> dict[int, int]:
    costs: dict[int, int] = {}
    for row in rows:
        costs[row.stored] = costs.get(row.stored, 0) + row.points
    return costs


def _added(first: dict[int, int], second: dict[int, int], budget: int) -> dict[int, int]:
    """The distribution of the sum, as far as it is within the budget."""
    out: dict[int, int] = {}
    for a, n in first.items():
        for b, m in second.items():
            if a + b <= budget:
                out[a + b] = out.get(a + b, 0) + n * m
    return out
