"""`apply` puts an architecture into a model as an untrained adapter; `load` brings a trained one back, strictly."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.errors import ModelError
from autopeft.export.reading import ADAPTER_CONFIG, SpecSource, read_spec
from autopeft.transfer.placing import place_in

if TYPE_CHECKING:
    from peft import PeftModel

_NAMED_WEIGHTS = "adapter_model.safetensors"
_AUTO_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}


def apply(
    model: Any, spec: SpecSource, adapter_name: str = "default", *, map_layers: bool = False, **config: Any
) -> "PeftModel":
    """Untrained adapters of the spec's architecture in `model`, ready to train; the model starts as it was.

    `spec` is an `AdapterSpec`, its JSON, or the path of a spec file or of an exported folder. With `map_layers`, the
    layers of a model of another depth take the modules of the proportional ones. `config` goes to `HybridConfig`:
    `task_type`, `dropout`, `modules_to_save`. A model that `apply` has returned takes further adapters under other
    names.

    Raises:
        ExportError: `spec` is none.
        ModelError: the model's depth differs and `map_layers` is not given, or it has no place for some modules.
        ConfigError: a value in `config` is not allowed, or gate `mean` in a causal model.
    """
    from peft import PeftModel, get_peft_model

    from autopeft.hybrid import HybridConfig, read_anatomy

    anatomy = read_anatomy(model)
    architecture, _ = place_in(read_spec(spec), anatomy, may_map=map_layers)
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
    adapted = load_strict(_base_of(folder) if model is None else model, folder, adapter_name)
    adapted.eval()
    return adapted


def _base_of(folder: Path) -> Any:
    import transformers

    from autopeft.engine.models import find_model, read_config

    config = _adapter_config(folder)
    spec = read_spec(folder).spec if (folder / "autopeft_spec.json").is_file() else None
    name = spec.base_model.name if spec is not None else config.get("base_model_name_or_path")
    revision = spec.base_model.revision if spec is not None else config.get("revision")
    if not isinstance(name, str) or not name:
        raise ModelError(f"{folder}: its {ADAPTER_CONFIG} names no base model. Give one: load(path, model)")
    source = find_model(name, revision)
    known = read_config(name, source)
    task = config.get("task_type")
    if task == "SEQ_CLS":
        known.num_labels = _n_outputs(folder)
    auto = getattr(transformers, _AUTO_CLASSES.get(str(task), "AutoModel"))
    try:
        return auto.from_pretrained(
            str(source), config=known, use_safetensors=True, trust_remote_code=False, ignore_mismatched_sizes=True
        ).eval()
    except (ValueError, OSError, RuntimeError) as error:
        raise ModelError(f"{name}: the model cannot be loaded: {str(error)[:300]}") from error


def _adapter_config(folder: Path) -> dict[str, Any]:
    try:
        data = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{folder}: no adapter here ({ADAPTER_CONFIG} is missing)") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{folder}: {ADAPTER_CONFIG} cannot be read: {str(error)[:200]}") from error
    if not isinstance(data, dict):
        raise ModelError(f"{folder}: {ADAPTER_CONFIG} is not a mapping")
    return data


def _n_outputs(folder: Path) -> int:
    """Width of the last layer of the saved task head: that is how many labels the model was built with."""
    from safetensors import safe_open

    ends = ("classifier.weight", "score.weight", "out_proj.weight", "classifier.out_proj.weight")
    try:
        with safe_open(folder / _NAMED_WEIGHTS, "pt") as file:
            widths = [
                int(file.get_slice(key).get_shape()[0])
                for key in file.keys()  # noqa: SIM118 - not a mapping
                if key.endswith(ends) and ".autopeft_" not in key and ".lora_" not in key
            ]
    except Exception as error:  # what safetensors raises for a file that is none
        raise ModelError(f"{folder}: {_NAMED_WEIGHTS} cannot be read: {error}") from error
    if not widths:
        raise ModelError(f"{folder}: holds no task head, so its number of labels is not known. Give the model")
    return widths[-1]
