"""The best architecture of a surface in a space of layer groups: exactly where layers add up, else by a long search.

All settings of one group are enumerated once (645,000 in `hybrid`), their capacities by slot and their costs as
arrays. Where layers add up (`layered`, `patchy`), a group's value is a sum over its layers: for every pattern and
learning rate the settings that are better than all cheaper ones are kept for each group, and the groups are joined pair
by pair, again keeping those that no cheaper one equals. That is exact; only the learning rate is on a grid, which is
refined twice.

Where kinds have falling returns over the whole model (`pooled`), the same program solves a linear surface; the weights
are the gradient at the last solution, from many random starts, and every solution is then improved by setting one group
after the other to its best, given the others, until nothing changes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import pairwise, product
from operator import add

import numpy as np
from numpy.typing import NDArray

from autopeft.bench.found import Found
from autopeft.bench.surface import DEFAULT_LEARNING_RATE, Array, Slot, Surface, slot_of
from autopeft.space.architecture import Placement
from autopeft.space.counting import count_placement
from autopeft.space.groups import group_sizes
from autopeft.space.modules import Scalar
from autopeft.space.parameters import Choices, Interval, Params
from autopeft.space.search_space import SearchSpace

Indices = NDArray[np.int64]
_GRID = 17
"""Learning rates at first; twice more, nine around the best."""
_STARTS = 12
_ROUNDS = 6


@dataclass(frozen=True)
class _Frontier:
    """Choices that no cheaper one equals, by rising cost."""

    costs: Indices
    values: Array
    choices: Indices
    """(choices, groups): the setting of every group."""

    @classmethod
    def of(cls, costs: Indices, values: Array, choices: Indices, budget: int) -> "_Frontier":
        order = np.lexsort((-values, costs))
        order = order[costs[order] <= budget]
        best = np.maximum.accumulate(values[order])
        kept = order[np.flatnonzero(np.diff(best, prepend=-np.inf) > 0)]
        return cls(costs[kept], values[kept], choices[kept])

    def joined(self, other: "_Frontier", budget: int) -> "_Frontier":
        costs = (self.costs[:, None] + other.costs[None, :]).ravel()
        fits = np.flatnonzero(costs <= budget)
        values = (self.values[:, None] + other.values[None, :]).ravel()[fits]
        i, j = np.divmod(fits, len(other.costs))
        choices = np.concatenate([self.choices[i], other.choices[j]], axis=1)
        return _Frontier.of(costs[fits], values, choices, budget)


class GroupedSpace:
    """A space whose groups of layers all have the same parameters, and may have any setting of them."""

    def __init__(self, space: SearchSpace, surface: Surface) -> None:
        assert space.budget is not None
        self.space, self.surface, self.budget = space, surface, space.budget
        self._patterns = [
            p.domain.values for p in space.parameters if p.name == "pattern" and isinstance(p.domain, Choices)
        ]
        self.names = [p.name.removeprefix("g1.") for p in space.parameters if p.name.startswith("g1.")]
        self.n_groups = len({p.name.split(".")[0] for p in space.parameters if p.name.startswith("g")})
        self.kinds = list(dict.fromkeys(name.split(".")[0] for name in self.names))
        self.settings = [self._settings(kind) for kind in self.kinds]
        self.shape = tuple(len(settings) for settings in self.settings)

    @property
    def patterns(self) -> tuple[str, ...]:
        return tuple(str(value) for value in self._patterns[0]) if self._patterns else ("uniform",)

    @property
    def learning_rates(self) -> tuple[float, float] | None:
        """Bounds, or None where it is not searched."""
        domain = next((p.domain for p in self.space.parameters if p.name == "learning_rate"), None)
        return (domain.low, domain.high) if isinstance(domain, Interval) else None

    def intervals(self, pattern: str) -> list[tuple[int, int]]:
        """First and one past the last layer of every group."""
        ends = np.cumsum([0, *group_sizes(self.surface.n_layers, self.n_groups, pattern)])
        return [(int(a), int(b)) for a, b in pairwise(ends)]

    @cached_property
    def costs(self) -> Indices:
        """Stored parameters in one layer, of every setting of a group `(settings,)`."""
        anatomy = self.surface.anatomy
        parts = [
            self._along(number, [sum(count_placement(p, anatomy) for p in placed) for _, placed in settings])
            for number, settings in enumerate(self.settings)
        ]
        return np.asarray(reduce(add, parts), dtype=np.int64).ravel()

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        placed = (p for settings in self.settings for _, placements in settings for p in placements)
        return tuple(sorted({slot_of(p.module, p.role) for p in placed}))

    def capacities(self, learning_rate: float) -> dict[Slot, Array]:
        """Slot → capacities that broadcast to `shape`; every kind has an axis of its own."""
        found: dict[Slot, Array] = {}
        for number, settings in enumerate(self.settings):
            values = [self.surface.capacities(placed, learning_rate) for _, placed in settings]
            for slot in {slot for value in values for slot in value}:
                found[slot] = self._along(number, [float(value.get(slot, 0.0)) for value in values])
        return found

    def params(self, pattern: str, learning_rate: float | None, choices: Sequence[int]) -> Params:
        """The point of the space with these settings of the groups."""
        params: dict[str, Scalar] = {"pattern": pattern} if self._patterns else {}
        for group, choice in enumerate(choices, start=1):
            for settings, index in zip(self.settings, np.unravel_index(choice, self.shape), strict=True):
                params |= {f"g{group}.{name}": value for name, value in settings[int(index)][0].items()}
        if learning_rate is not None:
            params["learning_rate"] = learning_rate
        return self.space.canonical(params)

    def _settings(self, kind: str) -> list[tuple[dict[str, Scalar], list[Placement]]]:
        """All settings of a kind in a group, and what each places in the first layer."""
        own = [p for p in self.space.parameters if p.name.startswith(f"g1.{kind}.")]
        off: dict[str, Scalar] = {f"g{g}.{name}": 0 for g in range(1, self.n_groups + 1) for name in self.names}
        other = {p.name: off.get(p.name, _first(p.domain)) for p in self.space.parameters if p not in own}
        found: dict[tuple[tuple[str, Scalar], ...], list[Placement]] = {}
        for values in product(*(p.domain.values for p in own if isinstance(p.domain, Choices))):
            given = other | dict(zip((p.name for p in own), values, strict=True))
            active = self.space.canonical(given)
            key = tuple((name.removeprefix("g1."), value) for name, value in active.items() if f"g1.{kind}." in name)
            if key not in found:
                found[key] = [p for p in self.space.build(active).placements if p.layer == 0]
        return [(dict(key), placed) for key, placed in found.items()]

    def _along(self, number: int, values: Sequence[float]) -> Array:
        return np.asarray(values).reshape([-1 if n == number else 1 for n in range(len(self.settings))])


def best_of_groups(space: SearchSpace, surface: Surface, tell: Callable[[str], None] = lambda line: None) -> Found:
    """The best valid point, exactly or by search as the module says."""
    grouped = GroupedSpace(space, surface)
    search = _pooled if surface.family == "pooled" else _layered
    return search(grouped, tell)


def _layered(grouped: GroupedSpace, tell: Callable[[str], None]) -> Found:
    best: tuple[float, Params] = (-np.inf, {})
    grid = _grid(grouped.learning_rates)
    for _ in range(3):
        for learning_rate in grid:
            for raw, params in _exact(grouped, learning_rate):
                if raw > best[0]:
                    best = (raw, params)
        tell(f"raw {best[0]:.5f} at {dict(best[1]).get('learning_rate')}")
        if grouped.learning_rates is None:
            break
        grid = _finer(grid, float(best[1]["learning_rate"]))
    return Found(best[1], best[0], "exact: dynamic programming over groups and budget; learning rate to 0.2 %")


def _exact(grouped: GroupedSpace, learning_rate: float | None) -> Iterator[tuple[float, Params]]:
    """(raw value, params) of the best point of every pattern, at one learning rate."""
    surface, rate = grouped.surface, learning_rate or DEFAULT_LEARNING_RATE
    capacities = grouped.capacities(rate)
    price = surface.price * grouped.costs
    sums = np.zeros((surface.n_layers + 1, len(grouped.costs)))
    for at in range(surface.n_layers):
        value = np.broadcast_to(surface.layer_value(at, capacities), grouped.shape).ravel()
        sums[at + 1] = sums[at] + value - price
    for pattern, total, choices in _programme(grouped, lambda a, b: sums[b] - sums[a]):
        yield float(surface.saturated(np.asarray(total), rate)), grouped.params(pattern, learning_rate, choices)


def _programme(
    grouped: GroupedSpace, value_of: Callable[[int, int], Array], patterns: Sequence[str] | None = None
) -> Iterator[tuple[str, float, list[int]]]:
    """(pattern, best sum, setting of every group); `value_of(a, b)` is every setting's value over layers a to b."""
    order = np.argsort(grouped.costs, kind="stable")
    frontiers: dict[tuple[int, int], _Frontier] = {}
    for pattern in patterns or grouped.patterns:
        joined: _Frontier | None = None
        for a, b in grouped.intervals(pattern):
            if (a, b) not in frontiers:
                costs = grouped.costs[order] * (b - a)
                frontiers[a, b] = _Frontier.of(costs, value_of(a, b)[order], order[:, None], grouped.budget)
            part = frontiers[a, b]
            joined = part if joined is None else joined.joined(part, grouped.budget)
        assert joined is not None
        yield pattern, float(joined.values[-1]), [int(i) for i in joined.choices[-1]]


# ---- pooled: linear programmes, then one group after the other


def _pooled(grouped: GroupedSpace, tell: Callable[[str], None]) -> Found:
    rng = np.random.default_rng(grouped.surface.seed)
    found: dict[tuple[tuple[str, Scalar], ...], tuple[float, Params]] = {}
    ends: list[float] = []
    grid = _grid(grouped.learning_rates)
    for start in range(_STARTS):
        learning_rate = grid[int(rng.integers(len(grid)))]
        raw, params = _ascended(grouped, learning_rate, rng)
        found[tuple(params.items())] = (raw, params)
        ends.append(raw)
        tell(f"start {start}: raw {raw:.5f}; best {max(ends):.5f}")
    raw, params = max(found.values(), key=lambda item: item[0])
    hits = sum(end > raw - 1e-3 for end in ends)
    return Found(params, raw, f"search: the best of {_STARTS} random starts; {hits} of them ended within 0.001 of it")


def _ascended(grouped: GroupedSpace, rate: float | None, rng: np.random.Generator) -> tuple[float, Params]:
    """One start: linear programmes with the gradient as weights, block by block, the learning rate in between."""
    best: tuple[float, Params] = (-np.inf, {})
    weights = {slot: float(rng.exponential()) for slot in grouped.slots}
    for _ in range(_ROUNDS):
        candidates = [
            _by_groups(grouped, rate, pattern, choices) for pattern, _, choices in _linear(grouped, rate, weights)
        ]
        raw, pattern, choices = max(candidates, key=lambda item: item[0])
        rate, raw = _best_rate(grouped, pattern, choices, rate, raw)
        if raw <= best[0] + 1e-9:
            break
        best = (raw, grouped.params(pattern, rate, choices))
        weights = _gradient(grouped, rate, pattern, choices)
    return best


def _linear(
    grouped: GroupedSpace, rate: float | None, weights: Mapping[Slot, float]
) -> Iterator[tuple[str, float, list[int]]]:
    surface = grouped.surface
    capacities = grouped.capacities(rate or DEFAULT_LEARNING_RATE)
    price = surface.price * grouped.costs

    def value_of(a: int, b: int) -> Array:
        total: Array = np.zeros(())
        for slot, capacity in capacities.items():
            total = total + weights[slot] * surface.depth(slot)[a:b].sum() / surface.n_layers * capacity
        return np.asarray(np.broadcast_to(total, grouped.shape).ravel() - price * (b - a))

    return _programme(grouped, value_of)


def _by_groups(
    grouped: GroupedSpace, rate: float | None, pattern: str, choices: Sequence[int]
) -> tuple[float, str, list[int]]:
    """Every group in turn at its best, given the others and the budget, until nothing changes."""
    surface, chosen = grouped.surface, list(choices)
    learning_rate = rate or DEFAULT_LEARNING_RATE
    capacities = grouped.capacities(learning_rate)
    spans = grouped.intervals(pattern)
    total, unchanged, group = -np.inf, 0, 0
    while unchanged < len(spans):
        a, b = spans[group]
        rest = _pools(grouped, capacities, pattern, [c if g != group else -1 for g, c in enumerate(chosen)])
        spent = sum(
            int(grouped.costs[c]) * (q - p)
            for g, ((p, q), c) in enumerate(zip(spans, chosen, strict=True))
            if g != group
        )
        pooled = {
            slot: rest[slot] + surface.depth(slot)[a:b].sum() / surface.n_layers * capacity
            for slot, capacity in capacities.items()
        }
        costs = grouped.costs * (b - a) + spent
        values = np.broadcast_to(surface.pooled_value(pooled), grouped.shape).ravel() - surface.price * costs
        values = np.where(costs <= grouped.budget, values, -np.inf)
        at = int(np.argmax(values))
        unchanged = 0 if values[at] > total + 1e-12 else unchanged + 1
        if values[at] > total + 1e-12:
            total, chosen[group] = float(values[at]), at
        group = (group + 1) % len(spans)
    return float(surface.saturated(np.asarray(total), learning_rate)), pattern, chosen


def _pools(
    grouped: GroupedSpace, capacities: Mapping[Slot, Array], pattern: str, choices: Sequence[int]
) -> dict[Slot, float]:
    """Slot → capacity averaged over the layers; a choice of -1 leaves its group out."""
    surface = grouped.surface
    pools = dict.fromkeys(capacities, 0.0)
    for (a, b), choice in zip(grouped.intervals(pattern), choices, strict=True):
        if choice < 0:
            continue
        index = np.unravel_index(choice, grouped.shape)
        for slot, capacity in capacities.items():
            at = tuple(int(i) if n > 1 else 0 for i, n in zip(index, capacity.shape, strict=True))
            pools[slot] += float(surface.depth(slot)[a:b].sum() / surface.n_layers * capacity[at])
    return pools


def _value(grouped: GroupedSpace, rate: float | None, pattern: str, choices: Sequence[int]) -> float:
    learning_rate = rate or DEFAULT_LEARNING_RATE
    pools = _pools(grouped, grouped.capacities(learning_rate), pattern, choices)
    stored = sum(int(grouped.costs[c]) * (b - a) for (a, b), c in zip(grouped.intervals(pattern), choices, strict=True))
    total = grouped.surface.pooled_value({slot: np.asarray(pool) for slot, pool in pools.items()})
    return float(grouped.surface.saturated(total - grouped.surface.price * stored, learning_rate))


def _best_rate(
    grouped: GroupedSpace, pattern: str, choices: Sequence[int], rate: float | None, raw: float
) -> tuple[float | None, float]:
    if grouped.learning_rates is None:
        return rate, raw
    grid = _grid(grouped.learning_rates)
    best = (rate, raw)
    for _ in range(3):
        values = [(r, _value(grouped, r, pattern, choices)) for r in grid]
        best = max([best, *values], key=lambda item: item[1])
        grid = _finer(grid, float(best[0] or 0))
    return best


def _gradient(grouped: GroupedSpace, rate: float | None, pattern: str, choices: Sequence[int]) -> dict[Slot, float]:
    """What a little more of every slot adds to the pooled value."""
    pools = _pools(grouped, grouped.capacities(rate or DEFAULT_LEARNING_RATE), pattern, choices)
    step = 0.02

    def value(changed: Mapping[Slot, float]) -> float:
        return float(grouped.surface.pooled_value({slot: np.asarray(pool) for slot, pool in changed.items()}))

    here = value(pools)
    return {slot: (value({**pools, slot: pool + step}) - here) / step for slot, pool in pools.items()}


def _grid(bounds: tuple[float, float] | None) -> list[float | None]:
    if bounds is None:
        return [None]
    return [float(rate) for rate in np.geomspace(*bounds, _GRID)]


def _finer(grid: Sequence[float | None], best: float) -> list[float | None]:
    """As many values between the two neighbours of the best one."""
    known = sorted({float(rate) for rate in grid if rate is not None} | {best})
    at = known.index(best)
    low, high = known[max(0, at - 1)], known[min(len(known) - 1, at + 1)]
    return [float(f"{rate:.4g}") for rate in np.geomspace(low, high, 9)]


def _first(domain: object) -> Scalar:
    if isinstance(domain, Choices):
        return domain.values[0]
    assert isinstance(domain, Interval)
    return domain.low
