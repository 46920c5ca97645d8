"""Compacter: a serial bottleneck adapter whose two maps are Σᵢ Aᵢ ⊗ (sᵢ tᵢ), i = 1 … n, with n×n matrices Aᵢ.

n is 4, or the largest smaller number that divides the widths. The published Aᵢ are shared by all layers; here every
adapter has its own, as layers hold different adapters.

Source: Mahabadi et al. 2021.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autopeft.hybrid.modules.base import Attachment
from autopeft.hybrid.modules.bottleneck import Bottleneck, Serial, bottleneck_of, ends
from autopeft.hybrid.sites import LayerSites
from autopeft.space.architecture import Placement
from autopeft.space.formulas import phm_dimension


def attach_compacter(placement: Placement, sites: LayerSites, dropout: float) -> tuple[Attachment, ...]:
    """A Compacter stands at the sub-layer's last linear map."""
    part = CompacterPart(bottleneck_of("compacter", placement, dropout, PHMBottleneck))
    return (Attachment(ends(placement.role, sites)[1], part, sites, part.bottleneck.gate),)


@dataclass(frozen=True)
class PHMBottleneck(Bottleneck):
    def maps(self, d_in: int, d_out: int) -> tuple[nn.Module, nn.Module]:
        return PHMLinear(d_in, self.b), PHMLinear(self.b, d_out, starts_at_zero=True)


@dataclass(frozen=True)
class CompacterPart(Serial):
    kind = "compacter"


class PHMLinear(nn.Module):
    """x W + c with W = Σᵢ Aᵢ ⊗ (sᵢ tᵢ), of shapes A (n, n, n), s (n, in/n), t (n, out/n)."""

    def __init__(self, d_in: int, d_out: int, starts_at_zero: bool = False) -> None:
        super().__init__()
        n = phm_dimension(d_in, d_out)
        self.A = nn.Parameter(torch.randn(n, n, n) * n**-0.5)
        self.s = nn.Parameter(torch.randn(n, d_in // n) * d_in**-0.5)
        self.t = nn.Parameter(torch.zeros(n, d_out // n) if starts_at_zero else torch.randn(n, d_out // n))
        self.bias = nn.Parameter(torch.zeros(d_out))

    @property
    def weight(self) -> Tensor:
        """Names the dtype of the map; its matrix is never built."""
        return self.A

    def forward(self, x: Tensor) -> Tensor:
        n = self.A.shape[0]
        inner = torch.einsum("...ap,np->...an", x.unflatten(-1, (n, -1)), self.s)  # s of each block of the input
        mixed = torch.einsum("...an,nab->...bn", inner, self.A)
        return torch.einsum("...bn,nq->...bq", mixed, self.t).flatten(-2) + self.bias
