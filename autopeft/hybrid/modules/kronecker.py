"""Kronecker adapter on a linear map: y + (alpha/r) (W₁ ⊗ W₂) x, W₂ of rank r (LoKr).

Widths are split into the two factors nearest to each other. W₂ is a full matrix where a product of rank r would not be
smaller; its factor is then 1, as in HF PEFT. W₁ starts at zero, the rest as in HF PEFT. The product is never built.

Sources: Edalati et al. 2022 (KronA); Yeh et al. 2024 (LoKr).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from autopeft.hybrid.modules.base import Attachment, OutputPart, Own, Parameters, Pass
from autopeft.hybrid.roles import linear_widths
from autopeft.hybrid.sites import LayerSites
from autopeft.space.architecture import Placement
from autopeft.space.formulas import factors, kronecker_is_low_rank


def attach_kronecker(placement: Placement, sites: LayerSites, dropout: float) -> tuple[Attachment, ...]:
    """A Kronecker adapter stands at the linear map of its role."""
    scale = float(placement.option("alpha")) / placement.size
    return (Attachment(sites.linears[placement.role], Kronecker(placement.size, scale, dropout), sites),)


@dataclass(frozen=True)
class Kronecker(OutputPart):
    kind = "kronecker"

    r: int
    scale: float
    dropout: float

    def create(self, base: nn.Module) -> Parameters:
        d_in, d_out = linear_widths(base)
        (m_out, n_out), (m_in, n_in) = factors(d_out), factors(d_in)
        is_low_rank = kronecker_is_low_rank(n_out, n_in, self.r)
        shapes = {"2a": (n_out, self.r), "2b": (self.r, n_in)} if is_low_rank else {"2": (n_out, n_in)}
        second = {f"kronecker_{name}": nn.Parameter(torch.empty(shape)) for name, shape in shapes.items()}
        for parameter in second.values():
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
        return {"kronecker_1": nn.Parameter(torch.zeros(m_out, m_in)), **second}

    def forward(self, own: Own, x: Tensor, y: Tensor, at: Pass) -> Tensor:
        first, second = own["kronecker_1"], self._second(own)
        x = functional.dropout(x.to(first.dtype), self.dropout, at.training)
        table = x.unflatten(-1, (first.shape[1], second.shape[1]))  # (..., m_in, n_in)
        # Contiguous inputs: else torch chooses the kernel by `requires_grad`, and a loaded adapter is not bit-equal.
        half = functional.linear(table, second).transpose(-1, -2).contiguous()  # (..., n_out, m_in)
        return y + self.scale * functional.linear(half, first).transpose(-1, -2).flatten(-2)

    def _second(self, own: Own) -> Tensor:
        if "kronecker_2" in own:
            full: Tensor = own["kronecker_2"]
            return full
        a, b = own["kronecker_2a"], own["kronecker_2b"]
        product: Tensor = a @ b
        return product

    @property
    def merge_obstacle(self) -> str | None:
        return None

    def delta(self, own: Own) -> tuple[Tensor | None, Tensor | None]:
        return self.scale * torch.kron(own["kronecker_1"], self._second(own)), None
