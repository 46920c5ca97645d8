"""Models without weights, on the meta device, made from a config alone."""

import json
from functools import lru_cache
from typing import Any

import torch
from transformers import AutoModel, PretrainedConfig

from autopeft.errors import ModelError


def without_weights(config: PretrainedConfig) -> Any:
    """The model that `AutoModel` makes of `config`; no weights are loaded or allocated.

    Raises:
        ModelError: `AutoModel` cannot make a model of it.
    """
    return _build(*config_key(config))


def count_base_parameters(config: PretrainedConfig) -> int:
    """Parameters of the model that `AutoModel` makes of `config`.

    Raises:
        ModelError: `AutoModel` cannot make a model of it.
    """
    return _count(*config_key(config))


def config_key(config: PretrainedConfig) -> tuple[Any, str]:
    """What two configs of one model have in common."""
    return type(config), json.dumps(config.to_dict(), sort_keys=True, default=str)


@lru_cache(maxsize=64)
def _count(config_class: Any, config_json: str) -> int:
    return sum(p.numel() for p in _build(config_class, config_json).parameters())


def _build(config_class: Any, config_json: str) -> Any:
    data = json.loads(config_json)
    data.pop("quantization_config", None)
    config = config_class.from_dict(data)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return AutoModel.from_config(config, attn_implementation="eager")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{config.model_type}: AutoModel cannot make a model of this config: {error}") from error
