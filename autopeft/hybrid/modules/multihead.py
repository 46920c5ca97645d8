"""Multi-head parallel adapter: a bottleneck of its own for every attention head, added before the heads are joined.

The input of attention is cut into as many pieces as there are heads; head i adds s·(Uᵢ f(Dᵢ xᵢ + b_d) + b_u) to its
output, before the output projection. U and the biases start at zero.

Source: He et al. 2022.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from autopeft.hybrid.modules.base import Attachment, InputPart, Mailbox, Own, Parameters
from autopeft.hybrid.modules.bottleneck import Bottleneck, ParallelStart, bottleneck_of, ends
from autopeft.hybrid.sites import LayerSites
from autopeft.space.architecture import Placement


def attach_multihead(placement: Placement, sites: LayerSites, dropout: float) -> tuple[Attachment, ...]:
    """It is computed at attention's first linear map and added to what enters its last."""
    start, end = ends("attn", sites)
    made = bottleneck_of("multihead", placement, dropout, HeadBottleneck)
    bottleneck, mailbox = HeadBottleneck(**{**made.__dict__, "n_heads": sites.layer.n_heads}), Mailbox()
    joined = sites.layer.site("attn.o")
    assert joined is not None
    return (
        Attachment(start, MultiHeadStart(bottleneck, joined.in_features, mailbox), sites, bottleneck.gate),
        Attachment(end, MultiHeadEnd(mailbox), sites),
    )


@dataclass(frozen=True)
class HeadBottleneck(Bottleneck):
    n_heads: int = 1

    def maps(self, d_in: int, d_out: int) -> tuple[nn.Module, nn.Module]:
        down, up = (
            HeadLinear(self.n_heads, d_in, self.n_heads * self.b),
            HeadLinear(self.n_heads, self.n_heads * self.b, d_out),
        )
        nn.init.zeros_(up.weight)
        return down, up


@dataclass(frozen=True)
class MultiHeadStart(ParallelStart):
    kind = "multihead"


@dataclass(frozen=True)
class MultiHeadEnd(InputPart):
    """Adds the update to what the heads have made."""

    kind = "multihead"

    mailbox: Mailbox = field(compare=False)

    def create(self, base: nn.Module) -> Parameters:
        return {}

    def enter(self, own: Own, x: Tensor) -> Tensor:
        return (x + self.mailbox.take().to(x.device)).to(x.dtype)


class HeadLinear(nn.Module):
    """One linear map per head: weight (heads, out/heads, in/heads), bias (out,), which starts at zero."""

    def __init__(self, n_heads: int, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_heads, d_out // n_heads, d_in // n_heads))
        self.bias = nn.Parameter(torch.zeros(d_out))
        bound = 1 / math.sqrt(d_in // n_heads)
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (self.weight.shape[0], -1))  # (..., heads, in/heads)
        return torch.einsum("...hi,hoi->...ho", heads, self.weight).flatten(-2) + self.bias
