"""Roles of linear maps found by running a model once, in place of its names.

The attention function of transformers' registry is replaced by one that looks at what reaches it: a linear map is q, k
or v if the query, key or value depends on its output, and qkv if all three do; the next linear map after it is o. In
the rest of the layer, maps from the width of the residual stream are `ffn.in` (of two, the first is the gate, as its
activation is computed first), and the map back is `ffn.out`. Modules that are run several times (ALBERT) count once.

It works on the meta device as well. Models that compute attention on their own are not seen through: their layers have
no roles here.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from autopeft.hybrid.roles import CROSS_ATTENTION, is_linear, linear_widths, modules_of

_TRACE = "autopeft_trace"


@dataclass
class _Record:
    """What happened in one layer, in order."""

    outputs: dict[str, Tensor] = field(default_factory=dict)
    """Linear map -> its output, as a leaf of the graph."""
    widths: dict[str, tuple[int, int]] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    n_before_attention: int | None = None


def example_inputs(model: Any) -> dict[str, Tensor]:
    """A small valid input of a transformers model, on its device: 4 tokens, an image or a sound."""
    config, device = model.config, next(model.parameters()).device
    name = model.main_input_name
    if name == "pixel_values":
        size, channels = config.image_size, getattr(config, "num_channels", 3)
        height, width = (size, size) if isinstance(size, int) else size
        return {name: torch.zeros(1, channels, height, width, device=device)}
    if name == "input_features":
        inputs = {name: torch.zeros(1, config.num_mel_bins, 2 * config.max_source_positions, device=device)}
    else:
        inputs = {name: torch.tensor([[3, 4, 5, 6]], device=device)}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = torch.tensor([[3, 4, 5]], device=device)
    return inputs


def trace_roles(model: Any, layer_names: Mapping[tuple[str, int], str]) -> dict[tuple[str, int], dict[str, str]]:
    """Role -> module name within the layer, for each layer, as one forward pass shows it.

    The model is left as it was.
    """
    records = {position: _Record() for position in layer_names}
    handles, was_training = [], model.training
    model.eval()
    try:
        for position, name in layer_names.items():
            for relative, module in modules_of(model.get_submodule(name)):
                if is_linear(module) and not CROSS_ATTENTION.search(relative):
                    records[position].widths[relative] = linear_widths(module)
                    handles.append(module.register_forward_hook(_remember(records[position], relative)))
        layers = {position: model.get_submodule(name) for position, name in layer_names.items()}
        with _watched(layers, records), torch.enable_grad():
            model(**example_inputs(model))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return {position: _with_ffn(record) for position, record in records.items()}


def _remember(record: _Record, name: str) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()  # what follows depends on this map alone, not on those before it
        record.outputs.setdefault(name, leaf)
        return leaf * 1

    return hook


@contextmanager
def _watched(layers: Mapping[Any, nn.Module], records: Mapping[Any, _Record]) -> Iterator[None]:
    """Within it, the attention modules of the layers tell the records what reaches them."""
    from autopeft.hybrid.attention import attention_function

    changed: dict[nn.Module, tuple[Any, _Record]] = {}

    def look(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        config, record = changed[module]
        if record.n_before_attention is None:
            record.n_before_attention = len(record.outputs)
            tensors = {"q": query, "k": key, "v": value}
            reached = {role: _reaching(tensor, record.outputs) for role, tensor in tensors.items()}
            for name in record.outputs:
                letters = "".join(role for role in "qkv" if name in reached[role])
                if letters in ("q", "k", "v", "qkv"):
                    record.roles[f"attn.{letters}"] = name
        implementation = config._attn_implementation or "eager"
        return attention_function(module, implementation)(module, query, key, value, mask, **kwargs)

    AttentionInterface.register(_TRACE, look)
    try:
        for position, layer in layers.items():
            for name, module in layer.named_modules():
                config = getattr(module, "config", None)
                if hasattr(config, "_attn_implementation") and not CROSS_ATTENTION.search(name):
                    changed[module] = (config, records[position])
                    module.config = copy.copy(config)
                    object.__setattr__(module.config, "_attn_implementation_internal", _TRACE)
        yield
    finally:
        for module, (config, _) in changed.items():
            module.config = config


def _reaching(tensor: Tensor, outputs: Mapping[str, Tensor]) -> set[str]:
    if not tensor.requires_grad or not outputs:
        return set()
    grads = torch.autograd.grad(tensor.sum(), list(outputs.values()), retain_graph=True, allow_unused=True)
    return {name for name, grad in zip(outputs, grads, strict=True) if grad is not None}


def _with_ffn(record: _Record) -> dict[str, str]:
    roles, n = dict(record.roles), record.n_before_attention
    query = roles.get("attn.q") or roles.get("attn.qkv")
    if n is None or query is None:
        return {}
    after = list(record.outputs)[n:]
    if after:
        roles["attn.o"] = after[0]
    hidden = record.widths[query][0]
    rest = [name for name in record.outputs if name not in roles.values()]
    ins = [name for name in rest if record.widths[name][0] == hidden]
    outs = [name for name in rest if record.widths[name][1] == hidden and name not in ins]
    if len(outs) == 1 and len(ins) in {1, 2}:
        roles |= {"ffn.out": outs[0], "ffn.in": ins[-1]} | ({"ffn.gate": ins[0]} if len(ins) == 2 else {})
    return roles
