"""BitFit: all biases of a layer, of linear maps and norms, as zero-initialised deltas.

Deltas instead of the biases themselves: the adapter can be switched off, several can be active, merging is an addition.

Source: Ben Zaken et al. 2022.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autopeft.hybrid.modules.base import Attachment, OutputPart, Own, Parameters, Pass
from autopeft.hybrid.sites import LayerSites
from autopeft.space.architecture import Placement


def attach_bitfit(placement: Placement, sites: LayerSites, dropout: float) -> tuple[Attachment, ...]:
    """BitFit stands at every linear map of the layer that has a bias, and at every norm that has one."""
    linears = [
        Attachment(sites.linears[site.role], BiasDelta(site.out_features), sites)
        for site in sites.layer.sites
        if site.has_bias
    ]
    widths = sites.layer.norm_biases
    norms = [Attachment(name, BiasDelta(width), sites) for name, width in zip(sites.norms, widths, strict=True)]
    return (*linears, *norms)


@dataclass(frozen=True)
class BiasDelta(OutputPart):
    kind = "bitfit"
    position = 1

    width: int

    def create(self, base: nn.Module) -> Parameters:
        return {"bias": nn.Parameter(torch.zeros(self.width))}

    def forward(self, own: Own, x: Tensor, y: Tensor, at: Pass) -> Tensor:
        return y + own["bias"]

    @property
    def merge_obstacle(self) -> str | None:
        return None

    def delta(self, own: Own) -> tuple[Tensor | None, Tensor | None]:
        return None, own["bias"]
