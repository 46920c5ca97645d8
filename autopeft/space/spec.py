"""The YAML of a search space, as frozen values; what a choice may be is in `autopeft.space.choices`."""

from collections.abc import Mapping, Sequence
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from autopeft.config import Frozen, load
from autopeft.errors import did_you_mean
from autopeft.resources import find_yaml
from autopeft.space.choices import (
    FILL,
    MAX_SIZE,
    Depth,
    GroupLists,
    Halvings,
    Range,
    Shares,
    SizeRange,
    as_tuple,
    expand_roles,
)
from autopeft.space.groups import ALLOCATIONS, PATTERNS
from autopeft.space.modules import MODULES, Scalar

Word = str | tuple[str, ...]
Number = float | tuple[float, ...] | Range
NumberOrWord = float | str | tuple[float | str, ...]
Size = int | Literal["fill"] | tuple[int | Literal["fill"], ...] | Halvings | SizeRange | Shares
Value = bool | int | float | str
Condition = Value | tuple[Value, ...]


class LayersSpec(Frozen):
    """Which layers are adapted, and how they are grouped."""

    groups: int | tuple[int, ...] | GroupLists = 1
    """Number of layer groups (a list has it searched), or the layers of each; modules have their own settings in
    each."""
    pattern: Word = "uniform"
    """How many layers each group has: uniform, increasing, decreasing, spindle, bottleneck."""
    tuned: Literal["all", "any"] = "all"
    """`any`: each group may be left out as a whole."""
    mask: bool = False
    """One on/off switch a layer, shared by all modules; a module's own is `mask` of that module."""
    allocation: Word = "uniform"
    """How a filled budget is spread over the layers: uniform, increasing, decreasing."""

    @field_validator("pattern", "allocation")
    @classmethod
    def _known(cls, value: Word, info: object) -> Word:
        known = PATTERNS if getattr(info, "field_name", "") == "pattern" else ALLOCATIONS
        if not as_tuple(value):
            raise ValueError("must name at least one")
        for name in as_tuple(value):
            if name not in known:
                raise ValueError(f"must be of {', '.join(known)}, got '{name}'.{did_you_mean(str(name), known)}")
        return value

    @model_validator(mode="after")
    def _countable_groups(self) -> Self:
        if isinstance(self.groups, GroupLists):
            if self.pattern != "uniform":
                raise ValueError("groups that are written out have no pattern")
        elif not self.group_counts or any(not 1 <= n <= 64 for n in self.group_counts):
            raise ValueError(f"groups must be from 1 to 64, got {self.groups}")
        return self

    @property
    def group_counts(self) -> tuple[int, ...]:
        """The numbers of groups to choose from, ascending."""
        if isinstance(self.groups, GroupLists):
            return (len(self.groups.lists),)
        return tuple(sorted(set(self.groups if isinstance(self.groups, tuple) else (self.groups,))))


class ModuleSpec(Frozen):
    """One module of the space: where it may stand and how large it may be."""

    kind: str | None = None
    """The module's kind, where the entry has another name: lora, serial, parallel, prefix, ia3, …"""
    per: Literal["model", "group", "layer"] = "group"
    """What the settings are shared by."""
    size: Size
    """Rank, bottleneck or prefix length; 0 is off, `fill` spends the budget."""
    depth: Depth | None = None
    """Only in the first or last k layers; all layers by default."""
    mask: bool = False
    """An on/off switch of its own for every layer (of its group); a module per layer has size 0 for that."""
    roles: Word | None = None
    """Sites, several joined by a comma: `q,v` for LoRA, `ffn` or `attn,ffn` for adapters."""
    alpha: Number | None = None
    """LoRA's scale is alpha / r."""
    scale: NumberOrWord | None = None
    """Factor of an adapter's output, or `learned`."""
    activation: Word | None = None
    """Non-linearity of an adapter: relu, gelu, silu, tanh."""
    gate: Word | None = None
    """none, mean (UniPELT), token or scalar; by default the space's own `gate`."""
    variant: Word | None = None
    """LoRA's: plain, dora, fa (A is frozen)."""
    scaling: Word | None = None
    """LoRA's: lora (alpha / r) or rslora (alpha / √r)."""
    trains: Word | None = None
    """Of norms: weights, or all (their biases too)."""
    reparameterisation: NumberOrWord | None = None
    """Width of the MLP that makes a prefix during training, or none."""
    seed: Number | None = None
    """Of VeRA's random maps."""
    d_initial: Number | None = None
    """Start value of VeRA's inner scaling vector."""
    learning_rate: Number | None = None
    """Peak learning rate of all modules of this kind, in place of that of `training`."""
    weight_decay: Number | None = None
    """Weight decay of all modules of this kind, in place of that of `training`."""

    @field_validator("size")
    @classmethod
    def _sizes(cls, value: Size) -> Size:
        if isinstance(value, int | str | tuple):
            if not as_tuple(value):
                raise ValueError("must name at least one size")
            for size in as_tuple(value):
                if isinstance(size, int) and not 0 <= size <= MAX_SIZE:
                    raise ValueError(f"sizes must be from 0 to {MAX_SIZE}, got {size}")
        return value

    @model_validator(mode="after")
    def _maskable(self) -> Self:
        if self.mask and self.per == "layer":
            raise ValueError("a mask of its own is for modules per model or group; per layer, list 0 among the sizes")
        return self

    def option(self, name: str) -> Number | NumberOrWord | None:
        """The choice given for an option of the module, None where none is."""
        value: Number | NumberOrWord | None = getattr(self, name)
        return value


OPTION_FIELDS = (
    "alpha", "scale", "activation", "gate", "variant", "scaling", "trains", "reparameterisation", "seed", "d_initial",
)  # fmt: skip


TRAINING_FIELDS = ("learning_rate", "weight_decay")
"""Of a module: training settings of its own."""
_TRAINING_RANGES = {"learning_rate": (0.0, 10.0), "weight_decay": (0.0, 10.0), "warmup_fraction": (0.0, 1.0)}


class SpaceSpec(Frozen):
    """A search space, before it is bound to a model."""

    version: Literal[1]
    """Of this format."""
    title: str = ""
    """What the space is, in one line."""
    source: str = ""
    """Where it comes from."""
    published_size: str = ""
    """How its paper counts its points, where that differs from ours."""
    layers: LayersSpec = LayersSpec()
    """Layer groups, masks and allocation."""
    modules: Mapping[str, ModuleSpec] = Field(min_length=1)
    """Name → module; the name is the kind unless `kind` says another."""
    gate: Word = "none"
    """Gates of the modules that do not say their own."""
    fill: float = Field(default=1.0, gt=0, le=1)
    """Fraction of the budget that modules of size `fill` spend, together with all others."""
    at_least_one: bool = False
    """Every tuned group holds at least one module (S4)."""
    exclude: tuple[Mapping[str, Condition], ...] = Field(default=(), max_length=8)
    """Combinations that are not allowed within a group (layer, model), such as `{lora: on, serial: on}`; conditions are
    `module: on`, `module: off`, `module.size: [64, 128]`, `module.gate: token`."""
    points: Mapping[str, Mapping[str, Value]] = Field(default_factory=dict)
    """Named points, such as a published optimum: parameter → value. `*` in a name stands for any text; sizes that are
    not named are 0, switches off, other settings at their first value."""
    training: Mapping[Literal["learning_rate", "weight_decay", "warmup_fraction"], Number] = Field(default_factory=dict)
    """Searched training settings, which override the recipe's."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [problem for name, module in self.modules.items() for problem in self._problems(name, module)]
        problems += self._overlaps()
        for name in as_tuple(self.gate):
            if problem := _refusal("lora", "gate", name):
                problems.append(f"gate: {problem}")
        for setting, choice in self.training.items():
            problems += _training_problems(f"training.{setting}", str(setting), choice)
        problems += self._shared_settings()
        if not problems:
            problems = [problem for number in range(len(self.exclude)) for problem in self._exclusion_problems(number)]
        if self.layers.mask and any(module.per == "layer" for module in self.modules.values()):
            problems.append("layers.mask: modules per layer are switched by their sizes; list 0 among them")
        several = isinstance(self.layers.pattern, tuple) and len(set(self.layers.pattern)) > 1
        if (
            several
            and len(self.layers.group_counts) > 1
            and any(m.mask and m.per == "group" for m in self.modules.values())
        ):
            problems.append(
                "layers: with masks per group, search either the number of groups or their pattern, not both"
            )
        if self.layers.mask and any(module.mask or module.depth for module in self.modules.values()):
            problems.append("layers.mask: cannot stand beside a depth or a mask of a module")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def kind_of(self, name: str) -> str:
        return self.modules[name].kind or name

    def roles_of(self, name: str) -> tuple[tuple[str, ...], ...]:
        """The entry's choices of sites, each a tuple of canonical roles."""
        kind = MODULES[self.kind_of(name)]
        given = self.modules[name].roles
        return (
            tuple(expand_roles(str(text), kind.roles) for text in as_tuple(given)) if given else (kind.default_roles,)
        )

    def options_of(self, name: str) -> dict[str, Number | NumberOrWord]:
        """Option → its choice, for the options that the entry or the space sets."""
        kind, module = MODULES[self.kind_of(name)], self.modules[name]
        given = {option: module.option(option) for option in OPTION_FIELDS if option in kind.options}
        if "gate" in kind.options and given["gate"] is None:
            given["gate"] = self.gate
        return {option: choice for option, choice in given.items() if choice is not None}

    def _problems(self, name: str, module: ModuleSpec) -> list[str]:
        kind = MODULES.get(module.kind or name)
        if kind is None:
            unknown = module.kind or name
            return [
                f"modules.{name}: unknown module '{unknown}'.{did_you_mean(unknown, MODULES)} "
                f"Known: {', '.join(MODULES)}"
            ]
        problems = [f"modules: {name!r} cannot be the name of a module"] if not _is_plain(name) else []
        for text in as_tuple(module.roles) if module.roles else ():
            try:
                expand_roles(str(text), kind.roles)
            except ValueError as error:
                problems.append(f"modules.{name}.roles: {error}")
        for option in OPTION_FIELDS:
            choice = module.option(option)
            if choice is None:
                continue
            if option not in kind.options:
                problems.append(f"modules.{name}.{option}: {kind.name} has no {option}")
                continue
            values = (choice.low, choice.high) if isinstance(choice, Range) else as_tuple(choice)
            if not values:
                problems.append(f"modules.{name}.{option}: must name at least one value")
            problems += [f"modules.{name}.{option}: {p}" for v in values if (p := _refusal(kind.name, option, v))]
        sizes = as_tuple(module.size) if isinstance(module.size, int | str | tuple) else ()
        if (FILL in sizes or isinstance(module.size, Shares)) and not kind.fills:
            problems.append(f"modules.{name}.size: {kind.name} cannot fill a budget, its parameters grow in leaps")
        sizes = sizes or (FILL,)
        if kind.max_size is not None and any(not isinstance(s, int) or s > kind.max_size for s in sizes):
            problems.append(f"modules.{name}.size: {kind.name} is on (1) or off (0)")
        return problems

    def _overlaps(self) -> list[str]:
        """Entries of one kind must keep to different sites, so that a placement belongs to one entry."""
        problems: list[str] = []
        names = [name for name in self.modules if self.kind_of(name) in MODULES]
        for i, first in enumerate(names):
            for second in names[i + 1 :]:
                if self.kind_of(first) == self.kind_of(second):
                    try:
                        sites = {r for roles in self.roles_of(first) for r in roles}
                        shared = sites & {r for roles in self.roles_of(second) for r in roles}
                    except ValueError:  # a site that is not known: reported already
                        continue
                    if shared:
                        problems.append(f"modules.{first} and modules.{second} share the site {sorted(shared)[0]}")
        return problems

    def _shared_settings(self) -> list[str]:
        """Modules of one kind train alike, whatever their names."""
        problems, given = [], dict[tuple[str, str], str]()
        for name, module in self.modules.items():
            for setting in TRAINING_FIELDS:
                choice = getattr(module, setting)
                if choice is None:
                    continue
                problems += _training_problems(f"modules.{name}.{setting}", setting, choice)
                first = given.setdefault((self.kind_of(name), setting), name)
                if first != name:
                    problems.append(f"modules.{name}.{setting}: {self.kind_of(name)} has one already, by {first}")
        return problems

    def content(self) -> dict[str, object]:
        """What a study's identity hangs on: no titles; settings that came later only where they are used."""
        data = self.model_dump(mode="json", exclude={"title", "source", "published_size", "points"})
        for module in data["modules"].values():
            for name in TRAINING_FIELDS:
                if module[name] is None:
                    del module[name]
        return data

    def _exclusion_problems(self, number: int) -> list[str]:
        problems, where = [], f"exclude[{number}]"
        names = {key.partition(".")[0] for key in self.exclude[number]}
        for name in sorted(names - set(self.modules)):
            problems.append(f"{where}: unknown module '{name}'.{did_you_mean(name, self.modules)}")
        if not names:
            problems.append(f"{where}: names no module")
        if len({self.modules[name].per for name in names & set(self.modules)}) > 1:
            problems.append(f"{where}: its modules must have the same `per`")
        for key, value in self.exclude[number].items():
            name, _, setting = key.partition(".")
            if not setting and value not in ("on", "off"):
                problems.append(f"{where}.{key}: must be on or off, got {value!r}")
            elif name in self.modules and setting not in ("", "size", "roles", *MODULES[self.kind_of(name)].options):
                problems.append(f"{where}.{key}: {self.kind_of(name)} has no '{setting}'")
        return problems


def _is_plain(name: str) -> bool:
    return name.replace("-", "_").isidentifier() and name.isascii() and len(name) <= 60


def _refusal(module: str, option: str, value: Scalar) -> str | None:
    try:
        MODULES[module].options[option].canonical(value)
    except ValueError as error:
        return str(error)
    return None


def _training_problems(where: str, setting: str, choice: Number) -> list[str]:
    values = (choice.low, choice.high) if isinstance(choice, Range) else as_tuple(choice)
    low, high = _TRAINING_RANGES[setting]
    if not values:
        return [f"{where}: must name at least one value"]
    above, below = setting == "learning_rate", setting == "warmup_fraction"
    wrong = [v for v in values if not low <= float(v) <= high or (above and v == low) or (below and v == high)]
    allowed = f"{'above' if above else 'from'} {low:g} {'and below' if below else 'to'} {high:g}"
    return [f"{where}: must be {allowed}, got {wrong[0]:g}"] if wrong else []


def load_space(name: str, overrides: Sequence[str] = ()) -> SpaceSpec:
    """The search space of a YAML file or of a shipped name.

    Raises:
        UnknownNameError: no such file or shipped space.
        ConfigError: everything that is wrong with the file.
    """
    return load(find_yaml("search_spaces", name), SpaceSpec, overrides)
