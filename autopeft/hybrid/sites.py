"""Where adapters can stand in a transformers model: stacks, layers, and linear maps, attention and norms by role.

Stacks come from what the model declares (`_can_record_outputs`), else from its layers' base class
(`GradientCheckpointingLayer`), else the biggest homogeneous `ModuleList` is the stack. Roles come from names, and
a user's `SiteMap` comes before all of it. A model that already carries adapters gives the same sites: names are those
of the wrapped modules, facts those of the modules inside.
"""

import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from autopeft.errors import ModelError, UnknownSiteError
from autopeft.hybrid.roles import CROSS_ATTENTION, inside, is_linear, linear_widths, linears_by_role, modules_of
from autopeft.space.anatomy import LINEAR_ROLES, Layer, Site, Stack
from autopeft.space.architecture import Placement
from autopeft.space.modules import MODULES
from autopeft.space.site_map import NO_SITE_MAP, SiteMap

_HEAD_DIM_NAMES = ("head_dim", "attention_head_size", "key_value_proj_dim", "attention_head_dim")
_KV_HEADS_NAMES = ("num_key_value_heads", "num_attention_heads", "num_heads", "n_heads", "n_head")


@dataclass(frozen=True)
class LayerSites:
    """The modules of one layer, by their names in the model, and the layer's facts."""

    name: str
    attention: str | None
    """The module that calls the attention function."""
    linears: Mapping[str, str]
    """Role -> module name."""
    norms: tuple[str, ...]
    """Norms that have a bias, in the order of `Layer.norm_biases`."""
    layer: Layer
    weighted_norms: tuple[str, ...] = ()
    """Norms that have a weight, in the order of `Layer.norm_weights`."""
    owner: str | None = None
    """The module that runs the stack, where prompts can enter there and this is its first layer."""


@dataclass(frozen=True)
class Sites:
    """All layers of a model by (stack name, index)."""

    model_type: str
    layers: Mapping[tuple[str, int], LayerSites]

    @cached_property
    def stacks(self) -> tuple[Stack, ...]:
        """The facts alone, as `autopeft.space` reads them."""
        names = dict.fromkeys(stack for stack, _ in self.layers)
        return tuple(
            Stack(name, tuple(sites.layer for (stack, _), sites in self.layers.items() if stack == name))
            for name in names
        )

    def of(self, placement: Placement) -> LayerSites:
        """The layer in which `placement` stands.

        Raises:
            UnknownSiteError: there is no such layer, or it has no place for this module; names what there is.
        """
        where = f"{placement.stack} layer {placement.layer}"
        sites = self.layers.get((placement.stack, placement.layer))
        if sites is None:
            known = ", ".join(f"{stack.name} 0-{len(stack.layers) - 1}" for stack in self.stacks)
            raise UnknownSiteError(f"{self.model_type}: no {where} for {placement.module}. Layers: {known}")
        kind = MODULES[placement.module]
        if not kind.supports(sites.layer, placement.role):
            roles = [role for role in kind.roles if kind.supports(sites.layer, role)]
            there = f"It can stand at: {', '.join(roles)}" if roles else "It can stand nowhere in this layer"
            raise UnknownSiteError(
                f"{self.model_type}: {where} has no place for {placement.module} at {placement.role}. {there}"
            )
        return sites


def find_sites(model: nn.Module, site_map: SiteMap = NO_SITE_MAP) -> Sites:
    """Where adapters can stand in `model`, with or without a task head, with or without adapters in it.

    Where names tell nothing, the model is run once (`autopeft.hybrid.trace`).

    Raises:
        ModelError: no stack of transformer layers is recognised, or the map names what the model does not have.
    """
    config = getattr(model, "config", None)
    model_type = str(getattr(config, "model_type", type(model).__name__))
    layers: dict[tuple[str, int], LayerSites] = {}
    size: dict[str, int] = {}
    for list_name, module_list in _stacks(model, site_map):
        named = {(list_name, i): f"{list_name}.{i}" for i in range(len(module_list))}
        found = [_layer_sites(name, _layer(model, name), config, site_map) for name in named.values()]
        if not site_map.roles and not any(sites.linears for sites in found):
            traced = _traced(model, named)
            found = [_layer_sites(n, _layer(model, n), config, site_map, traced.get(at)) for at, n in named.items()]
        found = [_repeated(sites, config) for sites in found]
        found[0] = _with_prompts(found[0], model, list_name)
        stack = site_map.stack_of(list_name) or _stack_name(list_name, module_list, found[0], config)
        n_parameters = sum(p.numel() for p in module_list.parameters())
        if n_parameters <= size.get(stack, 0):
            continue  # of several stacks with one name (text and vision), the biggest is adapted
        size[stack] = n_parameters
        layers = {key: value for key, value in layers.items() if key[0] != stack}
        layers |= {(stack, i): sites for i, sites in enumerate(found)}
    _check_map(model, model_type, site_map, layers)
    if not any(sites.linears for sites in layers.values()):
        raise ModelError(f"{model_type}: no stack of transformer layers found in {type(model).__name__}")
    return Sites(model_type, layers)


def _check_map(
    model: nn.Module, model_type: str, site_map: SiteMap, layers: Mapping[tuple[str, int], LayerSites]
) -> None:
    """
    Raises:
        ModelError: something that the map names is nowhere in the model; names it all, and what there is.
    """
    problems = []
    if absent := site_map.stacks.keys() - {stack for stack, _ in layers}:
        lists = ", ".join(name for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 0)
        ends = ", ".join(f"{stack}: {site_map.stacks[stack]}" for stack in sorted(absent))
        problems.append(f"stacks: no layers under {ends}. Lists of modules are: {lists or 'none'}")
    modules = [dict(modules_of(_layer(model, sites.name))) for sites in layers.values()][:1]
    placed = {role for sites in layers.values() for role in sites.linears}
    if layers and (lost := site_map.roles.keys() - placed):
        maps = ", ".join(name for first in modules for name, module in first.items() if is_linear(module))
        names = ", ".join(f"{role}: {site_map.roles[role]}" for role in LINEAR_ROLES if role in lost)
        problems.append(f"roles: not one linear map of a layer for {names}. The first layer has: {maps}")
    if layers and site_map.attention and not any(sites.attention for sites in layers.values()):
        inner = ", ".join(name for first in modules for name, module in first.items() if not is_linear(module))
        problems.append(f"attention: no '{site_map.attention}' in a layer. The first layer has: {inner}")
    if problems:
        raise ModelError(f"the site map does not fit this {model_type} model: {'; '.join(problems)}")


def takes_prompts(owner: nn.Module) -> str | None:
    """Which kind of input the owner of a stack takes: `states`, `ids`, or None where prompts cannot enter."""
    names = list(inspect.signature(owner.forward).parameters)
    if {"input_ids", "inputs_embeds", "attention_mask"} <= set(names):
        return "ids"
    if names[:1] in (["hidden_states"], ["inputs_embeds"]) and "attention_mask" in names:
        return "states"
    return None


def _repeated(sites: LayerSites, config: Any) -> LayerSites:
    """Models with layer groups (ALBERT) go through one layer many times."""
    groups = getattr(config, "num_hidden_groups", None)
    repeats = config.num_hidden_layers // groups if isinstance(groups, int) and groups else 1
    return replace(sites, layer=replace(sites.layer, repeats=repeats))


def _with_prompts(first: LayerSites, model: nn.Module, list_name: str) -> LayerSites:
    """The first layer of a stack, with its owner if prompts can enter there: the outermost module that takes hidden
    states, else the innermost that takes token ids."""
    parts = list_name.split(".")[:-1]
    names = [".".join(parts[:n]) for n in range(len(parts) + 1)]  # from the outermost
    takes = {name: takes_prompts(model.get_submodule(name)) for name in names if _has_forward(model, name)}
    of_states = [name for name in names if takes.get(name) == "states"]
    of_ids = [name for name in names if takes.get(name) == "ids"]
    is_second = getattr(getattr(model, "config", None), "is_encoder_decoder", False) and "decoder" in list_name
    if is_second or not (of_states or of_ids):
        return first
    name = of_states[0] if of_states else of_ids[-1]
    return replace(
        first, owner=name, layer=replace(first.layer, embeddings=_entry_width(model.get_submodule(name), first))
    )


def _has_forward(model: nn.Module, name: str) -> bool:
    return not isinstance(model.get_submodule(name), nn.ModuleList | nn.ModuleDict)


def _entry_width(owner: Any, first: LayerSites) -> int:
    if takes_prompts(owner) == "ids":
        return int(owner.get_input_embeddings().embedding_dim)
    entry = getattr(owner, "embedding_hidden_mapping_in", None)  # ALBERT widens its embeddings here
    return int(entry.in_features) if entry is not None else first.layer.hidden


def _layer(model: nn.Module, name: str) -> nn.Module:
    return inside(model.get_submodule(name))


def _traced(model: nn.Module, named: Mapping[tuple[str, int], str]) -> dict[tuple[str, int], dict[str, str]]:
    from autopeft.hybrid.trace import trace_roles

    with suppress(RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError):
        return trace_roles(model, named)
    return {}  # it cannot be run on example inputs


def _stacks(model: nn.Module, site_map: SiteMap) -> list[tuple[str, nn.ModuleList]]:
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    if site_map.stacks:
        return [(name, m) for name, m in lists if site_map.stack_of(name)]
    declared = tuple(_declared_layer_classes(model))
    for classes in filter(None, (declared, _checkpointing_layer())):
        stacks = [(name, m) for name, m in lists if all(isinstance(inside(layer), classes) for layer in m)]
        if stacks:
            return stacks
    homogeneous = [(name, m) for name, m in lists if len({type(inside(layer)) for layer in m}) == 1]
    return sorted(homogeneous, key=lambda pair: -sum(p.numel() for p in pair[1].parameters()))[:1]


def _declared_layer_classes(model: nn.Module) -> Iterator[type]:
    for module in model.modules():
        declared = getattr(type(module), "_can_record_outputs", None)
        if isinstance(declared, dict):
            recorders = declared.get("hidden_states") or ()
            for recorder in recorders if isinstance(recorders, list | tuple) else [recorders]:
                layer_class = getattr(recorder, "target_class", recorder)
                if inspect.isclass(layer_class):
                    yield layer_class


def _checkpointing_layer() -> tuple[type, ...]:
    try:
        from transformers.modeling_layers import GradientCheckpointingLayer
    except ImportError:
        return ()
    return (GradientCheckpointingLayer,)


def _layer_sites(
    layer_name: str, layer: nn.Module, config: Any, site_map: SiteMap, traced: Mapping[str, str] | None = None
) -> LayerSites:
    modules = {name: module for name, module in modules_of(layer) if not CROSS_ATTENTION.search(name)}
    maps = {name: module for name, module in modules.items() if is_linear(module)}
    linears = site_map.linears(maps) if site_map.roles else linears_by_role(maps)
    linears |= {role: name for role, name in (traced or {}).items() if name in maps}
    sites = tuple(_site(role, modules[linears[role]]) for role in LINEAR_ROLES if role in linears)
    all_norms = {name: module for name, module in modules.items() if "norm" in type(module).__name__.lower()}
    norms = {name: module for name, module in all_norms.items() if getattr(module, "bias", None) is not None}
    weighted = {name: module for name, module in all_norms.items() if getattr(module, "weight", None) is not None}
    query = linears.get("attn.q") or linears.get("attn.qkv")
    attention = site_map.attention or (query.rpartition(".")[0] if query and "." in query else None)
    if attention not in modules:
        attention = None
    by_role = {site.role: site for site in sites}
    heads, head_dim = _kv_heads(modules.get(attention or ""), config, by_role.get("attn.k"))
    return LayerSites(
        layer_name,
        f"{layer_name}.{attention}" if attention else None,
        {role: f"{layer_name}.{name}" for role, name in linears.items()},
        tuple(f"{layer_name}.{name}" for name in norms),
        Layer(
            hidden=_hidden(by_role),
            sites=sites,
            norm_biases=tuple(int(norm.bias.numel()) for norm in norms.values()),
            n_kv_heads=heads,
            head_dim=head_dim,
            prefix=attention is not None
            and heads * head_dim > 0
            and (_calls_interface(modules[attention]) if site_map.prefix is None else site_map.prefix),
            norm_weights=tuple(int(norm.weight.numel()) for norm in weighted.values()),
            n_heads=_n_heads(by_role.get("attn.o"), head_dim),
        ),
        tuple(f"{layer_name}.{name}" for name in weighted),
    )


def _n_heads(end: Site | None, head_dim: int) -> int:
    return end.in_features // head_dim if end is not None and head_dim and end.in_features % head_dim == 0 else 0


def _site(role: str, linear: Any) -> Site:
    d_in, d_out = linear_widths(linear)
    return Site(role, d_in, d_out, getattr(linear, "bias", None) is not None)


def _hidden(sites: Mapping[str, Site]) -> int:
    query = sites.get("attn.q") or sites.get("attn.qkv")
    if query is not None:
        return query.in_features
    end = sites.get("attn.o") or sites.get("ffn.out")
    return end.out_features if end else 0


def _kv_heads(attention: nn.Module | None, config: Any, key: Site | None) -> tuple[int, int]:
    """Number of key/value heads and width of a head; (0, 0) where they cannot be read."""
    config = getattr(attention, "config", config)
    head_dim = _first_number((attention, config), _HEAD_DIM_NAMES)
    if not head_dim:
        n_heads = _first_number((config,), ("num_attention_heads",))
        head_dim = _first_number((config,), ("hidden_size",)) // n_heads if n_heads else 0
    if attention is None or not head_dim:
        return 0, 0
    heads = key.out_features // head_dim if key else _first_number((attention, config), _KV_HEADS_NAMES)
    return heads, head_dim


def _first_number(holders: Iterable[Any], names: Iterable[str]) -> int:
    names = tuple(names)
    values = (getattr(holder, name, None) for holder in holders if holder is not None for name in names)
    return next((value for value in values if isinstance(value, int)), 0)


def _calls_interface(attention: nn.Module) -> bool:
    """Whether the class of `attention` looks its attention function up in transformers' registry, by its config.

    Some classes hold a config and still compute attention on their own: a prefix would be without effect there.
    """
    code = getattr(inspect.unwrap(type(attention).forward), "__code__", None)
    if code is None or not hasattr(attention, "config"):
        return False
    has_eager = hasattr(sys.modules[type(attention).__module__], "eager_attention_forward")
    return has_eager and {"ALL_ATTENTION_FUNCTIONS", "config", "_attn_implementation"} <= set(code.co_names)


def _stack_name(list_name: str, layers: nn.ModuleList, first: LayerSites, config: Any) -> str:
    if getattr(config, "is_encoder_decoder", False):
        return "decoder" if "decoder" in list_name else "encoder"
    is_causal = None
    if first.attention is not None:
        relative = first.attention.removeprefix(f"{first.name}.")
        is_causal = getattr(dict(modules_of(inside(layers[0])))[relative], "is_causal", None)
    if is_causal is None:
        model_type = getattr(config, "model_type", "")
        is_causal = getattr(config, "is_decoder", False) or (
            model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        )
    return "decoder" if is_causal else "encoder"
