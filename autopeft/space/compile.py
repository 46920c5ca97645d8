"""From a `SpaceSpec` and an `Anatomy` to the dimensions of the space and the units that hold its modules.

What the model cannot hold is left out and said in a note; nothing is left out silently.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count

from autopeft.errors import ConfigError
from autopeft.space.anatomy import Anatomy
from autopeft.space.choices import (
    GroupLists,
    Halvings,
    Range,
    Shares,
    SizeRange,
    as_tuple,
    expand_roles,
    size_order,
)
from autopeft.space.groups import group_of_layers, groups_of_lists
from autopeft.space.modules import MODULES, WITHOUT_GATE, Scalar
from autopeft.space.parameters import Choices, Domain, Interval, Parameter
from autopeft.space.spec import TRAINING_FIELDS, Condition, ModuleSpec, SpaceSpec
from autopeft.space.units import FUSED, Entry, EntryDepth, Position, Structure, Unit, switch_name

_GROUPING = ("groups", "pattern")


@dataclass
class _Compiling:
    """What grows while a space is compiled."""

    spec: SpaceSpec
    anatomy: Anatomy
    parameters: list[Parameter] = field(default_factory=list)
    constants: list[tuple[str, Scalar]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=count)
    fused_away: frozenset[str] = frozenset()
    """Modules whose site is one with that of an earlier module, since the model's projection is fused."""

    def structural(
        self,
        name: str,
        values: tuple[Scalar, ...],
        ordered: bool = False,
        parents: tuple[tuple[str, frozenset[Scalar]], ...] = (),
    ) -> None:
        """A dimension where there is a choice, else a constant."""
        if len(values) > 1:
            self.parameters.append(Parameter(name, Choices(values, ordered), parents))
        self.constants.append((name, values[0]))


def compile_space(spec: SpaceSpec, anatomy: Anatomy) -> Structure:
    """
    Raises:
        ConfigError: nothing of the space can stand in this model.
    """
    compiling = _Compiling(spec, anatomy, notes=list(anatomy.notes))
    parameters, notes = compiling.parameters, compiling.notes
    counts = _group_counts(compiling)
    compiling.structural("groups", counts, ordered=True)
    patterns = as_tuple(spec.layers.pattern) if counts[-1] > 1 else as_tuple(spec.layers.pattern)[:1]
    several = (("groups", frozenset(n for n in counts if n != 1)),) if len(counts) > 1 and counts[0] == 1 else ()
    compiling.structural("pattern", tuple(dict.fromkeys(patterns)), parents=several)
    compiling.structural("allocation", tuple(dict.fromkeys(as_tuple(spec.layers.allocation))))
    mask = tuple((stack, index) for stack, index, _ in anatomy.layers) if spec.layers.mask else ()
    parameters += [Parameter(switch_name(position), Choices((False, True))) for position in mask]
    depths = {name: depth for name in spec.modules if (depth := _depth(compiling, name)) is not None}
    parameters += [
        Parameter(d.name, Choices(d.values, ordered=True)) for d in depths.values() if d.is_searched and not d.is_local
    ]
    compiling.fused_away = _fused_away(compiling)
    units = tuple(_units(compiling, counts, depths))
    if not units:
        raise ConfigError([f"search space '{spec.title}': nothing of it can stand in a {anatomy.model_type} model"])
    for setting, choice in spec.training.items():
        parameters.append(Parameter(str(setting), _domain(choice, ordered=True), is_training=True))
    parameters += _own_training(spec, units)
    fills = any(isinstance(size, str) for unit in units for entry in unit.entries for size in entry.sizes)
    used = {entry.depth.name for unit in units for entry in unit.entries if entry.depth}
    kept = [p for p in parameters if not p.name.endswith(".depth") or p.name in used]
    exclude = tuple(tuple(_condition(key, value) for key, value in exclusion.items()) for exclusion in spec.exclude)
    return Structure(
        tuple(kept), units, tuple(compiling.constants), exclude, tuple(dict.fromkeys(notes)), fills, mask
    )  # fmt: skip


def _own_training(spec: SpaceSpec, units: tuple[Unit, ...]) -> Iterator[Parameter]:
    """Training settings of single kinds of modules, active while some module of the kind is on."""
    for name, module in spec.modules.items():
        kind = spec.kind_of(name)
        entries = [(unit, entry) for unit in units for entry in unit.entries if entry.kind == kind]
        for setting in TRAINING_FIELDS if entries else ():
            choice = getattr(module, setting)
            if choice is not None:
                yield Parameter(
                    f"{name}.{setting}",
                    _domain(choice, ordered=True),
                    is_training=True,
                    setting=f"modules.{kind}.{setting}",
                    any_of=_while_on(entries),
                )


def _while_on(entries: list[tuple[Unit, Entry]]) -> tuple[tuple[str, frozenset[Scalar]], ...]:
    """Conditions of which one holds while one of the entries is on; none where one always is."""
    conditions: dict[tuple[str, frozenset[Scalar]], None] = {}
    for unit, entry in entries:
        if entry.size_parameter:
            conditions[entry.size_name, frozenset(size for size in entry.sizes if size != 0)] = None
        elif entry.sizes[0] != 0:
            if unit.tuned_name is None:
                return ()
            conditions[unit.tuned_name, frozenset((True,))] = None
    return tuple(conditions)


def layer_groups(spec: SpaceSpec, anatomy: Anatomy, n_groups: int, pattern: str) -> dict[Position, int]:
    """(stack, layer) → group, from 1."""
    if isinstance(spec.layers.groups, GroupLists):
        return groups_of_lists(anatomy, spec.layers.groups.lists)
    return group_of_layers(anatomy, n_groups, pattern)


def _group_counts(compiling: _Compiling) -> tuple[int, ...]:
    """The numbers of groups that make a difference on this model."""
    layers, anatomy = compiling.spec.layers, compiling.anatomy
    longest = max(len(stack.layers) for stack in anatomy.stacks)
    if isinstance(layers.groups, GroupLists):
        absent = sorted(layer for group in layers.groups.lists for layer in group if layer >= longest)
        if absent:
            compiling.notes.append(f"groups: layers {', '.join(map(str, absent))} are not in {anatomy.model_type}")
        return layers.group_counts
    if layers.group_counts[-1] > longest:
        compiling.notes.append(f"groups: {anatomy.model_type} has {longest} layers and at most as many groups")
    return tuple(dict.fromkeys(min(n, longest) for n in layers.group_counts))


def _fused_away(compiling: _Compiling) -> frozenset[str]:
    """Modules that would stand beside another one of their kind at `attn.qkv`; the first one stays."""
    spec, anatomy = compiling.spec, compiling.anatomy
    first: dict[str, str] = {}
    found = set()
    for name in spec.modules:
        kind = MODULES[spec.kind_of(name)]
        roles = {role for roles in spec.roles_of(name) for role in roles}
        fused = {FUSED[role] for role in roles if role in FUSED} | {role for role in roles if role in FUSED.values()}
        if any(kind.supports(layer, role) for _, _, layer in anatomy.layers for role in fused):
            other = first.setdefault(kind.name, name)
            if other != name:
                found.add(name)
                compiling.notes.append(
                    f"{name}: query, key and value are one map of {anatomy.model_type}, which has {other}; left out"
                )
    return frozenset(found)


def _depth(compiling: _Compiling, name: str) -> EntryDepth | None:
    """The module's depth, without values that are the same on this model; None where it is in all layers."""
    given, anatomy = compiling.spec.modules[name].depth, compiling.anatomy
    if given is None:
        return None
    longest = max(len(stack.layers) for stack in anatomy.stacks)
    values = tuple(sorted({min(k, longest) for k in given.values}))
    if len(values) < len(set(given.values)):
        compiling.notes.append(f"{name}: {anatomy.model_type} has {longest} layers; larger depths are left out")
    is_local = compiling.spec.modules[name].per == "model"
    return EntryDepth(
        f"{name}.depth", "first" if given.first is not None else "last", values, len(values) > 1, is_local
    )


def _units(compiling: _Compiling, counts: tuple[int, ...], depths: dict[str, EntryDepth]) -> Iterator[Unit]:
    spec = compiling.spec
    for name, group, position, per in _unit_frames(compiling, counts):
        parents: tuple[tuple[str, frozenset[Scalar]], ...] = ()
        if group is not None and len(counts) > 1 and group > counts[0]:
            parents = (("groups", frozenset(n for n in counts if n >= group)),)
        tuned = f"{name}.tuned" if group is not None and spec.layers.tuned == "any" else None
        if tuned:
            compiling.parameters.append(Parameter(tuned, Choices((False, True)), parents))
            parents = ((tuned, frozenset((True,))),)
        entries = []
        for module_name, module in spec.modules.items():
            if module.per != per or module_name in compiling.fused_away:
                continue
            prefix = module_name if per == "model" else f"{name}.{module_name}"
            entry = _entry(compiling, prefix, module_name, position, depths.get(module_name), parents)
            if entry is not None:
                if module.mask:
                    entry = replace(entry, mask=tuple(switches := _maskable(compiling, group, counts)))
                entries.append(entry)
                compiling.parameters += entry.parameters
                if module.mask:
                    compiling.parameters += _switches(entry, compiling.anatomy, parents, switches)
        if entries:
            yield Unit(name, tuple(entries), group, position, tuned, spec.at_least_one and group is not None)


def _unit_frames(
    compiling: _Compiling, counts: tuple[int, ...]
) -> Iterator[tuple[str, int | None, Position | None, str]]:
    """(name, group, position, which `per` it holds) of every unit that some module asks for."""
    kinds = {module.per for module in compiling.spec.modules.values()}
    if "model" in kinds:
        yield "model", None, None, "model"
    if "group" in kinds:
        for group in range(1, counts[-1] + 1):
            yield f"g{group}", group, None, "group"
    if "layer" in kinds:
        for stack, index, _ in compiling.anatomy.layers:
            yield f"{stack}.{index}", None, (stack, index), "layer"


def _entry(
    compiling: _Compiling,
    prefix: str,
    name: str,
    position: Position | None,
    depth: EntryDepth | None,
    parents: tuple[tuple[str, frozenset[Scalar]], ...],
) -> Entry | None:
    """The module in a unit; None where the unit has no place for it."""
    spec, anatomy, notes = compiling.spec, compiling.anatomy, compiling.notes
    module, kind = spec.modules[name], MODULES[spec.kind_of(name)]
    layers = [layer for stack, index, layer in anatomy.layers if position is None or position == (stack, index)]
    role_map: dict[str, tuple[str, ...]] = {}
    seen: set[frozenset[str]] = set()
    default = ",".join(role.rsplit(".", 1)[-1] for role in kind.default_roles)
    for text in map(str, as_tuple(module.roles or default)):
        roles = expand_roles(text, kind.roles)
        real = frozenset(
            here
            for role in roles
            for here in (role, FUSED.get(role, role))
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
    if depth is not None and position is not None:
        n_layers = next(len(stack.layers) for stack in anatomy.stacks if stack.name == position[0])
        covering = depth.covering(position[1], n_layers)
        if not covering:
            return None
        if depth.is_searched and len(covering) < len(depth.values):
            parents = (*parents, (depth.name, covering))
    settings: list[tuple[str, Domain | Scalar]] = [
        ("size", _sizes(module, anatomy)),
        ("roles", _constant(Choices(tuple(role_map)))),
    ]
    for option, choice in spec.options_of(name).items():
        domain = _domain(choice)
        if isinstance(domain, Choices) and "mean" in domain.values and anatomy.is_causal:
            notes.append(f"{name}: a mean gate would look ahead in a causal model; left out")
            domain = Choices(tuple(v for v in domain.values if v != "mean") or ("none",))
        settings.append((option, _constant(domain)))
    entry = Entry(next(compiling.numbers), name, prefix, kind.name, tuple(settings), tuple(role_map.items()), depth)
    return replace(entry, parameters=tuple(_entry_parameters(entry, parents)))


def _entry_parameters(entry: Entry, parents: tuple[tuple[str, frozenset[Scalar]], ...]) -> Iterator[Parameter]:
    settings = dict(entry.settings)
    size = settings["size"]
    if isinstance(size, Choices):
        yield Parameter(entry.size_name, size, parents)
        parents += ((entry.size_name, frozenset(v for v in size.values if v != 0)),)
    elif size == 0:
        return
    if entry.depth is not None and entry.depth.is_local and entry.depth.is_searched:
        yield Parameter(entry.depth.name, Choices(entry.depth.values, ordered=True), parents)
    gate = settings.get("gate", "none")
    ordered = sorted((item for item in entry.settings if item[0] != "size"), key=lambda item: item[0] in WITHOUT_GATE)
    for name, domain in ordered:
        if not isinstance(domain, Choices | Interval):
            continue
        conditions = parents
        if name in WITHOUT_GATE:
            if isinstance(gate, Choices):
                conditions += ((entry.option_name("gate"), frozenset(("none",))),)
            elif gate != "none":
                continue
        yield Parameter(entry.option_name(name), domain, conditions)


Conditions = tuple[tuple[str, frozenset[Scalar]], ...]


def _maskable(compiling: _Compiling, group: int | None, counts: tuple[int, ...]) -> dict[Position, Conditions]:
    """Layers that may be in the group (of all, where there is none) → when they are."""
    spec, anatomy = compiling.spec, compiling.anatomy
    everywhere = [(stack, index) for stack, index, _ in anatomy.layers]
    if group is None:
        return dict.fromkeys(everywhere, ())
    # Numbers of groups and patterns are not both searched where groups are masked, so that one of them decides.
    name, values = next(
        (
            (p.name, p.domain.values)
            for p in compiling.parameters
            if p.name in _GROUPING and isinstance(p.domain, Choices)
        ),
        ("groups", (counts[0],)),
    )
    constants = dict(compiling.constants)
    holding: dict[Position, set[Scalar]] = {}
    for value in values:
        grouping = {**constants, name: value}
        for at, number in layer_groups(spec, anatomy, int(grouping["groups"]), str(grouping["pattern"])).items():
            if number == group:
                holding.setdefault(at, set()).add(value)
    return {
        at: () if len(holding[at]) == len(values) else ((name, frozenset(holding[at])),)
        for at in everywhere
        if at in holding
    }


def _switches(
    entry: Entry, anatomy: Anatomy, parents: Conditions, layers: dict[Position, Conditions]
) -> Iterator[Parameter]:
    """The entry's own on/off switches of layers."""
    lengths = {stack.name: len(stack.layers) for stack in anatomy.stacks}
    size = dict(entry.settings)["size"]
    if isinstance(size, Choices):
        parents = ((entry.size_name, frozenset(v for v in size.values if v != 0)),)
    for position, of_group in layers.items() if size != 0 else ():
        conditions = parents + of_group
        if entry.depth is not None:
            covering = entry.depth.covering(position[1], lengths[position[0]])
            if not covering:
                continue
            if entry.depth.is_searched:
                conditions += ((entry.depth.name, covering),)
        yield Parameter(entry.switch_name(position), Choices((False, True)), conditions)


def _condition(key: str, value: Condition) -> tuple[str, str, frozenset[Scalar]]:
    module, _, setting = key.partition(".")
    return module, setting, frozenset(as_tuple(value))


def _sizes(module: ModuleSpec, anatomy: Anatomy) -> Domain | Scalar:
    if isinstance(module.size, Halvings):
        sizes: tuple[Scalar, ...] = tuple(sorted({anatomy.hidden >> k for k in range(module.size.halvings + 1)}))
    elif isinstance(module.size, SizeRange | Shares):
        sizes = module.size.sizes
    else:
        sizes = tuple(sorted(dict.fromkeys(as_tuple(module.size)), key=size_order))
    return sizes[0] if len(sizes) == 1 else Choices(sizes, ordered=True)


def _domain(choice: Scalar | tuple[Scalar, ...] | Range, ordered: bool = False) -> Domain:
    if isinstance(choice, Range):
        return Interval(choice.low, choice.high, choice.log)
    values = tuple(dict.fromkeys(as_tuple(choice)))
    numeric = all(isinstance(value, float | int) for value in values)
    return Choices(tuple(sorted(values, key=float)) if numeric else values, ordered=ordered or numeric)


def _constant(domain: Domain) -> Domain | Scalar:
    return domain.values[0] if isinstance(domain, Choices) and len(domain.values) == 1 else domain
