"""An adapter held apart from the model that it was made for: parts, weights and task head, by module.

So the model can be lent to others, and many adapters can run in it together (`autopeft.hybrid.packed`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from autopeft.hybrid.attention import AdaptedAttention
from autopeft.hybrid.layers import HybridLayer
from autopeft.hybrid.model import scope_in
from autopeft.hybrid.modules.base import LayerScope, Own, Part
from autopeft.hybrid.prompts import PromptHost

Parts = tuple[tuple[Part, Own], ...]


@dataclass(frozen=True)
class DetachedAdapter:
    """Module names are those of the model without adapters."""

    outputs: Mapping[str, Parts]
    """Of linear maps and norms, in the order in which they act."""
    attention: Mapping[str, Parts]
    """Prefixes, by attention module."""
    scopes: Mapping[str, LayerScope]
    """What layers keep for parts during a forward pass, by the module at whose entry that is filled."""
    scope_of: Mapping[str, str]
    """Module with parts → its scope's name."""
    heads: Mapping[str, nn.Module]
    """The trained task head."""
    prompts: Mapping[str, Parts]
    """By the module that runs the stack."""


def detached(model: nn.Module, adapter: str = "default") -> DetachedAdapter:
    """The adapter of this name as it stands in the base model `model`; they share their weights."""
    outputs: dict[str, Parts] = {}
    attention: dict[str, Parts] = {}
    heads: dict[str, nn.Module] = {}
    scope_of: dict[str, str] = {}
    prompts: dict[str, Parts] = {}
    scopes = {name: scope for name, module in model.named_modules() if (scope := scope_in(module)) is not None}
    names = {id(scope): name for name, scope in scopes.items()}
    modules = {id(module): name for name, module in model.named_modules()}
    for name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            heads[name] = module.modules_to_save[adapter]
        if not isinstance(module, HybridLayer) or adapter not in module.parts:
            continue
        if isinstance(module, PromptHost):
            prompts[modules[id(module.owner)]] = tuple(module.own(adapter))
            continue
        is_prefix = isinstance(module, AdaptedAttention)
        place = name.rpartition(".")[0] if is_prefix else name  # a prefix host is a child of the attention module
        (attention if is_prefix else outputs)[place] = tuple(module.own(adapter))
        scope_of[place] = names[id(module.scope)]
    return DetachedAdapter(outputs, attention, scopes, scope_of, heads, prompts)
