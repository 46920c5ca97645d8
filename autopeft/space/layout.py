"""Where the entries of a space stand at a point of it, and what they store there, without building an architecture.

Layers that are alike cost the same, so that the cost of an entry hangs on how many layers of each type it is in; it is
computed once for each (counts, settings) and looked up after that.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from autopeft.space.anatomy import Anatomy, Layer
from autopeft.space.choices import FILL, share_of
from autopeft.space.compile import layer_groups
from autopeft.space.modules import MODULES, Scalar
from autopeft.space.parameters import Params
from autopeft.space.spec import SpaceSpec
from autopeft.space.units import Entry, Position, Structure, Unit

Counts = tuple[int, ...]
"""Number of layers of each type."""


class Cost(NamedTuple):
    """What modules add to a model; a size that fills the budget is taken as 1."""

    stored: int
    n_placements: int
    trained: int


NOTHING = Cost(0, 0, 0)


@dataclass
class Layout:
    """Positions and costs. `budget` is what shares are taken of."""

    spec: SpaceSpec
    structure: Structure
    anatomy: Anatomy
    budget: int | None
    _groups: dict[tuple[int, str], dict[Position, int]] = field(default_factory=dict)
    _positions: dict[tuple[str, int, str], tuple[Position, ...]] = field(default_factory=dict)
    _plain: dict[tuple[str, int, str], Counts] = field(default_factory=dict)
    _costs: defaultdict[int, dict[tuple[object, ...], Cost]] = field(default_factory=lambda: defaultdict(dict))
    _cells: dict[tuple[object, ...], Cost] = field(default_factory=dict)

    # ---- positions

    @cached_property
    def types(self) -> tuple[Layer, ...]:
        """The different layers of the model."""
        return tuple(dict.fromkeys(layer for _, _, layer in self.anatomy.layers))

    @cached_property
    def _type_of(self) -> dict[Position, int]:
        numbers = {layer: number for number, layer in enumerate(self.types)}
        return {(stack, index): numbers[layer] for stack, index, layer in self.anatomy.layers}

    @cached_property
    def _lengths(self) -> dict[str, int]:
        return {stack.name: len(stack.layers) for stack in self.anatomy.stacks}

    def groups(self, n_groups: int, pattern: str) -> dict[Position, int]:
        found = self._groups.get((n_groups, pattern))
        if found is None:
            found = self._groups[n_groups, pattern] = layer_groups(self.spec, self.anatomy, n_groups, pattern)
        return found

    def unit_positions(self, unit: Unit, n_groups: int, pattern: str) -> tuple[Position, ...]:
        """All layers of the unit, switched on or not."""
        key = (unit.name, n_groups, pattern)
        if key not in self._positions:
            groups = self.groups(n_groups, pattern)
            everywhere = [(stack, index) for stack, index, _ in self.anatomy.layers]
            self._positions[key] = tuple(at for at in everywhere if unit.holds(at, groups))
        return self._positions[key]

    def within_depth(self, entry: Entry, positions: tuple[Position, ...], k: int) -> tuple[Position, ...]:
        assert entry.depth is not None
        return tuple(at for at in positions if entry.depth.reaches(at[1], self._lengths[at[0]], k))

    def positions(self, unit: Unit, entry: Entry, active: Params) -> tuple[Position, ...]:
        """The layers that the entry is in at this point."""
        structure = self.structure
        found = self.unit_positions(unit, *self.grouping(active))
        if structure.mask:
            found = tuple(at for at in found if structure.is_layer_on(at, active))
        if entry.depth is not None:
            found = self.within_depth(entry, found, entry.depth.value(active))
        if entry.mask:
            found = tuple(at for at in found if active.get(entry.switch_name(at), False))
        return found

    def grouping(self, active: Params) -> tuple[int, str]:
        value = self.structure.value
        return int(value("groups", active)), str(value("pattern", active))

    def type_of(self, position: Position) -> int:
        """The number of the layer's type."""
        return self._type_of[position]

    def tally(self, positions: tuple[Position, ...]) -> Counts:
        counts = [0] * len(self.types)
        for at in positions:
            counts[self._type_of[at]] += 1
        return tuple(counts)

    # ---- costs

    def measure(self, active: Params) -> Cost:
        """What a point adds to the model at least."""
        grouping, get = self.grouping(active), active.get
        stored = n_placements = trained = 0
        for unit in self.structure.in_force(active):
            whole = self._plain.get((unit.name, *grouping)) or self._whole(unit, grouping)
            for entry in unit.entries:
                # What `entry_at` does, without its call where the cost is known: counting is done very often.
                found = None
                if entry.is_everywhere and not self.structure.mask:
                    found = self._costs[entry.index].get((whole, *map(get, entry.counted_names)))
                if found is None:
                    found = self.entry_at(unit, entry, grouping, active)
                stored += found[0]
                n_placements += found[1]
                trained += found[2]
        return Cost(stored, n_placements, trained)

    def entry_at(self, unit: Unit, entry: Entry, grouping: tuple[int, str], active: Params) -> Cost:
        """What an entry of a unit in force adds at least."""
        if entry.is_everywhere and not self.structure.mask:
            counts = self._plain.get((unit.name, *grouping)) or self._whole(unit, grouping)
        else:
            counts = self.tally(self.positions(unit, entry, active))
        key = (counts, *map(active.get, entry.counted_names))
        known = self._costs[entry.index]
        found = known.get(key)
        if found is None:
            found = known[key] = self.entry_cost(entry, counts, key[1:])
        return found

    def _whole(self, unit: Unit, grouping: tuple[int, str]) -> Counts:
        counts = self._plain[(unit.name, *grouping)] = self.tally(self.unit_positions(unit, *grouping))
        return counts

    def entry_cost(self, entry: Entry, counts: Counts, values: tuple[object, ...]) -> Cost:
        """What an entry adds at least in so many layers; `values` belong to `entry.counted_names`."""
        settings = self.settings(entry, values)
        size = settings["size"]
        if size == 0:
            return NOTHING
        whole = 1 if size == FILL else self.share_size(entry, counts, settings) if isinstance(size, str) else int(size)
        return self._sum(entry, counts, settings, whole)

    def settings(self, entry: Entry, values: tuple[object, ...]) -> dict[str, Scalar]:
        """Setting → value; inactive ones at their first."""
        given = dict(zip((setting for setting, _ in entry.counted), values, strict=True))
        return {name: v if (v := given.get(name)) is not None else entry.values(name)[0] for name, _ in entry.settings}  # type: ignore[misc]

    def share_size(self, entry: Entry, counts: Counts, settings: dict[str, Scalar]) -> int:
        """The largest size (at least 1) whose cost over these layers is within its share of the budget."""
        share = share_of(settings["size"])
        assert share is not None
        assert self.budget is not None
        least = self._sum(entry, counts, settings, 1).stored
        step = self._sum(entry, counts, settings, 2).stored - least
        spare = int(share * self.budget + 1e-6) - least
        return 1 + max(0, spare // step) if step else 1

    def _sum(self, entry: Entry, counts: Counts, settings: dict[str, Scalar], size: int) -> Cost:
        total = NOTHING
        for number, n_layers in enumerate(counts):
            if n_layers:
                cell = self._cell(entry, number, settings, size)
                total = Cost(*(sum_ + n_layers * one for sum_, one in zip(total, cell, strict=True)))
        return total

    def _cell(self, entry: Entry, number: int, settings: dict[str, Scalar], size: int) -> Cost:
        """What the entry adds to one layer of a type."""
        kind = MODULES[entry.kind]
        options = entry.all_options(settings)
        key = (entry.index, number, settings["roles"], size, tuple(options.items()))
        found = self._cells.get(key)
        if found is None:
            layer = self.types[number]
            roles = entry.roles_at(layer, settings["roles"])
            stored = sum(kind.count(layer, role, size, options) for role in roles)
            trained = sum(kind.count_trained(layer, role, size, options) for role in roles)
            found = self._cells[key] = Cost(stored, len(roles), trained)
        return found
