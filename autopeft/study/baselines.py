"""Published configurations as the first trials of a study, each as large as the budget and the space let it be.

A configuration says which kinds of modules stand in which layers, and their sizes relative to one another. Its sizes
are scaled together, each rounded down to one that the space has, as far as the budget allows. Options and sites that
the space does not have take the space's own, which the name then tells; what the space cannot hold is left out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from autopeft.space.anatomy import Anatomy
from autopeft.space.choices import FILL, share_of
from autopeft.space.groups import group_of_layers
from autopeft.space.modules import MODULES, Scalar
from autopeft.space.parameters import Choices, Interval, Parameter, middle, nearest
from autopeft.space.search_space import Candidate, SearchSpace
from autopeft.space.units import FUSED, Entry, Position, Unit

_PATTERN, _GROUPS = "spindle", 4


@dataclass(frozen=True)
class Component:
    """One kind of module in every layer, or in those of one group."""

    kind: str
    roles: frozenset[str]
    size: float
    """Relative to the other components."""
    options: Mapping[str, Scalar] = field(default_factory=dict)
    group: int | None = None
    """Of four groups in the spindle pattern."""


@dataclass(frozen=True)
class Baseline:
    """A published configuration in the searched space."""

    name: str
    candidate: Candidate


def published(anatomy: Anatomy) -> dict[str, tuple[Component, ...]]:
    """The configurations, by name.

    Sources: LoRA: Hu et al. 2022, on query and value. Pfeiffer et al. 2020: serial, after the FFN. He et al. 2022:
    parallel with scale 4, and MAM with the sizes of its GLUE script. Mao et al. 2022: UniPELT. Chen et al. 2023: S4.
    Zhou et al. 2024: AutoPEFT's block. Its optima differ from task to task, so it stands in every layer here, and that
    most of it is the parallel adapter is our choice.
    """
    query_value, ffn, attention = frozenset(("attn.q", "attn.v")), frozenset(("ffn",)), frozenset(("attn",))
    mean = {"gate": "mean"}
    return {
        "LoRA": (Component("lora", query_value, 1),),
        "Pfeiffer": (Component("serial", ffn, 1),),
        "parallel adapter": (Component("parallel", ffn, 1, {"scale": 4}),),
        "MAM": (Component("prefix", attention, 16), Component("parallel", ffn, 16, {"scale": 2})),
        "UniPELT": (
            Component("prefix", attention, 10, mean),
            Component("serial", ffn, anatomy.hidden / 16, mean),
            Component("lora", query_value, 8, mean),
        ),
        "S4": tuple(_s4(anatomy, query_value, ffn, attention)),
        "AutoPEFT": (
            Component("serial", ffn, 12),
            Component("parallel", ffn, 96, {"scale": 4}),
            Component("prefix", attention, 1),
        ),
    }


def _s4(anatomy: Anatomy, *roles: frozenset[str]) -> Iterator[Component]:
    """S4's optimum: every layer gets as many parameters, which its modules share evenly; BitFit has one size."""
    hidden = anatomy.hidden
    sites = dict(zip(("lora", "serial", "prefix"), roles, strict=True))
    width = {"lora": 4 * hidden, "serial": 2 * hidden, "prefix": 2 * hidden}  # parameters for each step of the size
    kinds = (("serial", "lora"), ("serial", "prefix"), ("serial", "prefix", "bitfit"), ("prefix", "bitfit", "lora"))
    for group, members in enumerate(kinds, start=1):
        sized = [kind for kind in members if kind in sites]
        yield from (Component(kind, sites[kind], hidden / len(sized) / width[kind], {}, group) for kind in sized)
        if "bitfit" in members:
            yield Component("bitfit", frozenset(("layer",)), 1, {}, group)


def find_baselines(
    space: SearchSpace, training: Mapping[str, Any]
) -> tuple[tuple[Baseline, ...], tuple[tuple[str, str], ...]]:
    """The configurations that the space holds within its budget, and (name, reason) of the others.

    Args:
        training: the recipe's settings; those that are searched start from there, or from the nearest the space has.
    """
    found: dict[str, Baseline] = {}
    absent: list[tuple[str, str]] = []
    for name, components in published(space.anatomy).items():
        try:
            baseline = _fitted(space, name, components, training)
        except LookupError as error:
            absent.append((name, str(error.args[0])))
            continue
        if (known := found.get(baseline.candidate.architecture.id)) is not None:
            absent.append((name, f"the same as {known.name} here"))
        else:
            found[baseline.candidate.architecture.id] = baseline
    return tuple(found.values()), tuple(absent)


def _fitted(space: SearchSpace, name: str, components: tuple[Component, ...], training: Mapping[str, Any]) -> Baseline:
    """The configuration at the largest scale that fits.

    Raises:
        LookupError: it is not in the space or does not fit; says why.
    """
    fixed = {p.name: _structural(p, training) for p in space.parameters}
    pairs = list(_assigned(space, components, fixed))
    notes: dict[str, None] = {}
    for entry, component in pairs:
        fixed |= _settings(entry, component, notes)
    scaled = [(entry, c) for entry, c in pairs if c is not None and entry.size_parameter]
    scales = sorted({s / c.size for e, c in scaled for s in _sizes(e)} or {1.0}, reverse=True)
    reason = ""
    for scale in scales:
        sizes = {e.size_name: _size_at(e, scale * c.size, len({c.kind for _, c in scaled})) for e, c in scaled}
        values = fixed | sizes
        candidate = space.candidate({p.name: values[p.name] for p in space.parameters})
        reason = reason or _difference(candidate, components)
        if reason:
            raise LookupError(reason)
        if space.is_valid(candidate):
            return Baseline(f"{name} ({', '.join(notes)})" if notes else name, candidate)
    raise LookupError("over the budget at its smallest, or excluded")


def _structural(parameter: Parameter, training: Mapping[str, Any]) -> Scalar:
    """Groups as S4 has them, all layers in, training as in the recipe; sizes and options are set elsewhere."""
    domain = parameter.domain
    if parameter.is_training:
        return recipe_value(parameter, training)
    if isinstance(domain, Interval):
        return middle(parameter)
    known: Mapping[str, Scalar] = {"groups": _GROUPS, "pattern": _PATTERN, "allocation": "uniform"}
    wanted = known.get(parameter.name, True)
    if parameter.name.endswith(".depth"):
        return domain.values[-1]
    return wanted if domain.contains(wanted) else domain.values[0]


def recipe_value(parameter: Parameter, training: Mapping[str, Any]) -> Scalar:
    """The value of a searched training setting that is nearest to the recipe's; of a kind of module, to its own first.

    `training` is by field; settings of one kind may stand under `modules`, or as `modules.lora.learning_rate`.
    """
    setting = parameter.setting or parameter.name
    *path, field_name = setting.split(".")
    own = (training.get("modules") or {}).get(path[-1]) if path else None
    value = training.get(setting, (own or {}).get(field_name))
    return nearest(parameter, training.get(field_name) if value is None else value)


def _assigned(
    space: SearchSpace, components: tuple[Component, ...], fixed: Mapping[str, Scalar]
) -> Iterator[tuple[Entry, Component | None]]:
    """Each entry of the space with the component that it is to hold; None: it has to be off."""
    grouping = space.layout.grouping(fixed)
    groups = group_of_layers(space.anatomy, _GROUPS, _PATTERN)
    grouped = any(c.group is not None for c in components)
    for unit in space.structure.units:
        group = _group(unit, grouping, groups) if grouped else None
        here = {c.kind: c for c in components if c.group == group}
        for entry in unit.entries:
            component = here.get(entry.kind)
            several = sum(e.kind == entry.kind for e in unit.entries) > 1
            if component is not None and several and not _roles(entry, component, exactly=False):
                component = None
            if component is None and 0 not in entry.sizes:
                raise LookupError(f"{entry.size_name} cannot be off")
            yield entry, component


def _group(unit: Unit, grouping: tuple[int, str], groups: Mapping[Position, int]) -> int:
    if unit.position is not None:
        return groups[unit.position]
    if unit.group is None or grouping != (_GROUPS, _PATTERN):
        raise LookupError("no four layer groups in the spindle pattern")
    return unit.group


def _settings(entry: Entry, component: Component | None, notes: dict[str, None]) -> dict[str, Scalar]:
    """The entry's settings but its size: the component's where the space has them; `notes` tells where it has not."""
    values: dict[str, Scalar] = {entry.size_name: 0}
    for option in entry.options:
        allowed = dict(entry.settings)[option]
        default = MODULES[entry.kind].options[option].default
        wanted = default if component is None else component.options.get(option, default)
        wanted = float(wanted) if isinstance(allowed, Interval) and isinstance(wanted, int) else wanted
        has = allowed.contains(wanted) if isinstance(allowed, Choices | Interval) else allowed == wanted
        values[entry.option_name(option)] = wanted if has else entry.values(option)[0]
        if component is not None and option in component.options and not has:
            notes[_told(option, entry.values(option)[0])] = None
    for option in sorted(set(component.options) - set(entry.options)) if component else ():
        notes[_told(option, MODULES[entry.kind].options[option].default)] = None
    text = _roles(entry, component, exactly=True) if component else None
    if component is not None and text is None:
        text = _roles(entry, component, exactly=False)
        if text is None:
            text = str(entry.values("roles")[0])
            notes[f"{entry.kind} at {text}"] = None
    return values | {entry.option_name("roles"): text or entry.values("roles")[0]}


def _told(option: str, value: Scalar) -> str:
    return f"{option} {value:g}" if isinstance(value, float) else f"{option} {value}"


def _roles(entry: Entry, component: Component, *, exactly: bool) -> str | None:
    """The entry's choice of sites that is the component's, or a part of it; cross-attention counts as attention."""
    for text, roles in entry.role_map:
        plain = {role.removeprefix("x") for role in roles}
        if plain == component.roles or (not exactly and plain < component.roles):
            return text
    return None


def _sizes(entry: Entry) -> list[int]:
    """The sizes that are numbers, without 0, smallest first."""
    return sorted(int(size) for size in entry.sizes if isinstance(size, int) and size > 0)


def _size_at(entry: Entry, wanted: float, n_kinds: int) -> Scalar:
    """The largest size up to `wanted`; what fills the budget where that is a choice; of shares an even one."""
    if FILL in entry.sizes:
        return FILL
    if sizes := _sizes(entry):
        return max((size for size in sizes if size <= wanted * (1 + 1e-9)), default=sizes[0])
    shares = sorted(entry.shares, key=lambda share: share_of(share) or 0.0)
    return max((s for s in shares if (share_of(s) or 0.0) * n_kinds <= 1), key=shares.index, default=shares[0])


def _difference(candidate: Candidate, components: tuple[Component, ...]) -> str:
    """What of the configuration the candidate does not hold; nothing where it holds all of it and no more."""
    anatomy = candidate.space.anatomy
    groups = group_of_layers(anatomy, _GROUPS, _PATTERN)
    held = {(p.module, (p.stack, p.layer)) for p in candidate.architecture.placements}
    wanted = set()
    for component in components:
        for stack, index, layer in anatomy.layers:
            roles = {*component.roles, *(FUSED[role] for role in component.roles if role in FUSED)}
            inside = component.group is None or groups[stack, index] == component.group
            if inside and any(MODULES[component.kind].supports(layer, role) for role in roles):
                wanted.add((component.kind, (stack, index)))
        if not any(kind == component.kind for kind, _ in wanted):
            return f"the model has no place for {component.kind}"
    if missing := sorted({kind for kind, _ in wanted - held}):
        return f"no {' and '.join(missing)} in {'its' if components[0].group else 'all'} layers"
    return "" if held == wanted else "the space adds modules of its own"
