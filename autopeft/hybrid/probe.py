"""Finds modules that would have no effect on a model, before anyone trains them.

A model may hold a linear map that its forward pass never calls, or an attention class that looks like one with a place
for a prefix and has none (GPT-Neo). So all kinds of modules are put everywhere into a copy without weights, which is
run once on the meta device: a parameter from which no gradient path leads to the output has no effect. The result is
kept for each config. Families whose sites are tested with this package are not probed.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from autopeft.errors import ModelError
from autopeft.hybrid.sites import LayerSites, Sites, find_sites
from autopeft.hybrid.weightless import config_key, without_weights
from autopeft.space.architecture import Architecture, Placement, place
from autopeft.space.modules import MODULES
from autopeft.space.site_map import NO_SITE_MAP, SiteMap

TESTED = frozenset(
    (
        *("albert", "bert", "clip_vision_model", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet"),
        *("gemma", "gpt2", "gpt_neox", "llama", "mistral", "mixtral", "opt", "phi3", "qwen2", "qwen3"),
        *("bart", "roberta", "t5", "vit", "whisper"),
    )
)
"""Model types whose every site is tested for an effect."""

Found = tuple[tuple[Placement, ...], tuple[str, ...]]

_FOUND: dict[tuple[Any, str, str], Found] = {}


def usable_sites(model: nn.Module, site_map: SiteMap = NO_SITE_MAP) -> tuple[Sites, tuple[str, ...]]:
    """The sites of `model` without those at which a module has no effect, and sentences about what was left out.

    Raises:
        ModelError: no stack of transformer layers is recognised.
    """
    sites = find_sites(model, site_map)
    config = getattr(model, "config", None)
    if not isinstance(config, PretrainedConfig) or (site_map == NO_SITE_MAP and sites.model_type in TESTED):
        return sites, ()
    key = (*config_key(config), site_map.model_dump_json())
    if key not in _FOUND:
        _FOUND[key] = ((), ())  # for the models within
        _FOUND[key] = _probe(config, site_map)
    dead, notes = _FOUND[key]
    return _without(sites, dead), notes


def _probe(config: PretrainedConfig, site_map: SiteMap) -> Found:
    try:
        dead = without_effect(without_weights(config), site_map)
    except (
        ModelError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        IndexError,
        AssertionError,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return (), (f"{config.model_type}: whether every module has an effect could not be tried: {reason[:120]}",)
    kinds: dict[tuple[str, str, str], int] = {}
    for p in dead:
        kinds[p.stack, p.module, p.role] = kinds.get((p.stack, p.module, p.role), 0) + 1
    return dead, tuple(
        f"{config.model_type}, {stack}: {module} at {role} has no effect in {n} layers; left out there"
        for (stack, module, role), n in kinds.items()
    )


def without_effect(model: Any, site_map: SiteMap = NO_SITE_MAP) -> tuple[Placement, ...]:
    """Placements that do not change what `model` gives, one of each kind at each place tried; `model` is adapted and
    restored.

    Raises:
        Exception: whatever the model raises on example inputs.
    """
    from peft import get_peft_model

    from autopeft.hybrid.config import HybridConfig
    from autopeft.hybrid.trace import example_inputs

    sites = find_sites(model, site_map)
    placements = [
        place(stack, index, role, kind.name, 1)
        for (stack, index), found in sites.layers.items()
        for kind in MODULES.values()
        for role in kind.roles
        if kind.supports(found.layer, role)
    ]
    inputs = example_inputs(model)
    adapted = get_peft_model(model, HybridConfig(architecture=Architecture.of(placements), site_map=site_map)).eval()
    try:
        own = {key: p for key, p in adapted.named_parameters() if p.requires_grad}
        with torch.enable_grad():
            output = adapted.base_model.model(**inputs)[0]
        reached = torch.autograd.grad(output.float().sum(), list(own.values()), allow_unused=True)
    finally:
        adapted.unload()
    alive = [key for key, gradient in zip(own, reached, strict=True) if gradient is not None]
    return tuple(p for p in placements if not any(_belongs(key, p, sites) for key in alive))


def _belongs(key: str, p: Placement, sites: Sites) -> bool:
    """Whether the parameter of this name is the placement's."""
    from autopeft.hybrid.modules import MODULES as PARTS

    part = {"bitfit": "bias", "layernorm": "norm_"}.get(p.module, p.module)
    modules = {attachment.module for attachment in PARTS[p.module](p, sites.of(p), 0.0)}
    return f".autopeft_{part}" in key and any(key.startswith(f"base_model.model.{module}.") for module in modules)


def _without(sites: Sites, dead: Iterable[Placement]) -> Sites:
    layers = dict(sites.layers)
    for p in dead:
        layers[p.stack, p.layer] = _without_place(layers[p.stack, p.layer], p)
    return Sites(sites.model_type, layers)


def _without_place(found: LayerSites, p: Placement) -> LayerSites:
    layer = found.layer
    if p.module == "prefix":
        return replace(found, layer=replace(layer, prefix=False))
    if p.module == "prompt":
        return replace(found, layer=replace(layer, embeddings=0), owner=None)
    if p.module == "multihead":
        return replace(found, layer=replace(layer, n_heads=0))
    if p.module == "layernorm":
        return replace(found, layer=replace(layer, norm_weights=()), weighted_norms=())
    if p.module == "lora":
        kept = {role: name for role, name in found.linears.items() if role != p.role}
        return replace(
            found, layer=replace(layer, sites=tuple(s for s in layer.sites if s.role != p.role)), linears=kept
        )
    return found  # a sub-layer goes with its linear maps
