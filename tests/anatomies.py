"""Anatomies written down by hand, so that tests of spaces and samplers need no torch."""

from autopeft.space.anatomy import Anatomy, Layer, Site, Stack


def bert_like(n_layers: int = 12, hidden: int = 768, n_parameters: int = 109_482_240) -> Anatomy:
    """BERT's anatomy; the defaults are BERT-base with its 109,482,240 parameters."""
    wide = 4 * hidden
    attention = tuple(Site(role, hidden, hidden, True) for role in ("attn.q", "attn.k", "attn.v", "attn.o"))
    sites = (*attention, Site("ffn.in", hidden, wide, True), Site("ffn.out", wide, hidden, True))
    layer = Layer(hidden, sites, (hidden, hidden), max(1, hidden // 64), min(64, hidden), prefix=True)
    return Anatomy("bert", n_parameters, (Stack("encoder", (layer,) * n_layers),))


def llama_like(n_layers: int = 4, hidden: int = 64) -> Anatomy:
    """Grouped-query attention, gated FFN, no biases, causal."""
    narrow, wide = hidden // 2, 2 * hidden
    sites = (
        Site("attn.q", hidden, hidden, False),
        Site("attn.k", hidden, narrow, False),
        Site("attn.v", hidden, narrow, False),
        Site("attn.o", hidden, hidden, False),
        Site("ffn.in", hidden, wide, False),
        Site("ffn.gate", hidden, wide, False),
        Site("ffn.out", wide, hidden, False),
    )
    layer = Layer(hidden, sites, (), n_kv_heads=2, head_dim=narrow // 2, prefix=True)
    return Anatomy("llama", 500_000, (Stack("decoder", (layer,) * n_layers),))


def gpt2_like(n_layers: int = 3, hidden: int = 48) -> Anatomy:
    """Fused projection, causal, no prefix support declared."""
    sites = (
        Site("attn.qkv", hidden, 3 * hidden, True),
        Site("attn.o", hidden, hidden, True),
        Site("ffn.in", hidden, 4 * hidden, True),
        Site("ffn.out", 4 * hidden, hidden, True),
    )
    layer = Layer(hidden, sites, (hidden, hidden), 4, hidden // 4, prefix=False)
    return Anatomy("gpt2", 400_000, (Stack("decoder", (layer,) * n_layers),))


ANATOMIES = {
    "bert-base": bert_like(),
    "small bert": bert_like(6, 384, 22_713_216),
    "llama": llama_like(),
    "gpt2": gpt2_like(),
}
