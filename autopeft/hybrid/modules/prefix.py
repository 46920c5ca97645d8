"""Prefix tuning: l learned key and value vectors before those of the sequence, in the attention of one layer.

They join after rotary embedding and after the KV cache, so position ids, cache and masks of the model stay as they
are. An ungated prefix always takes part of the attention: it is *not* the identity at the start, nor is a gated one
(gates start near 1/2). Gate `mean` multiplies keys and values (UniPELT); at gate 0 the prefix still takes a share of
the softmax, exp(0) per column. Gates `token` and `scalar` add log g to the scores of the prefix instead: as g goes to
0, the base model's attention comes back exactly.

With re-parameterisation, an MLP makes keys and values of l embeddings while the prefix trains. Only keys and values
are saved; a loaded prefix trains them directly. Each layer has its own MLP.

Sources: Li & Liang 2021; gate `mean`: Mao et al. 2022.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from autopeft.hybrid.modules.base import Attachment, KeyValuePart, LayerScope, Own, Parameters
from autopeft.hybrid.modules.gates import gate_value, log_gate_value, new_gate
from autopeft.hybrid.sites import LayerSites
from autopeft.space.architecture import Placement

_STD = 0.02


def attach_prefix(placement: Placement, sites: LayerSites, dropout: float) -> tuple[Attachment, ...]:
    """A prefix stands at the attention module."""
    assert sites.attention is not None
    layer, gate, middle = sites.layer, str(placement.option("gate")), placement.option("reparameterisation")
    mlp = 0 if isinstance(middle, str) else int(middle)
    part = Prefix(placement.size, layer.n_kv_heads, layer.head_dim, layer.hidden, gate, mlp)
    return (Attachment(sites.attention, part, sites, gate),)


@dataclass(frozen=True)
class Prefix(KeyValuePart):
    kind = "prefix"

    length: int
    n_kv_heads: int
    head_dim: int
    hidden: int
    gate: str
    mlp: int = 0
    """Inner width of the MLP of the re-parameterisation; 0: there is none."""

    @property
    def needs_input(self) -> bool:
        return self.gate in {"mean", "token"}

    @property
    def stored(self) -> "Prefix":
        return replace(self, mlp=0)

    def create(self, base: nn.Module) -> Parameters:
        gate = new_gate(self.gate, self.kind, self.hidden)
        if self.mlp:
            return {"prefix_mlp": PrefixMLP(self.length, self.hidden, self.mlp, self.n_kv_heads, self.head_dim)} | gate
        shape = (self.n_kv_heads, self.length, self.head_dim)
        k, v = (nn.Parameter(torch.randn(shape) * _STD) for _ in "kv")
        return {"prefix_k": k, "prefix_v": v} | gate

    def flat(self, own: Own) -> dict[str, Tensor]:
        """What is saved in place of the MLP: keys and values."""
        k, v = own["prefix_mlp"]()
        return {"prefix_k": k.detach().contiguous(), "prefix_v": v.detach().contiguous()}

    def keys_values(
        self, own: Own, batch: int, hidden: Tensor | None, scope: LayerScope
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        pair = own["prefix_mlp"]() if self.mlp else (own["prefix_k"], own["prefix_v"])
        k, v = (vectors.expand(batch, -1, -1, -1) for vectors in pair)  # (B, kv heads, l, d)
        if self.gate == "none":
            return k, v, None
        gate = own["prefix_gate"]
        if self.gate == "mean":
            assert hidden is not None
            g = gate_value("mean", gate, hidden, scope).unsqueeze(-1)  # (B, 1, 1, 1)
            return k * g, v * g, None
        return k, v, log_gate_value(self.gate, gate, hidden).unsqueeze(1)


class PrefixMLP(nn.Module):
    """l embeddings, and the MLP with tanh that makes keys and values (kv heads, l, d) of them."""

    def __init__(self, length: int, hidden: int, middle: int, n_kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.shape = (2, n_kv_heads, head_dim)
        self.embeddings = nn.Parameter(torch.randn(length, hidden) * _STD)
        self.down = nn.Linear(hidden, middle)
        self.up = nn.Linear(middle, 2 * n_kv_heads * head_dim)

    def forward(self) -> tuple[Tensor, Tensor]:
        made = self.up(torch.tanh(self.down(self.embeddings))).view(-1, *self.shape)  # (l, 2, kv heads, d)
        k, v = made.permute(1, 2, 0, 3)
        return k, v
