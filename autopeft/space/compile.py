"""From a `SpaceSpec` and an `Anatomy` to the dimensions of the space and the units that hold its modules.

A unit is what shares settings: the whole model, a layer group, or one layer. What the model cannot hold is left out and
said in a note; nothing is left out silently.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from autopeft.errors import ConfigError
from autopeft.space.anatomy import Anatomy
from autopeft.space.architecture import Placement
from autopeft.space.modules import MODULES, WITHOUT_GATE, Scalar
from autopeft.space.parameters import Choices, Domain, Interval, Parameter, Params
from autopeft.space.spec import FILL, Halvings, ModuleSpec, Range, SpaceSpec, as_tuple, expand_roles

_FUSED = {"attn.q": "attn.qkv", "attn.k": "attn.qkv", "attn.v": "attn.qkv"}


@dataclass(frozen=True)
class Entry:
    """One module in one unit: each setting is a constant or the name of a parameter."""

    prefix: str
    kind: str
    settings: tuple[tuple[str, Domain | Scalar], ...]
    """`size`, `roles` and the kind's options."""
    role_map: tuple[tuple[str, tuple[str, ...]], ...]
    """Each choice of `roles` → canonical roles."""

    @property
    def size_name(self) -> str:
        return f"{self.prefix}.size"

    def option_name(self, option: str) -> str:
        return f"{self.prefix}.{option}"

    @property
    def options(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.settings if name not in ("size", "roles"))

    def values(self, name: str) -> tuple[Scalar, ...]:
        """All values a setting may have (the ends of an interval)."""
        setting = dict(self.settings)[name]
        if isinstance(setting, Choices):
            return setting.values
        return (setting.low, setting.high) if isinstance(setting, Interval) else (setting,)

    @property
    def sizes(self) -> tuple[Scalar, ...]:
        return self.values("size")

    @property
    def role_values(self) -> tuple[Scalar, ...]:
        return self.values("roles")

    @property
    def size_parameter(self) -> bool:
        return isinstance(dict(self.settings)["size"], Choices)

    def value(self, name: str, active: Params) -> Scalar:
        """The setting's value; that of an inactive parameter is its first, which is then without effect."""
        setting = dict(self.settings)[name]
        if isinstance(setting, Choices | Interval):
            return active.get(self.option_name(name), self.values(name)[0])
        return setting

    def roles_at(self, anatomy: Anatomy, stack: str, index: int, text: Scalar) -> tuple[str, ...]:
        """The roles of this choice that the layer has; q, k and v of a fused projection are `attn.qkv`."""
        layer = anatomy.layer(stack, index)
        assert layer is not None
        supports = MODULES[self.kind].supports
        found = []
        for role in dict(self.role_map)[str(text)]:
            here = role if supports(layer, role) else _FUSED.get(role, role)
            if supports(layer, here) and here not in found:
                found.append(here)
        return tuple(found)

    def owns(self, placement: Placement) -> bool:
        roles = {role for _, roles in self.role_map for role in roles}
        return placement.module == self.kind and (
            placement.role in roles or any(_FUSED.get(role) == placement.role for role in roles)
        )

    def read(self, placements: Sequence[Placement], anatomy: Anatomy) -> dict[str, Scalar]:
        """The entry's parameters, read off the placements it owns (all alike; `decode` will tell if they are not)."""
        if not placements:
            return {self.size_name: 0} if self.size_parameter else {}
        first = placements[0]
        params: dict[str, Scalar] = {}
        if self.size_parameter:
            params[self.size_name] = FILL if FILL in self.sizes else first.size
        roles = tuple(p.role for p in placements if (p.stack, p.layer) == (first.stack, first.layer))
        for text in self.role_values:
            if set(self.roles_at(anatomy, first.stack, first.layer, text)) == set(roles):
                params[self.option_name("roles")] = text
                break
        for name in self.options:
            params[self.option_name(name)] = first.option(name)
        return params


@dataclass(frozen=True)
class Unit:
    """What shares settings."""

    name: str
    entries: tuple[Entry, ...]
    group: int | None = None
    position: tuple[str, int] | None = None
    tuned_name: str | None = None
    """The switch that leaves the whole group out, where there is one."""
    must_hold: bool = False
    """A tuned unit holds at least one module."""

    def holds(self, at: tuple[str, int], groups: dict[tuple[str, int], int]) -> bool:
        """Whether the layer at (stack, index) belongs to the unit."""
        if self.group is not None:
            return groups[at] == self.group
        return self.position is None or self.position == at


@dataclass(frozen=True)
class Structure:
    """A compiled space."""

    parameters: tuple[Parameter, ...]
    units: tuple[Unit, ...]
    constants: tuple[tuple[str, Scalar], ...]
    """Structural settings that are not searched: `pattern`, `allocation`."""
    notes: tuple[str, ...] = ()
    fills: bool = False
    """Some size is `fill`."""
    mask: frozenset[tuple[str, int]] = field(default=frozenset())
    """Layers with an on/off switch."""

    def value(self, name: str, active: Params) -> Scalar:
        return active[name] if name in active else dict(self.constants)[name]

    def is_layer_on(self, stack: str, index: int, active: Params) -> bool:
        return (stack, index) not in self.mask or bool(active.get(f"layer.{stack}.{index}", False))

    def units_to_hold(self, active: Params) -> Iterator[Unit]:
        """Tuned units that hold no module although they must."""
        for unit in self.units:
            tuned = unit.tuned_name is None or bool(active.get(unit.tuned_name, False))
            if unit.must_hold and tuned and all(entry.value("size", active) == 0 for entry in unit.entries):
                yield unit

    @property
    def cardinality(self) -> int:
        """Points that hold at least one module."""
        total, empty = 1, 1
        for unit in self.units:
            points, all_off = _unit_points(unit)
            total, empty = total * points, empty * all_off
        structural = math.prod(
            len(p.domain.values)
            for p in self.parameters
            if p.name in ("pattern", "allocation") and isinstance(p.domain, Choices)
        )
        masks = 2 ** len(self.mask) - 1 if self.mask else 1
        return structural * masks * (total - empty)


def _unit_points(unit: Unit) -> tuple[int, int]:
    """(points of the unit, those of them that hold nothing)."""
    points, all_off = 1, 1
    for entry in unit.entries:
        on = sum(1 for size in entry.sizes if size != 0)
        off = len(entry.sizes) - on
        points *= off + on * _option_points(entry)
        all_off *= off
    if unit.must_hold:
        points, all_off = points - all_off, 0
    return (points + 1, all_off + 1) if unit.tuned_name else (points, all_off)


def _option_points(entry: Entry) -> int:
    """Combinations of a module's options; alpha and the like count only where no gate takes their place."""
    lengths = {name: len(s.values) for name, s in entry.settings if isinstance(s, Choices) and name != "size"}
    ungated = math.prod(lengths.pop(name, 1) for name in WITHOUT_GATE)
    free = math.prod(lengths.values())
    if ungated == 1 or "gate" not in entry.options:
        return free * ungated
    gates = entry.values("gate")
    return free // len(gates) * (len(gates) - 1 + ungated if "none" in gates else len(gates))


def compile_space(spec: SpaceSpec, anatomy: Anatomy) -> Structure:
    """
    Raises:
        ConfigError: nothing of the space can stand in this model.
    """
    parameters: list[Parameter] = []
    constants: list[tuple[str, Scalar]] = []
    notes: list[str] = list(anatomy.notes)
    for name, structural in (("pattern", spec.layers.pattern), ("allocation", spec.layers.allocation)):
        values = as_tuple(structural)
        if len(values) > 1:
            parameters.append(Parameter(name, Choices(tuple(values))))
        else:
            constants.append((name, values[0]))
    mask = [(stack, index) for stack, index, _ in anatomy.layers] if spec.layers.mask else []
    parameters += [Parameter(f"layer.{stack}.{index}", Choices((False, True))) for stack, index in mask]
    units = []
    for unit_name, group, position, per in _unit_frames(spec, anatomy):
        tuned = f"{unit_name}.tuned" if group is not None and spec.layers.tuned == "any" else None
        if tuned:
            parameters.append(Parameter(tuned, Choices((False, True))))
        entries = []
        for name, module in spec.modules.items():
            if module.per != per:
                continue
            prefix = name if per == "model" else f"{unit_name}.{name}"
            entry = _entry(prefix, name, module, spec, anatomy, position, notes)
            if entry is not None:
                entries.append(entry)
                parameters += _entry_parameters(entry, tuned)
        if entries:
            must_hold = spec.at_least_one and group is not None
            units.append(Unit(unit_name, tuple(entries), group, position, tuned, must_hold))
    if not units:
        raise ConfigError([f"search space '{spec.title}': nothing of it can stand in a {anatomy.model_type} model"])
    for setting, choice in spec.training.items():
        parameters.append(Parameter(str(setting), _domain(choice, ordered=True), is_training=True))
    fills = any(FILL in entry.sizes for unit in units for entry in unit.entries)
    return Structure(
        tuple(parameters), tuple(units), tuple(constants), tuple(dict.fromkeys(notes)), fills, frozenset(mask)
    )


def _unit_frames(spec: SpaceSpec, anatomy: Anatomy) -> Iterator[tuple[str, int | None, tuple[str, int] | None, str]]:
    """(name, group, position, which `per` it holds) of every unit that some module asks for."""
    kinds = {module.per for module in spec.modules.values()}
    if "model" in kinds:
        yield "model", None, None, "model"
    if "group" in kinds:
        for group in range(1, min(spec.layers.groups, max(len(s.layers) for s in anatomy.stacks)) + 1):
            yield f"g{group}", group, None, "group"
    if "layer" in kinds:
        for stack, index, _ in anatomy.layers:
            yield f"{stack}.{index}", None, (stack, index), "layer"


def _entry(
    prefix: str,
    name: str,
    module: ModuleSpec,
    spec: SpaceSpec,
    anatomy: Anatomy,
    position: tuple[str, int] | None,
    notes: list[str],
) -> Entry | None:
    kind = MODULES[spec.kind_of(name)]
    layers = [layer for stack, index, layer in anatomy.layers if position is None or position == (stack, index)]
    role_map: dict[str, tuple[str, ...]] = {}
    seen: set[frozenset[str]] = set()
    default = ",".join(role.rsplit(".", 1)[-1] for role in kind.default_roles)
    for text in map(str, as_tuple(module.roles or default)):
        roles = expand_roles(text, kind.roles)
        real = frozenset(
            here
            for role in roles
            for here in (role, _FUSED.get(role, role))
            if any(kind.supports(layer, here) for layer in layers)
        )
        if not real:
            notes.append(f"{name}: {anatomy.model_type} has no place for it at {text}; left out")
        elif real in seen:
            notes.append(f"{name}: sites '{text}' are the same as others on {anatomy.model_type}; left out")
        else:
            seen.add(real)
            role_map[text] = roles
    if not role_map:
        return None
    settings: list[tuple[str, Domain | Scalar]] = [("size", _sizes(module, anatomy)), ("roles", _words(role_map))]
    for option, choice in spec.options_of(name).items():
        domain = _domain(choice)
        if isinstance(domain, Choices) and "mean" in domain.values and anatomy.is_causal:
            notes.append(f"{name}: a mean gate would look ahead in a causal model; left out")
            domain = Choices(tuple(v for v in domain.values if v != "mean") or ("none",))
        settings.append((option, _constant(domain)))
    return Entry(prefix, kind.name, tuple(settings), tuple(role_map.items()))


def _entry_parameters(entry: Entry, tuned: str | None) -> Iterator[Parameter]:
    inside: tuple[tuple[str, frozenset[Scalar]], ...] = ((tuned, frozenset((True,))),) if tuned else ()
    settings = dict(entry.settings)
    size = settings["size"]
    if isinstance(size, Choices):
        yield Parameter(entry.size_name, size, inside)
        inside += ((entry.size_name, frozenset(v for v in size.values if v != 0)),)
    elif size == 0:
        return
    gate = settings.get("gate", "none")
    ordered = sorted((item for item in entry.settings if item[0] != "size"), key=lambda item: item[0] in WITHOUT_GATE)
    for name, domain in ordered:
        if not isinstance(domain, Choices | Interval):
            continue
        conditions = inside
        if name in WITHOUT_GATE:
            if isinstance(gate, Choices):
                conditions += ((entry.option_name("gate"), frozenset(("none",))),)
            elif gate != "none":
                continue
        yield Parameter(entry.option_name(name), domain, conditions)


def _sizes(module: ModuleSpec, anatomy: Anatomy) -> Domain | Scalar:
    if isinstance(module.size, Halvings):
        sizes: tuple[Scalar, ...] = tuple(sorted({anatomy.hidden >> k for k in range(module.size.halvings + 1)}))
    else:
        given = dict.fromkeys(as_tuple(module.size))
        sizes = tuple(sorted(given, key=lambda size: math.inf if size == FILL else float(size)))
    return sizes[0] if len(sizes) == 1 else Choices(sizes, ordered=True)


def _words(role_map: dict[str, tuple[str, ...]]) -> Domain | Scalar:
    return _constant(Choices(tuple(role_map)))


def _domain(choice: Scalar | tuple[Scalar, ...] | Range, ordered: bool = False) -> Domain:
    if isinstance(choice, Range):
        return Interval(choice.low, choice.high, choice.log)
    values = as_tuple(choice)
    numeric = all(isinstance(value, float | int) for value in values)
    return Choices(tuple(sorted(values, key=float)) if numeric else values, ordered=ordered or numeric)


def _constant(domain: Domain) -> Domain | Scalar:
    return domain.values[0] if isinstance(domain, Choices) and len(domain.values) == 1 else domain
