"""The smallest architectures of a space: what an impossible budget is measured against."""

import heapq
from collections.abc import Iterator, Mapping
from itertools import count, islice, product

from autopeft.space.modules import Scalar
from autopeft.space.rows import Placed, PlacedUnit, Row, State, Tables
from autopeft.space.units import Entry, matches, switch_name

_STATES = 5_000
_KEPT = 64
_COMBINATIONS = 4_096
"""Of rows of a unit, looked through where some are not allowed."""

Chosen = tuple[tuple[Placed, Row], ...]


def cheapest_points(tables: Tables) -> list[dict[str, Scalar]]:
    """Params of the cheapest points, one for each way to hold just one module (or as few as the space allows)."""
    tie = count()
    heap: list[tuple[int, int, State, Chosen, tuple[str, ...]]] = []
    for state in islice(tables.states(), _STATES):
        choices = [list(_unit_choices(tables, unit)) for unit in state.units]
        if not all(choices):
            continue
        least = [min(options, key=lambda option: option[0]) for options in choices]
        base = sum(option[0] for option in least)
        for number, options in enumerate(choices):
            for cost, rows, tuned in options:
                parts = [*least[:number], (cost, rows, tuned), *least[number + 1 :]]
                chosen = tuple(pair for _, pairs, _ in parts for pair in pairs)
                if any(row.n_placements for _, row in chosen):
                    switches = tuple(name for _, _, names in parts for name in names)
                    item = (-(base - least[number][0] + cost), -next(tie), state, chosen, switches)
                    (heapq.heappush if len(heap) < _KEPT else heapq.heappushpop)(heap, item)
    ordered = sorted(heap, key=lambda item: (-item[0], -item[1]))
    return [_params(tables, state, chosen, switches) for _, _, state, chosen, switches in ordered]


def _unit_choices(tables: Tables, unit: PlacedUnit) -> Iterator[tuple[int, Chosen, tuple[str, ...]]]:
    """(cost, rows, switches that are on): the unit at its cheapest, and with each of its modules on."""
    tuned = unit.unit.tuned_name
    if tuned:
        yield 0, (), ()
    switches = (tuned,) if tuned else ()
    if tables.structure.exclude:
        representatives = [list(_representatives(tables, placed)) for placed in unit.placed]
        combinations: Iterator[tuple[Row, ...]] = islice(product(*representatives), _COMBINATIONS)
    else:
        combinations = _one_on(unit)
    for rows in combinations:
        active = {name: value for row in rows for name, value in row.params}
        if unit.unit.must_hold and all(p.entry.value("size", active) == 0 for p in unit.placed):
            continue
        if tables.structure.exclude and tables.structure.excluded_in(unit.unit, active):
            continue
        yield sum(row.stored for row in rows), tuple(zip(unit.placed, rows, strict=True)), switches


def _one_on(unit: PlacedUnit) -> Iterator[tuple[Row, ...]]:
    least = [min(placed.rows, key=_cost) for placed in unit.placed]
    yield tuple(least)
    for number, placed in enumerate(unit.placed):
        on = [row for row in placed.rows if row.n_placements and row is not least[number]]
        if on:
            yield (*least[:number], min(on, key=_cost), *least[number + 1 :])


def _representatives(tables: Tables, placed: Placed) -> Iterator[Row]:
    """The cheapest of those rows that no exclusion tells apart, with and without a placement."""
    found: dict[tuple[object, ...], Row] = {}
    for row in sorted(placed.rows, key=_cost):
        params = dict(row.params)
        signature = tuple(
            placed.entry.module == module and matches(placed.entry, setting, values, params)
            for exclusion in tables.structure.exclude
            for module, setting, values in exclusion
        )
        found.setdefault((row.n_placements > 0, *signature), row)
    yield from found.values()


def _params(tables: Tables, state: State, chosen: Chosen, switches: tuple[str, ...]) -> dict[str, Scalar]:
    params: dict[str, Scalar] = dict(state.params)
    for name in (unit.tuned_name for unit in tables.structure.units):
        if name:
            params[name] = name in switches
    for layers, n in state.switched_on:
        params |= {switch_name(at): k < n for k, at in enumerate(layers)}
    for placed, row in chosen:
        params |= dict(row.params)
        if row.switched_on is not None:
            params |= first_switches(tables, placed.entry, placed, row)
    return params


def first_switches(tables: Tables, entry: Entry, placed: Placed, row: Row) -> Mapping[str, Scalar]:
    """The entry's own mask, with the first layers of each type on."""
    left = list(row.switched_on or ())
    params: dict[str, Scalar] = {}
    for at in placed.positions:
        kind = tables.layout.tally((at,)).index(1)
        params[entry.switch_name(at)] = left[kind] > 0
        left[kind] -= 1
    return params


def _cost(row: Row) -> tuple[int, int]:
    return row.stored, row.trained
