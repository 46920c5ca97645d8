"""Prefix vectors through the attention registry of transformers, for one attention module at a time.

Only an attention module that holds a prefix gets a copy of its config, whose attention is `autopeft_prefix`. The
model's own config, on which masks, caches and saving hang, stays as it is. The registered function is called after
rotary embedding and after the update of the KV cache; it puts the prefix before keys and values, extends the mask,
and calls the attention function that the module had.
"""

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from autopeft.errors import ModelError
from autopeft.hybrid.layers import PREFIX, HybridLayer
from autopeft.hybrid.modules.base import LayerScope, Own, Parameters, Part

ATTENTION = "autopeft_prefix"
MLP = "prefix_mlp"
KeysValues = tuple[Tensor, Tensor, Tensor | None]
"""Keys, values and score offsets of a prefix, see `KeyValuePart.keys_values`."""
CHILD = "hybrid_prefix"
"""The host's name in the attention module. It must not contain PEFT's prefix, else `delete_adapter` skips it."""


class AdaptedAttention(nn.Module, HybridLayer):
    """Holds the prefix vectors of an attention module, of which it is a child."""

    def __init__(self, key_linear: nn.Module, base_config: Any, scope: LayerScope) -> None:
        super().__init__()
        self._key_linear = (key_linear,)  # in a tuple: it must not become a child
        self.base_config = base_config
        self._begin(scope)

    def get_base_layer(self) -> nn.Module:
        """The linear map that makes the keys: a reference for device and dtype."""
        return self._key_linear[0]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Nothing here can be merged; `HybridModel` refuses before it comes to this."""

    def unmerge(self) -> None:
        """Nothing here is ever merged."""

    def add(self, adapter: str, parts: Sequence[Part]) -> None:
        super().add(adapter, parts)
        for _, part, own in self._with_mlp():
            for name, tensor in part.flat(own).items():
                self._container(name, nn.Parameter(tensor))  # empty, so that PEFT saves what goes by this name

    # A prefix with an MLP is saved as the keys and values that the MLP makes, and loaded keys and values replace it.

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        made = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        for adapter, part, own in self._with_mlp():
            for key in [key for key in made if key.startswith(f"{prefix}{PREFIX}{MLP}.{adapter}.")]:
                del made[key]
            for name, tensor in part.flat(own).items():
                made[f"{prefix}{PREFIX}{name}.{adapter}"] = tensor
        return made

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for adapter in self.parts:
            if any(key.startswith(f"{prefix}{PREFIX}prefix_") and key.endswith(f".{adapter}") for key in state_dict):
                self.drop_mlp(adapter)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _with_mlp(self) -> Iterator[tuple[str, Any, Own]]:
        for adapter in self.parts:
            for part, own in self.own(adapter):
                if part.stored != part:
                    yield adapter, part, own

    def drop_mlp(self, adapter: str) -> None:
        """Go on with the keys and values that the adapter's MLP makes; nothing where it has none."""
        for name, part, own in list(self._with_mlp()):
            if name == adapter:
                self._make_flat(adapter, part, part.flat(own))

    def _make_flat(self, adapter: str, part: Any, flat: dict[str, Tensor]) -> None:
        mlp = getattr(self, f"{PREFIX}{MLP}")[adapter]
        trains = any(p.requires_grad for p in mlp.parameters())
        del getattr(self, f"{PREFIX}{MLP}")[adapter]
        vectors: Parameters = {name: nn.Parameter(tensor, requires_grad=trains) for name, tensor in flat.items()}
        names = self._hold(adapter, vectors)
        self.parts[adapter] = tuple(
            (part.stored, (*names, *(n for n in old if n != MLP))) if this == part else (this, old)
            for this, old in self.parts[adapter]
        )

    def prefixes(self, batch: int) -> list[KeysValues]:
        """Keys, values and score offsets of the active adapters, see `KeyValuePart.keys_values`."""
        hidden = self.scope.take_attention_input() if self.scope.keeps_input else None
        return [part.keys_values(own, batch, hidden, self.scope) for part, own in self.active()]


def host_of(attention: nn.Module, key_linear: nn.Module, scope: LayerScope) -> AdaptedAttention:
    """The prefix host of an attention module, made and registered at the first call."""
    host = getattr(attention, CHILD, None)
    if host is None:
        host = AdaptedAttention(key_linear, attention.config, scope)
        attention.add_module(CHILD, host)
        attention.config = copy.copy(attention.config)
        object.__setattr__(attention.config, "_attn_implementation_internal", ATTENTION)
    return host


def release(attention: nn.Module) -> None:
    """Undo `host_of`."""
    attention.config = getattr(attention, CHILD).base_config
    delattr(attention, CHILD)


def register_attention() -> None:
    AttentionInterface.register(ATTENTION, prefix_attention)


def prefix_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The module's own attention, with the active prefixes before `key` and `value` (B, kv heads, T, head dim).

    Raises:
        ModelError: the attention implementation cannot hold a prefix.
    """
    host: AdaptedAttention = getattr(module, CHILD)
    implementation = host.base_config._attn_implementation or "eager"
    return attend(module, implementation, host.prefixes(query.shape[0]), query, key, value, attention_mask, **kwargs)


def attend(
    module: nn.Module,
    implementation: str,
    prefixes: Sequence[KeysValues],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of this implementation, with the prefixes before `key` and `value`.

    Raises:
        ModelError: the attention implementation cannot hold a prefix.
    """
    function = attention_function(module, implementation)
    if not prefixes:
        return function(module, query, key, value, attention_mask, **kwargs)
    _check_supported(implementation, attention_mask, kwargs, any(offset is not None for *_, offset in prefixes))
    if attention_mask is None and implementation == "sdpa" and query.shape[2] > 1 and is_causal(module, kwargs):
        # sdpa aligns its own causal mask to the first key, which is now a prefix. Keys beyond the queries are the empty
        # part of a static cache: sdpa cuts them off as well.
        n = query.shape[2]
        key, value = key[:, :, :n], value[:, :, :n]
        attention_mask = torch.ones(n, n, dtype=torch.bool, device=query.device).tril()[None, None]
    mask = _extend_mask(attention_mask, query, key, prefixes)
    bias = kwargs.get("position_bias")
    n_prefix = sum(k.shape[2] for k, _, _ in prefixes)
    if bias is not None:
        kwargs["position_bias"] = torch.cat([bias.new_zeros(*bias.shape[:-1], n_prefix), bias], dim=-1)
    key = torch.cat([*(k.to(key) for k, _, _ in prefixes), key], dim=2)
    value = torch.cat([*(v.to(value) for _, v, _ in prefixes), value], dim=2)
    output, weights = function(module, query, key, value, mask, **kwargs)
    return output, None if weights is None else weights[..., n_prefix:]


def attention_function(module: nn.Module, implementation: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    if implementation == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[implementation]


def is_causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Whether sdpa would make a causal mask of its own where it is given none."""
    given = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


def _check_supported(implementation: str, mask: Any, kwargs: dict[str, Any], has_offset: bool) -> None:
    problem = None
    if kwargs.get("cache") is not None:
        problem = "continuous batching (paged attention) has no place for a prefix"
    elif mask is not None and not isinstance(mask, Tensor):
        problem = f"an attention mask of type {type(mask).__name__} cannot be extended"
    elif "flash" in implementation and kwargs.get("sliding_window") is not None:
        problem = "flash attention with a sliding window would cut the prefix off"
    elif "flash" in implementation and has_offset:
        problem = "flash attention takes no additive mask, which gate 'token' needs"
    elif "flash" in implementation and kwargs.get("cu_seq_lens_q") is not None:
        problem = "packed sequences of flash attention have no place for a prefix"
    if problem:
        raise ModelError(f"prefix: {problem}. Load the model with attn_implementation='sdpa'")


def _extend_mask(mask: Tensor | None, query: Tensor, key: Tensor, prefixes: Sequence[KeysValues]) -> Tensor | None:
    """`mask` with columns for the prefixes on the left: open, or with the offset of gate `token`."""
    has_offset = any(offset is not None for *_, offset in prefixes)
    if mask is None:
        if not has_offset:
            return None
        mask = query.new_zeros(1, 1, query.shape[2], key.shape[2])
    if has_offset and mask.dtype == torch.bool:
        mask = query.new_zeros(mask.shape).masked_fill(~mask, torch.finfo(query.dtype).min)
    rows = mask.shape if not has_offset else (query.shape[0], *mask.shape[1:])
    columns = []
    for k, _, offset in prefixes:
        if offset is None:
            is_open = mask.dtype == torch.bool or mask.dim() == 2  # flash: (B, T), 1 where attended
            columns.append(mask.new_full((*rows[:-1], k.shape[2]), 1 if is_open else 0))
        else:
            columns.append(offset.to(mask.dtype).expand(*rows[:-1], k.shape[2]))
    return torch.cat([*columns, mask.expand(rows)], dim=-1)
