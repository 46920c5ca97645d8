"""The facts of every kind of adapter module that need no torch: where it may stand, its options, its exact size.

The layers themselves are in `autopeft.hybrid.modules`, under the same names. Formulas and sources: Houlsby 2019 and
Pfeiffer 2020 (serial), He 2022 (parallel, scaled), Hu 2022 (LoRA), Li & Liang 2021 (prefix), Ben Zaken 2022 (BitFit),
Mao 2022 (gates).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from autopeft.space.anatomy import LINEAR_ROLES, Layer, Site

Scalar = bool | int | float | str

GATES = ("none", "mean", "token")
"""`mean`: one value per example, the mean over its tokens (UniPELT; bidirectional stacks only). `token`: one value per
token, safe for causal models."""

ACTIVATIONS = ("relu", "gelu", "silu", "tanh")

WITHOUT_GATE = ("alpha",)
"""Options that set LoRA's factor, whose place a gate takes: with a gate they are without effect."""


@dataclass(frozen=True)
class Option:
    """One option of a module: its default and what else it may be."""

    default: Scalar
    choices: tuple[str, ...] = ()
    """Words that are allowed; numbers are allowed where `numeric`."""
    numeric: bool = False

    def canonical(self, value: Scalar) -> Scalar:
        """`value` in its one form: numbers as float, words as they are.

        Raises:
            ValueError: the value is not allowed here; says what is.
        """
        if self.numeric and isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return float(value)
        if isinstance(value, str) and value in self.choices:
            return value
        allowed = [*self.choices, *(["a number > 0"] if self.numeric else [])]
        raise ValueError(f"must be {' or '.join(allowed)}, got {value!r}")


@dataclass(frozen=True)
class ModuleKind:
    """A kind of adapter module: `count` gives its stored parameters in a layer (all of them train)."""

    name: str
    title: str
    size_symbol: str
    """The letter of its size in the papers: rank r, bottleneck b, length l."""
    roles: tuple[str, ...]
    default_roles: tuple[str, ...]
    options: Mapping[str, Option]
    count: Callable[[Layer, str, int, Mapping[str, Scalar]], int]
    supports: Callable[[Layer, str], bool]
    """Whether a layer has what a placement at this role needs."""
    max_size: int | None = None
    source: str = ""


def _site(layer: Layer, role: str) -> Site:
    site = layer.site(role)
    if site is None:
        raise KeyError(role)
    return site


def bottleneck_widths(layer: Layer, module: str, role: str) -> tuple[int, int]:
    """Input and output width of a serial or parallel adapter at the sub-layer `role` (`attn` or `ffn`)."""
    end = _site(layer, f"{role}.o" if role == "attn" else f"{role}.out")
    if module == "serial":
        return end.out_features, end.out_features
    first = "attn.q" if layer.site("attn.q") else "attn.qkv"
    start = _site(layer, first if role == "attn" else "ffn.in")
    return start.in_features, end.out_features


def _gate(options: Mapping[str, Scalar], width: int) -> int:
    return 0 if options["gate"] == "none" else width + 1


def _count_lora(layer: Layer, role: str, size: int, options: Mapping[str, Scalar]) -> int:
    site = _site(layer, role)
    return size * (site.in_features + site.out_features) + _gate(options, site.in_features)


def _count_bottleneck(module: str) -> Callable[[Layer, str, int, Mapping[str, Scalar]], int]:
    def count(layer: Layer, role: str, size: int, options: Mapping[str, Scalar]) -> int:
        wide_in, wide_out = bottleneck_widths(layer, module, role)
        weights = size * (wide_in + wide_out) + size + wide_out
        return weights + (options["scale"] == "learned") + _gate(options, wide_in)

    return count


def _count_prefix(layer: Layer, role: str, size: int, options: Mapping[str, Scalar]) -> int:
    return 2 * size * layer.n_kv_heads * layer.head_dim + _gate(options, layer.hidden)


def _count_bitfit(layer: Layer, role: str, size: int, options: Mapping[str, Scalar]) -> int:
    return sum(site.out_features for site in layer.sites if site.has_bias) + sum(layer.norm_biases)


def _has_sublayer(layer: Layer, role: str) -> bool:
    if role == "attn":
        return layer.site("attn.o") is not None and bool(layer.site("attn.q") or layer.site("attn.qkv"))
    return layer.site("ffn.in") is not None and layer.site("ffn.out") is not None


_GATE = Option("none", choices=GATES)
_BOTTLENECK_OPTIONS = MappingProxyType(
    {
        "activation": Option("relu", choices=ACTIVATIONS),
        "scale": Option(1.0, choices=("learned",), numeric=True),
        "gate": _GATE,
    }
)

MODULES: Mapping[str, ModuleKind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            ModuleKind(
                "lora",
                "low-rank update of a linear map; a gate takes the place of alpha/r",
                "r",
                LINEAR_ROLES,
                ("attn.q", "attn.v"),
                MappingProxyType({"alpha": Option(16.0, numeric=True), "gate": _GATE}),
                _count_lora,
                lambda layer, role: layer.site(role) is not None,
                source="Hu et al. 2022",
            ),
            ModuleKind(
                "serial",
                "bottleneck adapter on the output of a sub-layer",
                "b",
                ("attn", "ffn"),
                ("ffn",),
                _BOTTLENECK_OPTIONS,
                _count_bottleneck("serial"),
                _has_sublayer,
                source="Houlsby et al. 2019; Pfeiffer et al. 2020",
            ),
            ModuleKind(
                "parallel",
                "bottleneck adapter beside a sub-layer, scaled",
                "b",
                ("attn", "ffn"),
                ("ffn",),
                _BOTTLENECK_OPTIONS,
                _count_bottleneck("parallel"),
                _has_sublayer,
                source="He et al. 2022",
            ),
            ModuleKind(
                "prefix",
                "learned key and value vectors before the sequence's own",
                "l",
                ("attn",),
                ("attn",),
                MappingProxyType({"gate": _GATE}),
                _count_prefix,
                lambda layer, role: layer.prefix,
                source="Li & Liang 2021",
            ),
            ModuleKind(
                "bitfit",
                "all biases of the layer, linear maps and norms",
                "on",
                ("layer",),
                ("layer",),
                MappingProxyType({}),
                _count_bitfit,
                lambda layer, role: any(site.has_bias for site in layer.sites) or bool(layer.norm_biases),
                max_size=1,
                source="Ben Zaken et al. 2022",
            ),
        )
    }
)
