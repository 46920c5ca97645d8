"""VeRA: y + λ_b ∘ B (λ_d ∘ A x) with random A and B that never train; λ_b starts at zero.

A and B come from the seed, as in HF PEFT: maps of one shape and seed are the same in all layers. They are not stored.
HF PEFT cuts them out of one pair as large as its largest map; here each shape has its pair, so that a layer's maps do
not hang on the other layers of the architecture.

Source: Kopiczko et al. 2024.
"""

from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
from peft.tuners.vera.model import _kaiming_init
from torch import Tensor, nn
from torch.nn import functional

from autopeft.hybrid.modules.base import Attachment, FrozenMap, OutputPart, Own, Parameters, Pass
from autopeft.hybrid.roles import linear_widths
from autopeft.hybrid.sites import LayerSites
from autopeft.space.architecture import Placement

_MAPS: WeakValueDictionary[tuple[int, int, int, int, str], Tensor] = WeakValueDictionary()
"""Maps in use, so that layers of one shape share them in memory as long as they stay on one device."""


def attach_vera(placement: Placement, sites: LayerSites, dropout: float) -> tuple[Attachment, ...]:
    """VeRA stands at the linear map of its role."""
    part = VeRA(placement.size, int(placement.option("seed")), float(placement.option("d_initial")), dropout)
    return (Attachment(sites.linears[placement.role], part, sites),)


@dataclass(frozen=True)
class VeRA(OutputPart):
    kind = "vera"

    r: int
    seed: int
    d_initial: float
    dropout: float

    def create(self, base: nn.Module) -> Parameters:
        d_in, d_out = linear_widths(base)
        A, B = _random_maps(self.seed, self.r, d_in, d_out)
        return {
            "vera_A": FrozenMap(A, stored=False),
            "vera_B": FrozenMap(B, stored=False),
            "vera_d": nn.Parameter(torch.full((self.r,), self.d_initial)),
            "vera_b": nn.Parameter(torch.zeros(d_out)),
        }

    def forward(self, own: Own, x: Tensor, y: Tensor, at: Pass) -> Tensor:
        d, b = own["vera_d"], own["vera_b"]
        x = functional.dropout(x.to(d.dtype), self.dropout, at.training)
        return y + b * own["vera_B"](d * own["vera_A"](x))

    @property
    def merge_obstacle(self) -> str | None:
        return None

    def delta(self, own: Own) -> tuple[Tensor | None, Tensor | None]:
        d, b = own["vera_d"], own["vera_b"]
        return b[:, None] * (own["vera_B"].weight.to(b) @ (d[:, None] * own["vera_A"].weight.to(d))), None


def _random_maps(seed: int, r: int, d_in: int, d_out: int) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r)."""
    key_A, key_B = ((seed, r, d_in, d_out, name) for name in "AB")
    A, B = _MAPS.get(key_A), _MAPS.get(key_B)
    if A is None or B is None:
        generator = torch.Generator(device="cpu").manual_seed(seed)
        with torch.device("cpu"):
            A, B = (_kaiming_init(shape, generator=generator) for shape in ((r, d_in), (d_out, r)))
        _MAPS[key_A], _MAPS[key_B] = A, B
    return A, B
