"""LoRA on a linear map: y + (alpha/r) B A x, where a gate takes the place of alpha/r.

A starts as in HF PEFT (Kaiming uniform, a = √5), B at zero: the model is unchanged at the start.

Source: Hu et al. 2022; gated as in Mao et al. 2022.
"""

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from autopeft.hybrid.modules.base import Attachment, LayerScope, OutputPart, Own, Parameters, widths
from autopeft.hybrid.modules.gates import gate_value, new_gate
from autopeft.hybrid.sites import LayerSites
from autopeft.space.architecture import Placement


def attach_lora(placement: Placement, sites: LayerSites, dropout: float) -> tuple[Attachment, ...]:
    """LoRA stands at the linear map of its role."""
    gate = str(placement.option("gate"))
    scale = float(placement.option("alpha")) / placement.size
    part = LoRA(placement.size, scale, gate, dropout)
    return (Attachment(sites.linears[placement.role], part, sites, gate),)


@dataclass(frozen=True)
class LoRA(OutputPart):
    kind = "lora"

    r: int
    scale: float
    """alpha/r; without effect where there is a gate."""
    gate: str
    dropout: float

    def create(self, base: nn.Module) -> Parameters:
        d_in, d_out = widths(base)
        A, B = nn.Linear(d_in, self.r, bias=False), nn.Linear(self.r, d_out, bias=False)
        nn.init.kaiming_uniform_(A.weight, a=math.sqrt(5))
        nn.init.zeros_(B.weight)
        gate: Parameters = {} if self.gate == "none" else {"lora_gate": new_gate(d_in)}
        return {"lora_A": A, "lora_B": B} | gate

    def forward(self, own: Own, x: Tensor, y: Tensor, scope: LayerScope, training: bool) -> Tensor:
        A, B = own["lora_A"], own["lora_B"]
        x = x.to(A.weight.dtype)
        update = B(A(functional.dropout(x, self.dropout, training)))
        if self.gate == "none":
            return y + self.scale * update
        return y + gate_value(self.gate, own["lora_gate"], x, scope) * update

    @property
    def merge_obstacle(self) -> str | None:
        return None if self.gate == "none" else "gated lora"

    def delta(self, own: Own) -> tuple[Tensor | None, Tensor | None]:
        return self.scale * (own["lora_B"].weight @ own["lora_A"].weight), None
