"""Tuning of a layer's norms: their weights, on request their biases too, as zero-initialised deltas.

The weights alone go together with BitFit, which holds the biases of the norms. The base's norm is run with the changed
weight, so any kind of norm will do: LayerNorm, RMSNorm, Gemma's (1 + w).

Source: Zhao et al. 2023.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autopeft.hybrid.modules.base import Attachment, OutputPart, Own, Parameters, Pass
from autopeft.hybrid.sites import LayerSites
from autopeft.space.architecture import Placement


def attach_layernorm(placement: Placement, sites: LayerSites, dropout: float) -> tuple[Attachment, ...]:
    """It stands at every norm of the layer that has a weight."""
    part = NormDelta(placement.option("trains") == "all")
    return tuple(Attachment(name, part, sites) for name in sites.weighted_norms)


@dataclass(frozen=True)
class NormDelta(OutputPart):
    kind = "layernorm"

    with_bias: bool

    def create(self, base: nn.Module) -> Parameters:
        names = ("weight", "bias") if self.with_bias and getattr(base, "bias", None) is not None else ("weight",)
        return {f"norm_{name}": nn.Parameter(torch.zeros(base.get_parameter(name).shape)) for name in names}

    def forward(self, own: Own, x: Tensor, y: Tensor, at: Pass) -> Tensor:
        base, delta = at.base, own["norm_weight"]
        weight = base.weight
        changed = torch.func.functional_call(base, {"weight": (weight + delta).to(weight.dtype)}, (x,))
        # What other parts have added to y stays: this one adds its difference to the base.
        y = y + (changed - torch.func.functional_call(base, {"weight": weight}, (x,)))
        return y + own["norm_bias"] if "norm_bias" in own else y

    @property
    def merge_obstacle(self) -> str | None:
        return None

    def delta(self, own: Own) -> tuple[Tensor | None, Tensor | None]:
        return own["norm_weight"], own.get("norm_bias")
