"""(IA)³: learned factors, starting at one, on keys, values and the inner activations of the FFN.

At a projection they scale its output; at the FFN's last map (role `ffn.out`) its input, as in HF PEFT.

Source: Liu et al. 2022.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autopeft.hybrid.modules.base import Attachment, InputPart, OutputPart, Own, Parameters, Pass
from autopeft.hybrid.roles import linear_widths
from autopeft.hybrid.sites import LayerSites
from autopeft.space.architecture import Placement


def attach_ia3(placement: Placement, sites: LayerSites, dropout: float) -> tuple[Attachment, ...]:
    """(IA)³ stands at the linear map of its role."""
    part = InputFactors() if placement.role == "ffn.out" else OutputFactors()
    return (Attachment(sites.linears[placement.role], part, sites),)


@dataclass(frozen=True)
class OutputFactors(OutputPart):
    kind = "ia3"
    position = 2

    def create(self, base: nn.Module) -> Parameters:
        return {"ia3": nn.Parameter(torch.ones(linear_widths(base)[1]))}

    def forward(self, own: Own, x: Tensor, y: Tensor, at: Pass) -> Tensor:
        return y * own["ia3"]

    @property
    def merge_obstacle(self) -> str | None:
        return None

    @property
    def is_additive(self) -> bool:
        return False

    def merged(self, own: Own, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        s = own["ia3"]
        return s[:, None] * weight, None if bias is None else s * bias


@dataclass(frozen=True)
class InputFactors(InputPart):
    kind = "ia3"
    position = 9  # merged last: it scales what the parts on the output read as well

    def create(self, base: nn.Module) -> Parameters:
        return {"ia3": nn.Parameter(torch.ones(linear_widths(base)[0]))}

    def enter(self, own: Own, x: Tensor) -> Tensor:
        return (x * own["ia3"]).to(x.dtype)

    @property
    def merge_obstacle(self) -> str | None:
        return None

    @property
    def is_additive(self) -> bool:
        return False

    def merged(self, own: Own, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return own["ia3"] * weight, bias
