"""The two models of the synthetic suite, written down so that a bench needs neither torch nor a download."""

from collections.abc import Mapping
from types import MappingProxyType

from autopeft.space.anatomy import Anatomy, Layer, Site, Stack


def _encoder(model_type: str, n_parameters: int, n_layers: int, hidden: int) -> Anatomy:
    """A post-norm encoder with biases everywhere, heads of 64 and an FFN four times as wide."""
    wide, heads = 4 * hidden, hidden // 64
    attention = tuple(Site(role, hidden, hidden, True) for role in ("attn.q", "attn.k", "attn.v", "attn.o"))
    sites = (*attention, Site("ffn.in", hidden, wide, True), Site("ffn.out", wide, hidden, True))
    layer = Layer(hidden, sites, (hidden, hidden), heads, 64, prefix=True, norm_weights=(hidden, hidden), n_heads=heads)
    return Anatomy(model_type, n_parameters, (Stack("encoder", (layer,) * n_layers),))


ANATOMIES: Mapping[str, Anatomy] = MappingProxyType(
    {
        "bert-base": _encoder("bert", 109_482_240, 12, 768),
        "roberta-large": _encoder("roberta", 355_359_744, 24, 1024),
    }
)
"""Parameters as `AutoModel` loads them: pooler included, task head excluded."""
