"""Attention of training steps over short sequences on a CPU, as plain products in place of torch's fused kernel.

As exact as the fused one (rounding differs). That never holds a whole matrix of attention weights, which is worth its
trouble where sequences are long; over a few dozen tokens it costs more than the products themselves: it computes the
weights anew in the backward pass, and gradients that nobody asks for, such as those of keys of which no layer below
trains. Forward and backward together took 0.71 to 1.04 of its time at 12 to 62 tokens, 0.43 to 0.76 with keys that
need no gradient (12 heads of 32 columns, 8 to 32 rows).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from autopeft.hybrid.attention import is_causal

_FUSED = "sdpa"
_LONGEST = 64
"""Keys up to which it was measured to be faster."""


@contextmanager
def short_attention() -> Iterator[None]:
    """Within it, models that call torch's fused attention have this one in training steps, where it is the faster."""
    fused = ALL_ATTENTION_FUNCTIONS[_FUSED]

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        if not _is_for_products(module, query, key, value, attention_mask, kwargs):
            found: tuple[Tensor, None] = fused(module, query, key, value, attention_mask, **kwargs)
            return found
        scale = kwargs.get("scaling")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return _Products.apply(query, key, value, attention_mask, scale), None

    ALL_ATTENTION_FUNCTIONS[_FUSED] = attend
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS[_FUSED] = fused


_BEYOND = ("position_bias", "cache", "softcap")
"""Arguments of the attention function that change what it computes, and are not known here."""


def _is_for_products(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, kwargs: dict[str, Any]) -> bool:
    """Whether it is a training step that these products compute, and compute faster."""
    is_short = key.shape[2] <= _LONGEST and query.shape[:2] == key.shape[:2] and query.device.type == "cpu"
    trains = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    is_plain = (
        query.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not kwargs.get("dropout")
        and (mask is not None or query.shape[2] == 1 or not is_causal(module, kwargs))
        and (mask is None or (isinstance(mask, Tensor) and not mask.requires_grad and mask.dim() == 4))
    )
    return is_short and trains and is_plain and all(kwargs.get(name) is None for name in _BEYOND)


class _Products(torch.autograd.Function):
    """Queries (B, heads, Tq, d), keys and values (B, heads, Tk, d) → (B, Tq, heads, d)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        q, k, v = (x.flatten(0, 1).contiguous() for x in (query, key, value))
        scores = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=scale)
        by_head = scores.view(*query.shape[:3], key.shape[2])
        if mask is not None and mask.dtype == torch.bool:
            by_head.masked_fill_(~mask, torch.finfo(scores.dtype).min)
        elif mask is not None:
            by_head.add_(mask)
        weights = scores.softmax(-1)
        ctx.save_for_backward(q, k, v, weights)
        ctx.scale, ctx.shape = scale, query.shape[:2]
        return torch.bmm(weights, v).unflatten(0, ctx.shape).transpose(1, 2).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        of_output = gradient.transpose(1, 2).flatten(0, 1)
        of_query = of_key = of_value = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            of_weights = torch.bmm(of_output, v.mT)
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            if ctx.needs_input_grad[0]:
                of_query = torch.baddbmm(q.new_empty(()), of_scores, k, beta=0, alpha=ctx.scale)
            if ctx.needs_input_grad[1]:
                of_key = torch.baddbmm(q.new_empty(()), of_scores.mT, q, beta=0, alpha=ctx.scale)
        if ctx.needs_input_grad[2]:
            of_value = torch.bmm(weights.mT, of_output)
        return (*(None if x is None else x.unflatten(0, ctx.shape) for x in (of_query, of_key, of_value)), None, None)
