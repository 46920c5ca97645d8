"""The facts of every kind of adapter module that need no torch: where it may stand, its options, its exact size.

The layers themselves are in `autopeft.hybrid.modules`, under the same names; the formulas in `autopeft.space.formulas`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from autopeft.space import formulas
from autopeft.space.anatomy import LINEAR_ROLES, Layer
from autopeft.space.formulas import Count, Scalar, bottleneck_widths

__all__ = ["ACTIVATIONS", "GATES", "MODULES", "WITHOUT_GATE", "ModuleKind", "Option", "Scalar", "bottleneck_widths"]

GATES = ("none", "mean", "token", "scalar")
"""`mean`: one value per example, the mean over its tokens (UniPELT; bidirectional stacks only). `token`: one value per
token, safe for causal models. `scalar`: one learned number, the same for all inputs."""

ACTIVATIONS = ("relu", "gelu", "silu", "tanh")

WITHOUT_GATE = ("alpha", "scaling")
"""Options that set LoRA's factor, whose place a gate takes: with a gate they are without effect."""


@dataclass(frozen=True)
class Option:
    """One option of a module: its default and what else it may be."""

    default: Scalar
    choices: tuple[str, ...] = ()
    """Words that are allowed; numbers are allowed where `numeric`."""
    numeric: bool = False
    whole: bool = False
    """Numbers must be whole."""

    def canonical(self, value: Scalar) -> Scalar:
        """`value` in its one form: numbers as float, words as they are.

        Raises:
            ValueError: the value is not allowed here; says what is.
        """
        if self.numeric and isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            if not self.whole or float(value).is_integer():
                return float(value)
        elif isinstance(value, str) and value in self.choices:
            return value
        number = "a whole number > 0" if self.whole else "a number > 0"
        allowed = [*self.choices, *([number] if self.numeric else [])]
        raise ValueError(f"must be {' or '.join(allowed)}, got {value!r}")


@dataclass(frozen=True)
class ModuleKind:
    """A kind of adapter module: `count` gives its stored parameters in a layer."""

    name: str
    title: str
    size_symbol: str
    """The letter of its size in the papers: rank r, bottleneck b, length l."""
    roles: tuple[str, ...]
    default_roles: tuple[str, ...]
    options: Mapping[str, Option]
    count: Count
    supports: Callable[[Layer, str], bool]
    """Whether a layer has what a placement at this role needs."""
    max_size: int | None = None
    source: str = ""
    fills: bool = True
    """Whether parameters grow evenly with the size, so that a size can be found that fills a budget."""
    trained: Count | None = None
    """Parameters that train, where they are others than the stored ones."""

    def count_trained(self, layer: Layer, role: str, size: int, options: Mapping[str, Scalar]) -> int:
        return (self.trained or self.count)(layer, role, size, options)


_NO_OPTIONS: Mapping[str, Option] = MappingProxyType({})
_GATE = Option("none", choices=GATES)
_ALPHA = Option(16.0, numeric=True)
_BOTTLENECK_OPTIONS = MappingProxyType(
    {
        "activation": Option("relu", choices=ACTIVATIONS),
        "scale": Option(1.0, choices=("learned",), numeric=True),
        "gate": _GATE,
    }
)
_LORA_OPTIONS = MappingProxyType(
    {
        "alpha": _ALPHA,
        "gate": _GATE,
        "variant": Option("plain", choices=("plain", "dora", "fa")),
        "scaling": Option("lora", choices=("lora", "rslora")),
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
                _LORA_OPTIONS,
                formulas.lora,
                formulas.has_site,
                source="Hu et al. 2022; DoRA: Liu et al. 2024; FA: Zhang et al. 2023; rsLoRA: Kalajdzievski 2023",
                trained=formulas.lora_trained,
            ),
            ModuleKind(
                "serial",
                "bottleneck adapter on the output of a sub-layer",
                "b",
                ("attn", "ffn"),
                ("ffn",),
                _BOTTLENECK_OPTIONS,
                formulas.bottleneck("serial"),
                formulas.has_sublayer,
                source="Houlsby et al. 2019; Pfeiffer et al. 2020",
            ),
            ModuleKind(
                "parallel",
                "bottleneck adapter beside a sub-layer, scaled",
                "b",
                ("attn", "ffn"),
                ("ffn",),
                _BOTTLENECK_OPTIONS,
                formulas.bottleneck("parallel"),
                formulas.has_sublayer,
                source="He et al. 2022",
            ),
            ModuleKind(
                "prefix",
                "learned key and value vectors before the sequence's own",
                "l",
                ("attn",),
                ("attn",),
                MappingProxyType(
                    {
                        "gate": _GATE,
                        "reparameterisation": Option("none", choices=("none",), numeric=True, whole=True),
                    }
                ),
                formulas.prefix,
                lambda layer, role: layer.prefix,
                source="Li & Liang 2021",
                trained=formulas.prefix_trained,
            ),
            ModuleKind(
                "bitfit",
                "all biases of the layer, linear maps and norms",
                "on",
                ("layer",),
                ("layer",),
                _NO_OPTIONS,
                formulas.bitfit,
                formulas.has_biases,
                max_size=1,
                source="Ben Zaken et al. 2022",
            ),
            ModuleKind(
                "ia3",
                "learned factors on keys, values and the inner activations of the FFN",
                "on",
                ("attn.k", "attn.v", "attn.qkv", "ffn.out"),
                ("attn.k", "attn.v", "ffn.out"),
                _NO_OPTIONS,
                formulas.ia3,
                formulas.has_site,
                max_size=1,
                source="Liu et al. 2022",
            ),
            ModuleKind(
                "layernorm",
                "the weights of the layer's norms, with their biases or without",
                "on",
                ("layer",),
                ("layer",),
                MappingProxyType({"trains": Option("weights", choices=("weights", "all"))}),
                formulas.norms,
                lambda layer, role: bool(layer.norm_weights),
                max_size=1,
                source="Zhao et al. 2023",
            ),
            ModuleKind(
                "vera",
                "random low-rank update from a seed, of which only two scaling vectors train",
                "r",
                LINEAR_ROLES,
                ("attn.q", "attn.v"),
                MappingProxyType(
                    {"seed": Option(1.0, numeric=True, whole=True), "d_initial": Option(0.1, numeric=True)}
                ),
                formulas.vera,
                formulas.has_site,
                source="Kopiczko et al. 2024",
            ),
            ModuleKind(
                "kronecker",
                "Kronecker product of a small and a low-rank matrix as update of a linear map (LoKr)",
                "r",
                LINEAR_ROLES,
                ("attn.q", "attn.v"),
                MappingProxyType({"alpha": _ALPHA}),
                formulas.kronecker,
                formulas.has_site,
                source="Edalati et al. 2022 (KronA); Yeh et al. 2024 (LoKr)",
                fills=False,
            ),
            ModuleKind(
                "compacter",
                "bottleneck adapter whose maps are sums of Kronecker products of rank one",
                "b",
                ("attn", "ffn"),
                ("ffn",),
                _BOTTLENECK_OPTIONS,
                formulas.compacter,
                formulas.has_sublayer,
                source="Mahabadi et al. 2021",
                fills=False,
            ),
            ModuleKind(
                "multihead",
                "one small parallel adapter for each attention head, before the heads are joined",
                "b",
                ("attn",),
                ("attn",),
                _BOTTLENECK_OPTIONS,
                formulas.multihead,
                formulas.has_heads,
                source="He et al. 2022",
            ),
            ModuleKind(
                "prompt",
                "learned vectors among the inputs of the first layer",
                "l",
                ("embeddings",),
                ("embeddings",),
                _NO_OPTIONS,
                formulas.prompt,
                lambda layer, role: layer.embeddings > 0,
                source="Lester et al. 2021",
            ),
        )
    }
)
