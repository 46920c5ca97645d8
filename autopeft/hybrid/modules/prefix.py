"""Prefix tuning: l learned key and value vectors before those of the sequence, in the attention of one layer.

They join after rotary embedding and after the KV cache, so position ids, cache and masks of the model stay as they
are. An ungated prefix always takes part of the attention: it is *not* the identity at the start, nor is a gated one
(gates start near 1/2). Gate `mean` multiplies keys and values (UniPELT); at gate 0 the prefix still takes a share of
the softmax, exp(0) per column. Gate `token` adds log g to the scores of the prefix instead: as g goes to 0, the base
model's attention comes back exactly.

Sources: Li & Liang 2021; gate `mean`: Mao et al. 2022.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from autopeft.hybrid.modules.base import Attachment, KeyValuePart, LayerScope, Own, Parameters
from autopeft.hybrid.modules.gates import gate_value, new_gate
from autopeft.hybrid.sites import LayerSites
from autopeft.space.architecture import Placement

_STD = 0.02


def attach_prefix(placement: Placement, sites: LayerSites, dropout: float) -> tuple[Attachment, ...]:
    """A prefix stands at the attention module."""
    assert sites.attention is not None
    layer, gate = sites.layer, str(placement.option("gate"))
    part = Prefix(placement.size, layer.n_kv_heads, layer.head_dim, layer.hidden, gate)
    return (Attachment(sites.attention, part, sites, gate),)


@dataclass(frozen=True)
class Prefix(KeyValuePart):
    kind = "prefix"

    length: int
    n_kv_heads: int
    head_dim: int
    hidden: int
    gate: str

    @property
    def needs_input(self) -> bool:
        return self.gate != "none"

    def create(self, base: nn.Module) -> Parameters:
        shape = (self.n_kv_heads, self.length, self.head_dim)
        k, v = (nn.Parameter(torch.randn(shape) * _STD) for _ in "kv")
        gate: Parameters = {} if self.gate == "none" else {"prefix_gate": new_gate(self.hidden)}
        return {"prefix_k": k, "prefix_v": v} | gate

    def keys_values(
        self, own: Own, batch: int, hidden: Tensor | None, scope: LayerScope
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        k, v = (own[name].expand(batch, -1, -1, -1) for name in ("prefix_k", "prefix_v"))  # (B, kv heads, l, d)
        if self.gate == "none":
            return k, v, None
        assert hidden is not None
        gate = own["prefix_gate"]
        if self.gate == "mean":
            g = gate_value("mean", gate, hidden, scope).unsqueeze(-1)  # (B, 1, 1, 1)
            return k * g, v * g, None
        log_gate = functional.logsigmoid(gate(hidden.to(gate.weight.dtype)))  # (B, T, 1)
        return k, v, log_gate.unsqueeze(1)
