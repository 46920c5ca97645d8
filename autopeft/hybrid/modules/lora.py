"""LoRA on a linear map: y + (alpha/r) B A x, where a gate takes the place of alpha/r.

A starts as in HF PEFT (Kaiming uniform, a = √5), B at zero: the model is unchanged at the start. Scaling `rslora` is
alpha/√r. Variant `dora` learns the length of each row of W + (alpha/r) B A apart from its direction; a gate then scales
the whole change. Variant `fa` leaves A as it started: it is stored, but does not train.

Sources: Hu et al. 2022; gated as in Mao et al. 2022; rsLoRA: Kalajdzievski 2023; DoRA: Liu et al. 2024; LoRA-FA: Zhang
et al. 2023.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from torch.nn import functional

from autopeft.hybrid.modules.base import Attachment, FrozenMap, OutputPart, Own, Parameters, Pass
from autopeft.hybrid.modules.gates import gate_value, new_gate
from autopeft.hybrid.roles import linear_widths
from autopeft.hybrid.sites import LayerSites
from autopeft.space.architecture import Placement


def attach_lora(placement: Placement, sites: LayerSites, dropout: float) -> tuple[Attachment, ...]:
    """LoRA stands at the linear map of its role."""
    gate, r = str(placement.option("gate")), placement.size
    scale = float(placement.option("alpha")) / (math.sqrt(r) if placement.option("scaling") == "rslora" else r)
    make = DoRA if placement.option("variant") == "dora" else LoRA
    part = make(r, scale, gate, dropout, placement.option("variant") == "fa")
    return (Attachment(sites.linears[placement.role], part, sites, gate),)


@dataclass(frozen=True)
class LoRA(OutputPart):
    kind = "lora"

    r: int
    scale: float
    """alpha/r; without effect where there is a gate."""
    gate: str
    dropout: float
    is_frozen: bool
    """Whether A stays as it started."""

    def create(self, base: nn.Module) -> Parameters:
        d_in, d_out = linear_widths(base)
        B = nn.Linear(self.r, d_out, bias=False)
        A = FrozenMap(torch.empty(self.r, d_in), stored=True) if self.is_frozen else nn.Linear(d_in, self.r, bias=False)
        nn.init.kaiming_uniform_(A.weight, a=math.sqrt(5))
        nn.init.zeros_(B.weight)
        return {"lora_A": A, "lora_B": B} | new_gate(self.gate, self.kind, d_in)

    def forward(self, own: Own, x: Tensor, y: Tensor, at: Pass) -> Tensor:
        A, B = own["lora_A"], own["lora_B"]
        x = x.to(B.weight.dtype)
        update = B(A(functional.dropout(x, self.dropout, at.training)))
        if self.gate == "none":
            return y + self.scale * update
        return y + gate_value(self.gate, own["lora_gate"], x, at.scope) * update

    @property
    def merge_obstacle(self) -> str | None:
        return None if self.gate == "none" else "gated lora"

    def delta(self, own: Own) -> tuple[Tensor | None, Tensor | None]:
        return self.scale * (own["lora_B"].weight @ own["lora_A"].weight), None


@dataclass(frozen=True)
class DoRA(LoRA):
    position = -1  # it rescales the base's weight, whatever else stands there
    reads_base = True

    @property
    def _scale(self) -> float:
        return self.scale if self.gate == "none" else 1.0

    def create(self, base: nn.Module) -> Parameters:
        length = torch.linalg.norm(_weight(base).detach(), dim=1).cpu()  # B is zero: the change is, too
        return super().create(base) | {"lora_magnitude": nn.Parameter(length)}

    def forward(self, own: Own, x: Tensor, y: Tensor, at: Pass) -> Tensor:
        A, B, magnitude = own["lora_A"], own["lora_B"], own["lora_magnitude"]
        x = x.to(B.weight.dtype)
        dropped = functional.dropout(x, self.dropout, at.training)
        weight = _weight(at.base).to(B.weight.dtype)
        # The length is a constant for the gradient, as in the paper's section 4.3 and in HF PEFT.
        length = torch.linalg.norm(weight + self._scale * (B.weight @ A.weight).detach(), dim=1)
        ratio = magnitude / length.detach()
        change = (ratio - 1) * functional.linear(dropped, weight) + ratio * self._scale * B(A(dropped))
        return y + (change if self.gate == "none" else gate_value(self.gate, own["lora_gate"], x, at.scope) * change)

    @property
    def is_additive(self) -> bool:
        return False

    def merged(self, own: Own, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        adapted = weight + self.scale * (own["lora_B"].weight @ own["lora_A"].weight)
        length = torch.linalg.norm(adapted, dim=1).to(adapted.dtype)
        return (own["lora_magnitude"] / length).unsqueeze(1) * adapted, bias


def _weight(base: Any) -> Tensor:
    """The base's weight (out, in) as numbers: transposed where GPT-2 has it the other way, dequantised."""
    weight: Tensor = base.weight if base.weight.is_floating_point() else dequantize_module_weight(base)
    return weight.T if hasattr(base, "nf") else weight
