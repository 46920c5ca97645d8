"""Prompts: learned vectors that enter a stack with the inputs, and whose positions leave it with the outputs.

The host is a child of the stack's first layer and hooks the module that runs the stack, its owner. There are two kinds:

- An owner that takes hidden states (the encoder of BERT and its like) gets the prompts behind the first token, so that
  [CLS] stays where heads look for it; position embeddings are already in, and stay as they were.
- An owner that takes token ids (most decoders, T5, BART, ModernBERT) gets them before the first token, as embeddings:
  all positions are shifted by the prompts' length, as in HF PEFT. With a KV cache they enter with the first tokens
  only, and stay in the cache.

The mask is open for prompts. Last hidden states have the length of the input; where transformers records those of all
layers of an owner of the first kind, they still hold the prompts. Cross-attention sees the input alone.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import StaticCache

from autopeft.errors import ModelError
from autopeft.hybrid.layers import HybridLayer
from autopeft.hybrid.modules.base import LayerScope
from autopeft.hybrid.sites import takes_prompts

PROMPT_CHILD = "hybrid_prompt"
"""The host's name in the first layer. It must not contain PEFT's prefix, else `delete_adapter` skips it."""


class PromptHost(nn.Module, HybridLayer):
    """Holds the prompts of a stack; a child of its first layer."""

    def __init__(self, owner: nn.Module, device_like: nn.Module, scope: LayerScope) -> None:
        super().__init__()
        self._like = (device_like,)  # in a tuple: it must not become a child
        self._owner = (owner,)
        self.names = list(inspect.signature(owner.forward).parameters)
        self.takes_ids = takes_prompts(owner) == "ids"
        self.inserted = 0
        """Positions that the running forward pass of the owner has more than its caller knows."""
        self._begin(scope)
        self.handles: tuple[RemovableHandle, ...] = (
            owner.register_forward_pre_hook(self._enter, with_kwargs=True),
            owner.register_forward_hook(self._leave),
        )

    def get_base_layer(self) -> nn.Module:
        """A linear map of the layer: a reference for device and dtype."""
        return self._like[0]

    @property
    def owner(self) -> nn.Module:
        """The module that runs the stack."""
        return self._owner[0]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Nothing here can be merged; `HybridModel` refuses before it comes to this."""

    def unmerge(self) -> None:
        """Nothing here is ever merged."""

    def _vectors(self) -> Tensor | None:
        found = [part.vectors(own) for part, own in self.active()]
        return torch.cat(found) if found else None

    def _enter(self, owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.inserted = 0
        vectors = self._vectors()
        if vectors is None:
            return None
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        changed = self._enter_ids(owner, given, vectors) if self.takes_ids else self._enter_states(given, vectors)
        return (), changed

    def _enter_states(self, given: dict[str, Any], vectors: Tensor) -> dict[str, Any]:
        if given.get("past_key_values") is not None:
            raise ModelError("prompt: this model keeps a cache behind its embeddings; call it with use_cache=False")
        name = self.names[0]
        x = given[name]
        n = self.inserted = vectors.shape[0]
        prompts = vectors.to(x).expand(x.shape[0], -1, -1)
        mask = given.get("attention_mask")
        if mask is not None:
            if not isinstance(mask, Tensor):
                raise ModelError(f"prompt: an attention mask of type {type(mask).__name__} cannot be extended")
            mask = _open_behind_first(mask, n)
        return {**given, name: torch.cat([x[:, :1], prompts, x[:, 1:]], dim=1), "attention_mask": mask}

    def _enter_ids(self, owner: Any, given: dict[str, Any], vectors: Tensor) -> dict[str, Any]:
        n, past = vectors.shape[0], given.get("past_key_values")
        seen = 0 if past is None else past.get_seq_length()
        if isinstance(past, StaticCache):
            raise ModelError("prompt: a static cache has no room for the prompt. Generate with the dynamic cache")
        mask = given.get("attention_mask")
        if mask is not None:
            if not isinstance(mask, Tensor) or mask.dim() != 2:
                raise ModelError("prompt: needs an attention mask of 2 dimensions (batch, tokens), or none")
            given["attention_mask"] = torch.cat([mask.new_ones(mask.shape[0], n), mask], dim=1)
        positions = given.get("position_ids")
        if positions is not None:
            given["position_ids"] = positions + n
        if seen:
            return given
        self.inserted = n
        ids = given.get("input_ids")
        embedded: Tensor = given["inputs_embeds"] if ids is None else owner.get_input_embeddings()(ids)
        prompts = vectors.to(embedded).expand(embedded.shape[0], -1, -1)
        given |= {"input_ids": None, "inputs_embeds": torch.cat([prompts, embedded], dim=1)}
        if positions is not None:
            first = torch.arange(n, device=positions.device).expand(positions.shape[0], -1)
            given["position_ids"] = torch.cat([first, positions + n], dim=1)
        kinds = given.get("token_type_ids")
        if kinds is not None:
            given["token_type_ids"] = torch.cat([kinds.new_zeros(kinds.shape[0], n), kinds], dim=1)
        return given

    def _leave(self, owner: nn.Module, args: Any, output: Any) -> Any:
        n, self.inserted = self.inserted, 0
        if not n:
            return output
        if isinstance(output, tuple):
            return tuple(self._cut(value, n) if isinstance(value, Tensor | tuple) else value for value in output)
        for name in ("last_hidden_state", "hidden_states"):
            if output.get(name) is not None:
                output[name] = self._cut(output[name], n)
        return output

    def _cut(self, states: Any, n: int) -> Any:
        """Hidden states (B, T + n, H), or a tuple of them, without the positions of the prompts."""
        if isinstance(states, tuple):
            return tuple(self._cut(one, n) for one in states)
        if not isinstance(states, Tensor) or states.dim() != 3:  # attention weights, caches
            return states
        return states[:, n:] if self.takes_ids else torch.cat([states[:, :1], states[:, 1 + n :]], dim=1)


def _open_behind_first(mask: Tensor, n: int) -> Tensor:
    """`mask` (B, T) or (B, 1, T or 1, T) for a sequence with n more positions behind the first, which all may see."""
    is_open = mask.dtype == torch.bool or mask.dim() == 2
    columns = mask.new_full((*mask.shape[:-1], n), 1 if is_open else 0)
    mask = torch.cat([mask[..., :1], columns, mask[..., 1:]], dim=-1)
    if mask.dim() == 2 or mask.shape[-2] == 1:
        return mask
    rows = mask[..., :1, :].expand(*mask.shape[:-2], n, mask.shape[-1])  # a prompt sees what the first token sees
    return torch.cat([mask[..., :1, :], rows, mask[..., 1:, :]], dim=-2)


def prompt_host(layer: nn.Module, owner: nn.Module, scope: LayerScope) -> PromptHost:
    """The prompt host of a stack, made at the first call."""
    host = getattr(layer, PROMPT_CHILD, None)
    if host is None:
        linear = next(
            module
            for module in layer.modules()
            if not isinstance(module, HybridLayer) and getattr(module, "weight", None) is not None
        )
        host = PromptHost(owner, linear, scope)
        layer.add_module(PROMPT_CHILD, host)
    made: PromptHost = host
    return made


def release_prompts(layer: nn.Module) -> None:
    """Undo `prompt_host`."""
    host = getattr(layer, PROMPT_CHILD, None)
    if isinstance(host, PromptHost):
        for handle in host.handles:
            handle.remove()
        delattr(layer, PROMPT_CHILD)
