"""A search space as it is on one model: units that share settings, the module entries in them, the dimensions.

A unit is the whole model, a layer group, or one layer. An entry is one module in one unit.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from autopeft.space.anatomy import Anatomy, Layer
from autopeft.space.architecture import Placement
from autopeft.space.choices import FILL, share_of
from autopeft.space.modules import MODULES, WITHOUT_GATE, Scalar
from autopeft.space.parameters import Choices, Domain, Interval, Parameter, Params

FUSED = {"attn.q": "attn.qkv", "attn.k": "attn.qkv", "attn.v": "attn.qkv"}

Position = tuple[str, int]
"""(stack, index of the layer in it)."""


@dataclass(frozen=True)
class EntryDepth:
    """The entry is only in the first or last k layers of a stack; k is a constant or the parameter `name`."""

    name: str
    side: Literal["first", "last"]
    values: tuple[int, ...]
    is_searched: bool
    is_local: bool
    """Of one entry that is per model, and only where that is on; else shared by all entries of the module."""

    def reaches(self, index: int, n_layers: int, k: int) -> bool:
        """Whether layer `index` of a stack of `n_layers` is among its first (last) k."""
        return index < k if self.side == "first" else index >= n_layers - k

    def value(self, active: Params) -> int:
        return int(active.get(self.name, self.values[0]))

    def covering(self, index: int, n_layers: int) -> frozenset[Scalar]:
        """The values that reach layer `index`."""
        return frozenset(k for k in self.values if self.reaches(index, n_layers, k))


@dataclass(frozen=True)
class Entry:
    """One module in one unit: each setting is a constant or the name of a parameter."""

    index: int
    """Among all entries of the space."""
    module: str
    """The entry's name in the YAML."""
    prefix: str
    kind: str
    settings: tuple[tuple[str, Domain | Scalar], ...]
    """`size`, `roles` and the kind's options."""
    role_map: tuple[tuple[str, tuple[str, ...]], ...]
    """Each choice of `roles` → canonical roles."""
    depth: EntryDepth | None = None
    mask: tuple[Position, ...] = ()
    """Layers that the entry has a switch of its own for."""
    parameters: tuple[Parameter, ...] = ()
    """Its dimensions, switches of layers and depth apart."""

    @property
    def size_name(self) -> str:
        return f"{self.prefix}.size"

    def option_name(self, option: str) -> str:
        return f"{self.prefix}.{option}"

    def switch_name(self, position: Position) -> str:
        return f"{self.prefix}.layer.{position[0]}.{position[1]}"

    @cached_property
    def is_everywhere(self) -> bool:
        """In all layers of its unit, but for switches that all modules share."""
        return self.depth is None and not self.mask

    @cached_property
    def _by_name(self) -> dict[str, Domain | Scalar]:
        return dict(self.settings)

    @cached_property
    def options(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.settings if name not in ("size", "roles"))

    @cached_property
    def counted(self) -> tuple[tuple[str, Parameter], ...]:
        """(setting, parameter) of the searched settings that a count of parameters may hang on."""
        by_name = {parameter.name: parameter for parameter in self.parameters}
        return tuple(
            (setting, by_name[self.option_name(setting)])
            for setting, domain in self.settings
            if isinstance(domain, Choices) and setting not in WITHOUT_GATE and self.option_name(setting) in by_name
        )

    @cached_property
    def counted_names(self) -> tuple[str, ...]:
        return tuple(parameter.name for _, parameter in self.counted)

    def values(self, name: str) -> tuple[Scalar, ...]:
        """All values a setting may have (the ends of an interval)."""
        setting = self._by_name[name]
        if isinstance(setting, Choices):
            return setting.values
        return (setting.low, setting.high) if isinstance(setting, Interval) else (setting,)

    @property
    def sizes(self) -> tuple[Scalar, ...]:
        return self.values("size")

    @property
    def size_parameter(self) -> bool:
        return isinstance(self._by_name["size"], Choices)

    def value(self, name: str, active: Params) -> Scalar:
        """The setting's value; that of an inactive parameter is its first, which is then without effect."""
        setting = self._by_name[name]
        if isinstance(setting, Choices | Interval):
            return active.get(self.option_name(name), self.values(name)[0])
        return setting

    def all_options(self, settings: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """The kind's options in canonical form, as these settings have them or else at their defaults."""
        options = MODULES[self.kind].options
        defaults = {name: option.default for name, option in options.items()}
        return defaults | {name: options[name].canonical(settings[name]) for name in self.options}

    def roles_at(self, layer: Layer, text: Scalar) -> tuple[str, ...]:
        """The roles of this choice that the layer has; q, k and v of a fused projection are `attn.qkv`."""
        supports = MODULES[self.kind].supports
        found = []
        for role in dict(self.role_map)[str(text)]:
            here = role if supports(layer, role) else FUSED.get(role, role)
            if supports(layer, here) and here not in found:
                found.append(here)
        return tuple(found)

    def owns(self, placement: Placement) -> bool:
        roles = {role for _, roles in self.role_map for role in roles}
        return placement.module == self.kind and (
            placement.role in roles or any(FUSED.get(role) == placement.role for role in roles)
        )

    def read(self, placements: Sequence[Placement], anatomy: Anatomy, prefer_fill: bool) -> dict[str, Scalar]:
        """The entry's parameters, read off the placements it owns (all alike; `decode` will tell if they are not).

        A size that follows from the budget is left to the caller, who knows the budget, unless it is `fill`.
        """
        if not placements:
            return {self.size_name: 0} if self.size_parameter else {}
        first = placements[0]
        layer = anatomy.layer(first.stack, first.layer)
        assert layer is not None
        params: dict[str, Scalar] = {}
        if self.size_parameter:
            fills = FILL in self.sizes and (prefer_fill or first.size not in self.sizes)
            params[self.size_name] = FILL if fills else first.size
        roles = {p.role for p in placements if (p.stack, p.layer) == (first.stack, first.layer)}
        for text in self.values("roles"):
            if set(self.roles_at(layer, text)) == roles:
                params[self.option_name("roles")] = text
                break
        for name in self.options:
            params[self.option_name(name)] = first.option(name)
        return params

    @cached_property
    def shares(self) -> tuple[str, ...]:
        """Those of its sizes that are shares of the budget."""
        return tuple(str(size) for size in self.sizes if share_of(size) is not None)


@dataclass(frozen=True)
class Unit:
    """What shares settings."""

    name: str
    entries: tuple[Entry, ...]
    group: int | None = None
    position: Position | None = None
    tuned_name: str | None = None
    """The switch that leaves the whole group out, where there is one."""
    must_hold: bool = False
    """A tuned unit holds at least one module."""

    def holds(self, at: Position, groups: Mapping[Position, int]) -> bool:
        """Whether the layer at (stack, index) belongs to the unit."""
        if self.group is not None:
            return groups.get(at) == self.group
        return self.position is None or self.position == at


@dataclass(frozen=True)
class Structure:
    """A compiled space."""

    parameters: tuple[Parameter, ...]
    units: tuple[Unit, ...]
    constants: tuple[tuple[str, Scalar], ...]
    """Structural settings that are not searched: `groups`, `pattern`, `allocation`."""
    exclude: tuple[tuple[tuple[str, str, frozenset[Scalar]], ...], ...] = ()
    """Combinations that are not allowed in a unit: (module, setting, values), all of which hold together."""
    notes: tuple[str, ...] = ()
    fills: bool = False
    """Some size is `fill` or a share of the budget."""
    mask: tuple[Position, ...] = field(default=())
    """Layers with an on/off switch for all modules."""

    @cached_property
    def depths(self) -> tuple[EntryDepth, ...]:
        """The searched depths that the entries of a module share."""
        found = [entry.depth for unit in self.units for entry in unit.entries if entry.depth is not None]
        return tuple({depth.name: depth for depth in found if depth.is_searched and not depth.is_local}.values())

    @cached_property
    def _constants(self) -> dict[str, Scalar]:
        return dict(self.constants)

    def value(self, name: str, active: Params) -> Scalar:
        return active[name] if name in active else self._constants[name]

    def is_layer_on(self, position: Position, active: Params) -> bool:
        return position not in self.mask or bool(active.get(switch_name(position), False))

    def in_force(self, active: Params) -> Iterator[Unit]:
        """The units that exist and are tuned at this point."""
        n_groups = int(self.value("groups", active))
        for unit in self.units:
            if self.is_in_force(unit, n_groups, active):
                yield unit

    def is_in_force(self, unit: Unit, n_groups: int, active: Params) -> bool:
        if unit.group is not None and unit.group > n_groups:
            return False
        return unit.tuned_name is None or bool(active.get(unit.tuned_name, False))

    @cached_property
    def owners(self) -> dict[str, tuple[Unit, Entry]]:
        """The unit and entry of every parameter that only one entry's parameters hang on."""
        found: dict[str, tuple[Unit, Entry]] = {}
        for unit in self.units:
            for entry in unit.entries:
                names = [parameter.name for parameter in entry.parameters]
                names += [entry.switch_name(at) for at in entry.mask]
                found |= dict.fromkeys(names, (unit, entry))
        return found

    @cached_property
    def uncounted(self) -> frozenset[str]:
        """Parameters of no entry that no least count hangs on."""
        return frozenset(p.name for p in self.parameters if p.is_training or p.name == "allocation")

    @cached_property
    def watched(self) -> dict[str, tuple[frozenset[Scalar], ...]]:
        """Parameter → the sets of its values that other parameters are active with."""
        found: dict[str, tuple[frozenset[Scalar], ...]] = {}
        for parameter in self.parameters:
            for parent, values in (*parameter.conditions, *parameter.any_of):
                found[parent] = tuple({*found.get(parent, ()), values})
        return found

    def breaches(self, active: Params) -> Iterator[Unit]:
        """Units that hold no module although they must, or hold a combination that is not allowed."""
        for unit in self.in_force(active):
            holds_nothing = unit.must_hold and all(entry.value("size", active) == 0 for entry in unit.entries)
            if holds_nothing or self.excluded_in(unit, active):
                yield unit

    @cached_property
    def is_constrained(self) -> bool:
        """Whether there is anything that `breaches` could find."""
        return bool(self.exclude) or any(unit.must_hold for unit in self.units)

    def excluded_in(self, unit: Unit, active: Params) -> bool:
        """Whether the unit's settings match one of the exclusions."""
        for exclusion in self.exclude:
            by_module = {entry.module: entry for entry in unit.entries}
            if all(
                module in by_module and matches(by_module[module], setting, values, active)
                for module, setting, values in exclusion
            ):
                return True
        return False


def matches(entry: Entry, setting: str, values: frozenset[Scalar], active: Params) -> bool:
    """One condition of an exclusion; an option counts only where the module is on."""
    size = entry.value("size", active)
    if not setting:
        return ("on" if size != 0 else "off") in values
    return entry.value(setting, active) in values and (setting == "size" or size != 0)


def switch_name(position: Position) -> str:
    """The parameter that switches a layer for all modules."""
    return f"layer.{position[0]}.{position[1]}"
