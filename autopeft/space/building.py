"""From params to the architecture that they stand for, and its exact counts where sizes follow from the budget.

What a unit is filled with hangs on the unit's own settings alone, so that it is worked out once for each of them; a
point is counted from these parts without building its architecture.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from autopeft.space.architecture import Architecture, Placement, place
from autopeft.space.choices import FILL
from autopeft.space.fill import Block, fill_sizes
from autopeft.space.groups import layer_weights
from autopeft.space.layout import Layout
from autopeft.space.modules import MODULES, Scalar
from autopeft.space.parameters import Params
from autopeft.space.units import Entry, Position, Unit

PerSize = tuple[int, int, int, int]
"""Of a placement: stored parameters at size 1 and for each further size, then the trained ones."""


@dataclass
class _Part:
    """Units with what fills them."""

    stored: int
    """Of modules that are not filled; so is `trained`."""
    trained: int
    blocks: tuple[tuple[Block, int], ...]


@dataclass
class Builder:
    """Builds and counts the points of a layout's space."""

    layout: Layout
    fraction: float
    """Of the budget that is filled."""
    max_trained: int | None = None
    _parts: dict[tuple[object, ...], _Part] = field(default_factory=dict)
    _per_size: dict[tuple[object, ...], PerSize] = field(default_factory=dict)
    _weights: dict[str, dict[Position, float]] = field(default_factory=dict)

    # ---- architectures

    def build(self, active: Params) -> Architecture:
        """The architecture of params that are canonical."""
        placements: list[Placement] = []
        filled: list[tuple[Placement, PerSize]] = []
        stored = trained = 0
        grouping = self.layout.grouping(active)
        for unit in self.layout.structure.in_force(active):
            for entry in unit.entries:
                size = entry.value("size", active)
                if size == 0:
                    continue
                positions = self.layout.positions(unit, entry, active)
                values = tuple(active.get(name) for name in entry.counted_names)
                settings = self.layout.settings(entry, values)
                if size != FILL:
                    cost = self.layout.entry_at(unit, entry, grouping, active)
                    stored, trained = stored + cost.stored, trained + cost.trained
                    if isinstance(size, str):
                        size = self.layout.share_size(entry, self.layout.tally(positions), settings)
                options = tuple((name, entry.value(name, active)) for name in entry.options)
                for at in positions:
                    for role in self._roles(entry, at, settings):
                        made = _place(*at, role, entry.kind, 1 if size == FILL else int(size), options)
                        if size == FILL:
                            filled.append((made, self._cost_of(entry, at, role, settings)))
                        else:
                            placements.append(made)
        if filled:
            weights = self._weights_of(active)
            sharing = Counter((p.stack, p.layer) for p, _ in filled)
            blocks = [Block(weights[p.stack, p.layer] / sharing[p.stack, p.layer], *cost) for p, cost in filled]
            sizes = self._sizes(Counter(blocks), stored, trained)
            placements += [
                _place(p.stack, p.layer, p.role, p.module, sizes[block], p.options)
                for (p, _), block in zip(filled, blocks, strict=True)
            ]
        return Architecture.of(placements)

    # ---- counts

    def count(self, active: Params) -> tuple[int, int]:
        """(stored, trained) parameters of the architecture of these params, exactly."""
        layout = self.layout
        if not layout.structure.fills:
            least = layout.measure(active)
            return least.stored, least.trained
        stored = trained = 0
        blocks: dict[Block, int] = {}
        grouping, allocation = layout.grouping(active), layout.structure.value("allocation", active)
        for number, units in enumerate(self._clusters):
            key = (number, grouping, allocation, *(self._settings_of(unit, grouping, active) for unit in units))
            part = self._parts.get(key)
            if part is None:
                part = self._parts[key] = self._part(units, grouping, active)
            stored += part.stored
            trained += part.trained
            for block, n in part.blocks:
                blocks[block] = blocks.get(block, 0) + n
        if blocks:
            for block, size in self._sizes(blocks, stored, trained).items():
                n = blocks[block]
                stored += n * (block.stored + (size - 1) * block.step)
                trained += n * (block.trained + (size - 1) * block.trained_step)
        return stored, trained

    @cached_property
    def _clusters(self) -> tuple[tuple[Unit, ...], ...]:
        """Units one by one, but together where they share layers in which both may be filled."""
        units = self.layout.structure.units
        filling = [unit for unit in units if any(FILL in entry.sizes for entry in unit.entries)]
        if len({(unit.group is None, unit.position is None) for unit in filling}) <= 1:
            return tuple((unit,) for unit in units)
        return (tuple(filling), *((unit,) for unit in units if unit not in filling))

    def _settings_of(self, unit: Unit, grouping: tuple[int, str], active: Params) -> tuple[object, ...] | None:
        """All that the unit's modules hang on; None where it is not in force."""
        structure = self.layout.structure
        if not structure.is_in_force(unit, grouping[0], active):
            return None
        found: list[object] = [active.get(name) for entry in unit.entries for name in entry.counted_names]
        if structure.mask or not all(entry.is_everywhere for entry in unit.entries):
            found += [self.layout.positions(unit, entry, active) for entry in unit.entries]
        return tuple(found)

    def _part(self, units: tuple[Unit, ...], grouping: tuple[int, str], active: Params) -> _Part:
        stored = trained = 0
        filled: list[tuple[Position, PerSize]] = []
        for unit in units:
            if not self.layout.structure.is_in_force(unit, grouping[0], active):
                continue
            for entry in unit.entries:
                if entry.value("size", active) != FILL:
                    cost = self.layout.entry_at(unit, entry, grouping, active)
                    stored, trained = stored + cost.stored, trained + cost.trained
                    continue
                settings = self.layout.settings(entry, tuple(active.get(name) for name in entry.counted_names))
                for at in self.layout.positions(unit, entry, active):
                    roles = self._roles(entry, at, settings)
                    filled += [(at, self._cost_of(entry, at, role, settings)) for role in roles]
        weights = self._weights_of(active)
        sharing = Counter(at for at, _ in filled)
        blocks = Counter(Block(weights[at] / sharing[at], *cost) for at, cost in filled)
        return _Part(stored, trained, tuple(blocks.items()))

    # ---- what both go by

    def _sizes(self, blocks: dict[Block, int], stored: int, trained: int) -> dict[Block, int]:
        assert self.layout.budget is not None
        target = int(self.fraction * self.layout.budget + 1e-6)
        return fill_sizes(blocks, target - stored, None if self.max_trained is None else self.max_trained - trained)

    def _roles(self, entry: Entry, at: Position, settings: dict[str, Scalar]) -> tuple[str, ...]:
        layer = self.layout.anatomy.layer(*at)
        assert layer is not None
        return entry.roles_at(layer, settings["roles"])

    def _cost_of(self, entry: Entry, at: Position, role: str, settings: dict[str, Scalar]) -> PerSize:
        options = entry.all_options(settings)
        layer = self.layout.anatomy.layer(*at)
        assert layer is not None
        key = (entry.kind, self.layout.type_of(at), role, *options.items())
        found = self._per_size.get(key)
        if found is None:
            kind = MODULES[entry.kind]
            stored, more = (kind.count(layer, role, size, options) for size in (1, 2))
            trained, train_more = (kind.count_trained(layer, role, size, options) for size in (1, 2))
            found = self._per_size[key] = (stored, more - stored, trained, train_more - trained)
        return found

    def _weights_of(self, active: Params) -> dict[Position, float]:
        allocation = str(self.layout.structure.value("allocation", active))
        if allocation not in self._weights:
            self._weights[allocation] = layer_weights(self.layout.anatomy, allocation)
        return self._weights[allocation]


@lru_cache(maxsize=100_000)
def _place(
    stack: str, layer: int, role: str, module: str, size: int, options: tuple[tuple[str, Scalar], ...]
) -> Placement:
    return place(stack, layer, role, module, size, dict(options))
