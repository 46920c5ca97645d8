"""Reads the `Anatomy` of a model, or of a config alone: the model is then built without weights, on the meta device.

A model and its config give the same anatomy, whatever the task head: `n_parameters` is that of the model that
`AutoModel` makes of the config, pooler included where it has one.
"""

import json
from functools import lru_cache
from typing import Any

import torch
from transformers import AutoModel, PretrainedConfig

from autopeft.errors import ModelError
from autopeft.hybrid.sites import Sites, find_sites
from autopeft.space.anatomy import Anatomy


def read_anatomy(model: Any) -> Anatomy:
    """The anatomy of a transformers model, whether or not it has a task head or adapters.

    Raises:
        ModelError: not a transformers model, or no transformer layers are recognised.
    """
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    config = getattr(model, "config", None)
    if not isinstance(config, PretrainedConfig):
        raise ModelError(f"{type(model).__name__}: not a transformers model (it has no config)")
    sites = find_sites(model)
    return Anatomy(sites.model_type, _n_parameters(*_key(config)), sites.stacks, notes_of(sites))


def anatomy_of(config: PretrainedConfig) -> Anatomy:
    """The anatomy of the model that `config` describes; no weights are loaded or allocated.

    Raises:
        ModelError: `AutoModel` cannot make a model of it, or no transformer layers are recognised.
    """
    model = _without_weights(*_key(config))
    sites = find_sites(model)
    n_parameters = sum(p.numel() for p in model.parameters())
    return Anatomy(str(config.model_type), n_parameters, sites.stacks, notes_of(sites))


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


def _key(config: PretrainedConfig) -> tuple[Any, str]:
    return type(config), json.dumps(config.to_dict(), sort_keys=True, default=str)


@lru_cache(maxsize=64)
def _n_parameters(config_class: Any, config_json: str) -> int:
    return sum(p.numel() for p in _without_weights(config_class, config_json).parameters())


def _without_weights(config_class: Any, config_json: str) -> Any:
    data = json.loads(config_json)
    data.pop("quantization_config", None)
    config = config_class.from_dict(data)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return AutoModel.from_config(config, attn_implementation="eager")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{config.model_type}: AutoModel cannot make a model of this config: {error}") from error
