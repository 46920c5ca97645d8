"""How many parameters a module has at a place of a layer, and whether the layer has that place.

`H` is the width of the residual stream, `r`, `b` and `l` are sizes; biases are counted. Sources are with the kinds, in
`autopeft.space.modules`.
"""

from collections.abc import Callable, Mapping

from autopeft.space.anatomy import Layer, Site

Scalar = bool | int | float | str
Count = Callable[[Layer, str, int, Mapping[str, Scalar]], int]

PHM_DIMENSION = 4
"""n of a Compacter: its maps are sums of n Kronecker products."""


def bottleneck_widths(layer: Layer, module: str, role: str) -> tuple[int, int]:
    """Input and output width of a bottleneck adapter at the sub-layer `role` (`attn` or `ffn`)."""
    end = _site(layer, f"{role}.o" if role == "attn" else f"{role}.out")
    if module in {"serial", "compacter"}:
        return end.out_features, end.out_features
    first = "attn.q" if layer.site("attn.q") else "attn.qkv"
    start = _site(layer, first if role == "attn" else "ffn.in")
    return start.in_features, end.in_features if module == "multihead" else end.out_features


def factors(dimension: int) -> tuple[int, int]:
    """The two factors of `dimension` that are nearest to each other, the smaller first."""
    small = next(d for d in range(int(dimension**0.5), 0, -1) if dimension % d == 0)
    return small, dimension // small


def phm_dimension(*widths: int) -> int:
    """The largest n up to `PHM_DIMENSION` that divides all widths."""
    return next(n for n in range(PHM_DIMENSION, 0, -1) if all(width % n == 0 for width in widths))


def lora(layer: Layer, role: str, size: int, options: Mapping[str, Scalar]) -> int:
    """r·(in + out)."""
    site = _site(layer, role)
    return size * (site.in_features + site.out_features) + _magnitudes(site, options) + _gate(options, site.in_features)


def lora_trained(layer: Layer, role: str, size: int, options: Mapping[str, Scalar]) -> int:
    """As stored, without A where LoRA-FA freezes it."""
    frozen = size * _site(layer, role).in_features if options["variant"] == "fa" else 0
    return lora(layer, role, size, options) - frozen


def vera(layer: Layer, role: str, size: int, options: Mapping[str, Scalar]) -> int:
    """r + out: the random maps come from the seed and are not stored."""
    return size + _site(layer, role).out_features


def kronecker(layer: Layer, role: str, size: int, options: Mapping[str, Scalar]) -> int:
    """Both factors; the second in full where a low-rank one would not be smaller (as in LoKr)."""
    site = _site(layer, role)
    (m_out, n_out), (m_in, n_in) = factors(site.out_features), factors(site.in_features)
    second = size * (n_out + n_in) if kronecker_is_low_rank(n_out, n_in, size) else n_out * n_in
    return m_out * m_in + second


def kronecker_is_low_rank(n_out: int, n_in: int, size: int) -> bool:
    """Whether the second factor is a product of rank `size`."""
    return size < max(n_out, n_in) / 2


def bottleneck(module: str) -> Count:
    """2·H·b + b + H, one more for a learned scale."""

    def count(layer: Layer, role: str, size: int, options: Mapping[str, Scalar]) -> int:
        wide_in, wide_out = bottleneck_widths(layer, module, role)
        weights = size * (wide_in + wide_out) + size + wide_out
        return weights + (options["scale"] == "learned") + _gate(options, wide_in)

    return count


def compacter(layer: Layer, role: str, size: int, options: Mapping[str, Scalar]) -> int:
    """Two maps of n³ + in + out weights and their biases."""
    wide_in, wide_out = bottleneck_widths(layer, "compacter", role)
    n = phm_dimension(wide_in, size)
    weights = 2 * (n**3 + wide_in + size) + size + wide_out
    return weights + (options["scale"] == "learned") + _gate(options, wide_in)


def multihead(layer: Layer, role: str, size: int, options: Mapping[str, Scalar]) -> int:
    """Every head has a bottleneck of size b of its own: b·(H + H') + (heads)·b + H'."""
    wide_in, wide_out = bottleneck_widths(layer, "multihead", role)
    weights = size * (wide_in + wide_out) + layer.n_heads * size + wide_out
    return weights + (options["scale"] == "learned") + _gate(options, wide_in)


def prefix(layer: Layer, role: str, size: int, options: Mapping[str, Scalar]) -> int:
    """2·l·(key/value heads)·(head width)."""
    return 2 * size * layer.n_kv_heads * layer.head_dim + _gate(options, layer.hidden)


def prefix_trained(layer: Layer, role: str, size: int, options: Mapping[str, Scalar]) -> int:
    """With re-parameterisation: l embeddings of width H and the MLP that makes keys and values of them."""
    middle = options["reparameterisation"]
    if isinstance(middle, str):
        return prefix(layer, role, size, options)
    m, wide_out = int(middle), 2 * layer.n_kv_heads * layer.head_dim
    weights = size * layer.hidden + layer.hidden * m + m + m * wide_out + wide_out
    return weights + _gate(options, layer.hidden)


def prompt(layer: Layer, role: str, size: int, options: Mapping[str, Scalar]) -> int:
    """l·(width of the embeddings)."""
    return size * layer.embeddings


def bitfit(layer: Layer, role: str, size: int, options: Mapping[str, Scalar]) -> int:
    """The widths of all biases."""
    return sum(site.out_features for site in layer.sites if site.has_bias) + sum(layer.norm_biases)


def norms(layer: Layer, role: str, size: int, options: Mapping[str, Scalar]) -> int:
    """The widths of the norms' weights, of their biases too where both train."""
    return sum(layer.norm_weights) + (sum(layer.norm_biases) if options["trains"] == "all" else 0)


def ia3(layer: Layer, role: str, size: int, options: Mapping[str, Scalar]) -> int:
    """One factor for each output of a projection, for each input of the FFN's last map."""
    site = _site(layer, role)
    return site.in_features if role == "ffn.out" else site.out_features


def has_site(layer: Layer, role: str) -> bool:
    return layer.site(role) is not None


def has_sublayer(layer: Layer, role: str) -> bool:
    if role == "attn":
        return layer.site("attn.o") is not None and bool(layer.site("attn.q") or layer.site("attn.qkv"))
    return layer.site("ffn.in") is not None and layer.site("ffn.out") is not None


def has_heads(layer: Layer, role: str) -> bool:
    """Whether the inputs and outputs of attention can be cut into heads."""
    n = layer.n_heads
    return has_sublayer(layer, role) and n > 0 and all(w % n == 0 for w in bottleneck_widths(layer, "multihead", role))


def has_biases(layer: Layer, role: str) -> bool:
    return any(site.has_bias for site in layer.sites) or bool(layer.norm_biases)


def _site(layer: Layer, role: str) -> Site:
    site = layer.site(role)
    if site is None:
        raise KeyError(role)
    return site


def _magnitudes(site: Site, options: Mapping[str, Scalar]) -> int:
    return site.out_features if options["variant"] == "dora" else 0


def _gate(options: Mapping[str, Scalar], width: int) -> int:
    return {"none": 0, "scalar": 1}.get(str(options["gate"]), width + 1)
