"""`apply` puts an architecture into a model as an untrained adapter; `load` brings a trained one back, strictly."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.errors import ModelError
from autopeft.export.base import base_model_of
from autopeft.export.reading import SpecSource, read_spec
from autopeft.transfer.placing import place_in, site_map_for

if TYPE_CHECKING:
    from peft import PeftModel


def apply(
    model: Any, spec: SpecSource, adapter_name: str = "default", *, map_layers: bool = False, **config: Any
) -> "PeftModel":
    """Untrained adapters of the spec's architecture in `model`, ready to train; prefixes apart, it computes as before.

    `spec` is an `AdapterSpec`, its JSON, or the path of a spec file or of an exported folder. With `map_layers`, the
    layers of a model of another depth take the modules of the proportional ones. `config` goes to `HybridConfig`:
    `task_type`, `dropout`, `modules_to_save`, `site_map` (the spec's by default,
    where it fits the model). A model that `apply` has returned takes further adapters under other
    names.

    Raises:
        ExportError: `spec` is none.
        ModelError: the model's depth differs and `map_layers` is not given, or it has no place for some modules.
        ConfigError: a value in `config` is not allowed, or gate `mean` in a causal model.
    """
    from peft import PeftModel, get_peft_model

    from autopeft.hybrid import HybridConfig, read_anatomy

    given = read_spec(spec)
    if "site_map" not in config:
        config["site_map"] = site_map_for(given, lambda sites: read_anatomy(model, sites))
    anatomy = read_anatomy(model, HybridConfig(architecture=given.architecture, **config).parsed_site_map())
    architecture, _ = place_in(given, anatomy, may_map=map_layers)
    wanted = HybridConfig(architecture=architecture, base_fingerprint=anatomy.fingerprint, **config)
    if not isinstance(model, PeftModel):
        return get_peft_model(model, wanted, adapter_name=adapter_name)
    if adapter_name in model.peft_config:
        raise ModelError(f"the model has an adapter '{adapter_name}' already. Give another adapter_name")
    model.add_adapter(adapter_name, wanted)
    model.set_adapter(adapter_name)
    return model


def load(path: str | Path, model: Any = None, adapter_name: str = "default") -> "PeftModel":
    """The trained adapter of an exported folder in `model`, in eval mode; every weight must be there and fit.

    Without a model, the base model that the adapter names is loaded, with a task head as wide as the adapter's.

    Raises:
        ModelError: no adapter in the folder, one that does not fit the model exactly, or no such base model.
        EnvironmentProblem: the Python package that holds the base model is not installed.
    """
    from autopeft.hybrid import load_strict

    folder = Path(path).expanduser()
    adapted = load_strict(base_model_of(folder) if model is None else model, folder, adapter_name)
    adapted.eval()
    return adapted
