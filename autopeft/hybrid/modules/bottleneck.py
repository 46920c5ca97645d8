"""Bottleneck adapters, in sequence with a sub-layer or in parallel to it: s·(U f(D x + b_d) + b_u).

Serial: x is the output of the sub-layer's last linear map, before dropout, residual and norm. Parallel: x is what
enters the sub-layer, and the result is added where the sub-layer ends. Where both stand at one sub-layer, they are
summed, as in AutoPEFT: the serial one does not see the parallel one. U and both biases start at zero: the model is
unchanged at the start.

Sources: Houlsby et al. 2019; Pfeiffer et al. 2020 (serial); He et al. 2022 (parallel, scaled); Zhou et al. 2024 (sum).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from autopeft.hybrid.modules.base import Attachment, Mailbox, OutputPart, Own, Parameters, Pass
from autopeft.hybrid.modules.gates import gate_value, new_gate
from autopeft.hybrid.roles import linear_widths
from autopeft.hybrid.sites import LayerSites
from autopeft.space.architecture import Placement

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}


def attach_serial(placement: Placement, sites: LayerSites, dropout: float) -> tuple[Attachment, ...]:
    """A serial adapter stands at the sub-layer's last linear map."""
    _, end = ends(placement.role, sites)
    part = Serial(bottleneck_of("serial", placement, dropout))
    return (Attachment(end, part, sites, part.bottleneck.gate),)


def attach_parallel(placement: Placement, sites: LayerSites, dropout: float) -> tuple[Attachment, ...]:
    """A parallel adapter is computed at the sub-layer's first linear map and added at its last."""
    start, end = ends(placement.role, sites)
    bottleneck, mailbox = bottleneck_of("parallel", placement, dropout), Mailbox()
    end_site = sites.layer.site("attn.o" if placement.role == "attn" else "ffn.out")
    assert end_site is not None
    computed = ParallelStart(bottleneck, end_site.out_features, mailbox)
    return (
        Attachment(start, computed, sites, bottleneck.gate),
        Attachment(end, ParallelEnd(mailbox), sites),
    )


def ends(sublayer: str, sites: LayerSites) -> tuple[str, str]:
    """The first and the last linear map of a sub-layer."""
    if sublayer == "attn":
        return sites.linears.get("attn.q") or sites.linears["attn.qkv"], sites.linears["attn.o"]
    return sites.linears["ffn.in"], sites.linears["ffn.out"]


def bottleneck_of(
    kind: str, placement: Placement, dropout: float, make: type["Bottleneck"] | None = None
) -> "Bottleneck":
    """The bottleneck that a placement asks for."""
    scale = placement.option("scale")
    return (make or Bottleneck)(
        kind,
        placement.size,
        str(placement.option("activation")),
        None if scale == "learned" else float(scale),
        str(placement.option("gate")),
        dropout,
    )


@dataclass(frozen=True)
class Bottleneck:
    """What all bottleneck adapters share; parameters are named after `kind`."""

    kind: str
    b: int
    activation: str
    scale: float | None
    """None: learned, starting at 1."""
    gate: str
    dropout: float

    def maps(self, d_in: int, d_out: int) -> tuple[nn.Module, nn.Module]:
        """D and U, of which U starts at zero, as do the biases."""
        down, up = nn.Linear(d_in, self.b), nn.Linear(self.b, d_out)
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        for zero in (down.bias, up.weight, up.bias):
            nn.init.zeros_(zero)
        return down, up

    def create(self, d_in: int, d_out: int) -> Parameters:
        down, up = self.maps(d_in, d_out)
        parameters: Parameters = {f"{self.kind}_down": down, f"{self.kind}_up": up}
        if self.scale is None:
            parameters[f"{self.kind}_scale"] = nn.Parameter(torch.ones(1))
        return parameters | new_gate(self.gate, self.kind, d_in)

    def forward(self, own: Own, x: Tensor, at: Pass) -> Tensor:
        down, up = own[f"{self.kind}_down"], own[f"{self.kind}_up"]
        x = x.to(down.weight.dtype)
        update = up(ACTIVATIONS[self.activation](down(functional.dropout(x, self.dropout, at.training))))
        update = update * (own[f"{self.kind}_scale"] if self.scale is None else self.scale)
        if self.gate == "none":
            return update
        return update * gate_value(self.gate, own[f"{self.kind}_gate"], x, at.scope)


@dataclass(frozen=True)
class Serial(OutputPart):
    kind = "serial"
    position = 3

    bottleneck: Bottleneck

    def create(self, base: nn.Module) -> Parameters:
        _, width = linear_widths(base)
        return self.bottleneck.create(width, width)

    def forward(self, own: Own, x: Tensor, y: Tensor, at: Pass) -> Tensor:
        return y + self.bottleneck.forward(own, y, at)


@dataclass(frozen=True)
class ParallelStart(OutputPart):
    """Computes the update from the sub-layer's input and posts it; the output stays as it is."""

    kind = "parallel"

    bottleneck: Bottleneck
    out_features: int
    mailbox: Mailbox = field(compare=False)

    def create(self, base: nn.Module) -> Parameters:
        d_in, _ = linear_widths(base)
        return self.bottleneck.create(d_in, self.out_features)

    def forward(self, own: Own, x: Tensor, y: Tensor, at: Pass) -> Tensor:
        self.mailbox.put(self.bottleneck.forward(own, x, at))
        return y


@dataclass(frozen=True)
class ParallelEnd(OutputPart):
    """Adds the update to the sub-layer's output."""

    kind = "parallel"
    position = 4

    mailbox: Mailbox = field(compare=False)

    def create(self, base: nn.Module) -> Parameters:
        return {}

    def forward(self, own: Own, x: Tensor, y: Tensor, at: Pass) -> Tensor:
        return y + self.mailbox.take().to(y.device)
