"""Gates: one number between 0 and 1 that scales what an adapter adds.

`mean` is UniPELT's gate, g = mean_t σ(w·x_t + c), one per example. The mean runs over the true tokens; AdapterHub's
UniPELT averages over padding as well, so its outputs depend on how a batch was padded. A mean sees the whole
sentence, hence only bidirectional stacks may use it. `token` is σ(w·x_t + c), one per token, safe for causal models.
`scalar` is σ(c), one learned number for all inputs.

Source: Mao et al. 2022 (UniPELT).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autopeft.errors import ModelError
from autopeft.hybrid.modules.base import LayerScope, Parameters


class ScalarGate(nn.Module):
    """One number. A module like the other gates: PEFT takes parameters under one name to be of one sort."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


def new_gate(mode: str, kind: str, width: int) -> Parameters:
    """The parameters of a gate that starts near 1/2, under its kind's name; none for mode `none`."""
    if mode == "none":
        return {}
    if mode == "scalar":
        return {f"{kind}_gate": ScalarGate()}
    gate = nn.Linear(width, 1)
    nn.init.normal_(gate.weight, std=0.02)
    nn.init.zeros_(gate.bias)
    return {f"{kind}_gate": gate}


def gate_value(mode: str, gate: Any, x: Tensor, scope: LayerScope) -> Tensor:
    """The gate for inputs `x` (B, T, H): (B, 1, 1) for `mean`, (B, T, 1) for `token`, (1,) for `scalar`.

    Raises:
        ModelError: `mean` on inputs that are not whole sentences.
    """
    if mode == "scalar":
        return torch.sigmoid(gate.weight)
    value = torch.sigmoid(gate(x.to(gate.weight.dtype)))
    return value if mode == "token" else _mean_over_tokens(value, scope.true_tokens)


def log_gate_value(mode: str, gate: Any, x: Tensor | None) -> Tensor:
    """The logarithm of a gate `token` for `x` (B, T, H) as (B, T, 1), of a gate `scalar` as (1, 1, 1)."""
    if mode == "scalar":
        return functional.logsigmoid(gate.weight).view(1, 1, 1)
    assert x is not None
    return functional.logsigmoid(gate(x.to(gate.weight.dtype)))


def _mean_over_tokens(value: Tensor, true_tokens: Tensor | None) -> Tensor:
    if value.dim() != 3:
        raise ModelError(f"gate 'mean': needs inputs of shape (batch, tokens, width), got {value.dim()} dimensions")
    if true_tokens is None:
        return value.mean(dim=1, keepdim=True)
    if true_tokens.shape[1] != value.shape[1]:
        raise ModelError(
            f"gate 'mean': the mask has {true_tokens.shape[1]} tokens, the input {value.shape[1]}; "
            "chunked feed-forward (chunk_size_feed_forward) is not supported"
        )
    weight = true_tokens.to(value.dtype)
    return (value * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True).clamp(min=1)
