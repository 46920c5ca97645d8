"""Which linear map of a transformer layer plays which role, by its name.

A role that several modules of a layer claim (experts) is left out. A layer that already carries adapters gives the same
roles: names are those of the wrapped modules.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

# Role -> pattern of the linear map's name within its layer; the first match in this order counts.
_ROLE_NAMES: Mapping[str, re.Pattern[str]] = {
    role: re.compile(rf"(^|\.)({names})$")
    for role, names in {
        "attn.q": "q_proj|query|q_lin|query_proj|q|wq",
        "attn.k": "k_proj|key|k_lin|key_proj|k|wk",
        "attn.v": "v_proj|value|v_lin|value_proj|v|wv",
        "attn.qkv": "c_attn|query_key_value|qkv_proj|Wqkv|in_proj|qkv|W_pack",
        "attn.o": r"o_proj|out_proj|out_lin|o|attention\.output\.dense|self_attention\.dense|attention\.dense"
        r"|self_attn\.dense|attn\.c_proj|attn\.Wo|attn\.o",
        "ffn.gate": "gate_proj|wi_0|w1",
        "ffn.in": r"up_proj|intermediate\.dense|lin1|c_fc|fc1|fc_in|wi|wi_1|dense_h_to_4h|mlp\.Wi|gate_up_proj|w3|ffn",
        "ffn.out": r"down_proj|(?<!attention\.)output\.dense|lin2|mlp\.c_proj|fc2|fc_out|wo|dense_4h_to_h|mlp\.Wo|w2"
        "|ffn_output",
    }.items()
}
CROSS_ATTENTION = re.compile(r"cross|encoder_attn|EncDec", re.IGNORECASE)


def inside(module: nn.Module) -> nn.Module:
    """The module of the base model that adapters are wrapped around."""
    while isinstance(module, BaseTunerLayer) and hasattr(module, "base_layer"):
        module = module.base_layer
    return module


def modules_of(layer: nn.Module, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Modules within a layer as (relative name, module without its adapters); adapters themselves are left out."""
    for name, child in layer.named_children():
        module = inside(child)
        if isinstance(module, BaseTunerLayer):
            continue
        yield f"{prefix}{name}", module
        yield from modules_of(module, f"{prefix}{name}.")


def is_linear(module: nn.Module) -> bool:
    is_conv1d = hasattr(module, "nf") and hasattr(module, "nx")  # the transposed linear map of GPT-2
    return is_conv1d or (hasattr(module, "in_features") and hasattr(module, "out_features"))


def linear_widths(module: Any) -> tuple[int, int]:
    """Input and output width of a linear map: `nn.Linear`, the transposed `Conv1D` of GPT-2, quantised ones."""
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)
    return int(module.nx), int(module.nf)


def linears_by_role(linears: Mapping[str, nn.Module]) -> dict[str, str]:
    claims: dict[str, list[str]] = {}
    for name in linears:
        role = next((role for role, pattern in _ROLE_NAMES.items() if pattern.search(name)), None)
        if role is not None:
            claims.setdefault(role, []).append(name)
    return {role: names[0] for role, names in claims.items() if len(names) == 1}
