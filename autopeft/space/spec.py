"""The YAML of a search space, as frozen values.

Every setting is a *choice*: a value fixes it, a list has it searched, `{low, high}` is a range, `{halvings: k}` stands
for the sizes H/2^0 … H/2^k of a model of width H, and the word `fill` for the size that spends the budget.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from autopeft.config import Frozen, load
from autopeft.errors import did_you_mean
from autopeft.resources import find_yaml
from autopeft.space.groups import ALLOCATIONS, PATTERNS
from autopeft.space.modules import MODULES, Scalar

FILL = "fill"


class Range(Frozen):
    """All numbers from `low` to `high`."""

    low: float
    high: float
    log: bool = False
    """Even on a logarithmic scale."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.high:
            raise ValueError(f"low <= high must hold, got low={self.low:g}, high={self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low > 0 must hold on a log scale, got low={self.low:g}")
        return self


class Halvings(Frozen):
    """Sizes floor(H / 2^k), k = 0 … `halvings`, of a model of width H (AutoPEFT's sizes)."""

    halvings: int = Field(ge=0, le=20)
    """The largest k; with H = 768, 10 gives 768, 384, 192, 96, 48, 24, 12, 6, 3, 1, 0."""


Word = str | tuple[str, ...]
Number = float | tuple[float, ...] | Range
NumberOrWord = float | str | tuple[float | str, ...]
Size = int | Literal["fill"] | tuple[int | Literal["fill"], ...] | Halvings


class LayersSpec(Frozen):
    """Which layers are adapted, and how they are grouped."""

    groups: int = Field(default=1, ge=1, le=64)
    """Number of layer groups; modules have their own settings in each."""
    pattern: Word = "uniform"
    """How many layers each group has: uniform, increasing, decreasing, spindle, bottleneck."""
    tuned: Literal["all", "any"] = "all"
    """`any`: each group may be left out as a whole."""
    mask: bool = False
    """One on/off switch a layer, shared by all modules."""
    allocation: Word = "uniform"
    """How a filled budget is spread over the layers: uniform, increasing, decreasing."""

    @field_validator("pattern", "allocation")
    @classmethod
    def _known(cls, value: Word, info: object) -> Word:
        known = PATTERNS if getattr(info, "field_name", "") == "pattern" else ALLOCATIONS
        for name in as_tuple(value):
            if name not in known:
                raise ValueError(f"must be of {', '.join(known)}, got '{name}'.{did_you_mean(str(name), known)}")
        return value


class ModuleSpec(Frozen):
    """One module of the space: where it may stand and how large it may be."""

    kind: str | None = None
    """The module's kind, where the entry has another name: lora, serial, parallel, prefix, ia3, …"""
    per: Literal["model", "group", "layer"] = "group"
    """What the settings are shared by."""
    size: Size
    """Rank, bottleneck or prefix length; 0 is off, `fill` spends the budget."""
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

    @field_validator("size")
    @classmethod
    def _sizes(cls, value: Size) -> Size:
        if not isinstance(value, Halvings):
            for size in as_tuple(value):
                if isinstance(size, int) and not 0 <= size <= 1_000_000:
                    raise ValueError(f"sizes must be from 0 to 1000000, got {size}")
        return value

    def option(self, name: str) -> Number | NumberOrWord | None:
        """The choice given for an option of the module, None where none is."""
        value: Number | NumberOrWord | None = getattr(self, name)
        return value


OPTION_FIELDS = (
    "alpha", "scale", "activation", "gate", "variant", "scaling", "trains", "reparameterisation", "seed", "d_initial",
)  # fmt: skip


class SpaceSpec(Frozen):
    """A search space, before it is bound to a model."""

    version: Literal[1]
    """Of this format."""
    title: str = ""
    """What the space is, in one line."""
    source: str = ""
    """Where it comes from."""
    layers: LayersSpec = LayersSpec()
    """Layer groups, masks and allocation."""
    modules: Mapping[str, ModuleSpec] = Field(min_length=1)
    """Name → module; the name is the kind unless `kind` says another."""
    gate: Word = "none"
    """Gates of the modules that do not say their own."""
    at_least_one: bool = False
    """Every tuned group holds at least one module (S4)."""
    training: Mapping[Literal["learning_rate", "weight_decay", "warmup_fraction"], Number] = Field(default_factory=dict)
    """Searched training settings, which override the recipe's."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = [problem for name, module in self.modules.items() for problem in self._problems(name, module)]
        problems += self._overlaps()
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
        problems = []
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
            problems += [f"modules.{name}.{option}: {p}" for v in values if (p := _refusal(kind.name, option, v))]
        sizes = () if isinstance(module.size, Halvings) else as_tuple(module.size)
        if FILL in sizes and not kind.fills:
            problems.append(f"modules.{name}.size: {kind.name} cannot fill a budget, its parameters grow in leaps")
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
                    sites = {r for roles in self.roles_of(first) for r in roles}
                    if shared := sites & {r for roles in self.roles_of(second) for r in roles}:
                        problems.append(f"modules.{first} and modules.{second} share the site {sorted(shared)[0]}")
        return problems


def _refusal(module: str, option: str, value: Scalar) -> str | None:
    try:
        MODULES[module].options[option].canonical(value)
    except ValueError as error:
        return str(error)
    return None


def as_tuple(choice: Scalar | tuple[Scalar, ...]) -> tuple[Scalar, ...]:
    """The values of a choice that is one value or several."""
    return choice if isinstance(choice, tuple) else (choice,)


def expand_roles(text: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """`q,v` → (`attn.q`, `attn.v`); `all` → every allowed role.

    Raises:
        ValueError: a name that is none of the allowed roles, written in full or by its last word.
    """
    short = {role.rsplit(".", 1)[-1]: role for role in allowed}
    if text.strip() == "all":
        return allowed
    roles = []
    for word in (part.strip() for part in text.split(",")):
        role = word if word in allowed else short.get(word)
        if role is None:
            raise ValueError(f"unknown site '{word}'.{did_you_mean(word, short)} Known: all, {', '.join(short)}")
        roles.append(role)
    return tuple(sorted(set(roles), key=allowed.index))


def load_space(name: str, overrides: Sequence[str] = ()) -> SpaceSpec:
    """The search space of a YAML file or of a shipped name.

    Raises:
        UnknownNameError: no such file or shipped space.
        ConfigError: everything that is wrong with the file.
    """
    return load(find_yaml("search_spaces", name), SpaceSpec, overrides)
