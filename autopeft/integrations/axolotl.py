"""axolotl's plugin: `plugins: [autopeft.integrations.axolotl.AutopeftPlugin]`, `adapter: autopeft`, `autopeft_spec`.

Source: axolotl 0.19, `integrations/base.py`.
"""

from typing import Any

from axolotl.integrations.base import AdapterCapabilities, BasePlugin
from pydantic import BaseModel

from autopeft.errors import ConfigError
from autopeft.transfer import apply, load

ADAPTER = "autopeft"


class AutopeftArgs(BaseModel):
    """Keys that the plugin adds to axolotl's YAML."""

    autopeft_spec: str | None = None
    """An adapter spec, or a folder that `autopeft export` wrote."""
    autopeft_dropout: float = 0.0
    """Dropout within the adapters."""
    autopeft_map_layers: bool = False
    """Map the layers of a model of another depth proportionally."""


class AutopeftPlugin(BasePlugin):  # type: ignore[misc]
    """Puts the architecture of `autopeft_spec` into the model; goes on with the adapter in `lora_model_dir`."""

    def get_input_args(self) -> str:
        return f"{__name__}.{AutopeftArgs.__name__}"

    def get_adapter_capabilities(self) -> list[Any]:
        return [AdapterCapabilities(name=ADAPTER)]

    def load_adapter(self, model: Any, cfg: Any, inference: bool = False, config_only: bool = False) -> Any:
        """The adapted model and its config; None where another adapter is configured.

        Raises:
            ConfigError: there is no `autopeft_spec`.
            AutopeftError: as `autopeft.apply` and `autopeft.load`.
        """
        if cfg.adapter != ADAPTER:
            return None
        if cfg.lora_model_dir:
            adapted = load(cfg.lora_model_dir, model)
            if not inference:
                adapted.train()
                adapted.set_adapter("default")
        elif cfg.autopeft_spec:
            adapted = apply(
                model,
                cfg.autopeft_spec,
                map_layers=bool(cfg.autopeft_map_layers),
                task_type="CAUSAL_LM",
                dropout=float(cfg.autopeft_dropout or 0.0),
            )
        else:
            raise ConfigError(["autopeft_spec: is missing; with adapter: autopeft it names the adapter spec"])
        return adapted, adapted.peft_config["default"]
