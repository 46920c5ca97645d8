"""Reads the `Anatomy` of a model, or of a config alone: the model is then built without weights, on the meta device.

A model and its config give the same anatomy, whatever the task head: `n_parameters` is that of the model that
`AutoModel` makes of the config, pooler included where it has one.
"""

from typing import Any

from transformers import PretrainedConfig

from autopeft.errors import ModelError
from autopeft.hybrid.layers import PREFIX
from autopeft.hybrid.probe import usable_sites
from autopeft.hybrid.sites import Sites
from autopeft.hybrid.weightless import count_base_parameters, without_weights
from autopeft.space.anatomy import Anatomy
from autopeft.space.site_map import NO_SITE_MAP, SiteMap


def read_anatomy(model: Any, site_map: SiteMap = NO_SITE_MAP) -> Anatomy:
    """The anatomy of a transformers model, whether or not it has a task head or adapters.

    Where `AutoModel` does not know the model, `n_parameters` is that of `model`, its head included.

    Raises:
        ModelError: not a transformers model, or no transformer layers are recognised.
    """
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    config = getattr(model, "config", None)
    if not isinstance(config, PretrainedConfig):
        raise ModelError(f"{type(model).__name__}: not a transformers model (it has no config)")
    sites, notes = usable_sites(model, site_map)
    try:
        n_parameters = count_base_parameters(config)
    except ModelError:
        n_parameters = sum(p.numel() for name, p in model.named_parameters() if PREFIX not in name)
    return Anatomy(sites.model_type, n_parameters, sites.stacks, (*notes_of(sites), *notes))


def anatomy_of(config: PretrainedConfig, site_map: SiteMap = NO_SITE_MAP) -> Anatomy:
    """The anatomy of the model that `config` describes; no weights are loaded or allocated.

    Raises:
        ModelError: `AutoModel` cannot make a model of it, or no transformer layers are recognised.
    """
    sites, notes = usable_sites(without_weights(config), site_map)
    return Anatomy(sites.model_type, count_base_parameters(config), sites.stacks, (*notes_of(sites), *notes))


def notes_of(sites: Sites) -> tuple[str, ...]:
    """What adapters cannot do on this model, and what they share."""
    notes = []
    for stack in sites.stacks:
        first, where = stack.layers[0], f"{sites.model_type}, {stack.name}"
        if first.repeats > 1:
            notes.append(f"{where}: it runs {first.repeats} times through each layer; the passes share its adapters")
        if not any(layer.site("ffn.in") or layer.site("ffn.out") for layer in stack.layers):
            notes.append(f"{where}: no linear maps of the FFN are found (fused experts); adapters go to attention only")
        if not all(layer.prefix for layer in stack.layers):
            notes.append(f"{where}: a prefix would have no effect on its attention; left out")
    return tuple(notes)
