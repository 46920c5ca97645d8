"""The base model that an adapter folder names, with a task head as wide as the adapter's."""

import json
from pathlib import Path
from typing import Any

from autopeft.errors import ModelError
from autopeft.export.reading import read_spec
from autopeft.export.spec import SPEC_FILE
from autopeft.export.target import CONFIG_FILE, WEIGHTS_FILE

_AUTO_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}
_HEAD_ENDS = ("classifier.weight", "score.weight", "classifier.out_proj.weight")


def base_model_of(folder: Path) -> Any:
    """The model in eval mode, its task head untrained.

    Raises:
        ModelError: no adapter in the folder, it names no base model, or that cannot be loaded.
        EnvironmentProblem: the Python package that holds the base model is not installed.
    """
    import transformers

    from autopeft.engine.models import find_model, read_config

    config = _adapter_config(folder)
    spec = read_spec(folder).spec if (folder / SPEC_FILE).is_file() else None
    name = spec.base_model.name if spec is not None else config.get("base_model_name_or_path")
    revision = spec.base_model.revision if spec is not None else config.get("revision")
    if not isinstance(name, str) or not name:
        raise ModelError(f"{folder}: its {CONFIG_FILE} names no base model. Give one: load(path, model)")
    source = find_model(name, revision)
    known = read_config(name, source)
    task = str(config.get("task_type"))
    # Tasks that PEFT has no name for: it then writes down the class of the model.
    named = str((config.get("auto_mapping") or {}).get("base_model_class", ""))
    if task in ("SEQ_CLS", "TOKEN_CLS") or "For" in named:
        known.num_labels = _n_outputs(folder)
    auto = getattr(transformers, _AUTO_CLASSES.get(task, named if named in dir(transformers) else "AutoModel"))
    try:
        return auto.from_pretrained(
            str(source), config=known, use_safetensors=True, trust_remote_code=False, ignore_mismatched_sizes=True
        ).eval()
    except (ValueError, OSError, RuntimeError) as error:
        raise ModelError(f"{name}: the model cannot be loaded: {str(error)[:300]}") from error


def _adapter_config(folder: Path) -> dict[str, Any]:
    try:
        data = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{folder}: no adapter here ({CONFIG_FILE} is missing)") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{folder}: {CONFIG_FILE} cannot be read: {str(error)[:200]}") from error
    if not isinstance(data, dict):
        raise ModelError(f"{folder}: {CONFIG_FILE} is not a mapping")
    return data


def _n_outputs(folder: Path) -> int:
    """Width of the last layer of the saved task head: that is how many labels the model was built with."""
    from safetensors import safe_open

    try:
        with safe_open(folder / WEIGHTS_FILE, "pt") as file:
            widths = [
                int(file.get_slice(key).get_shape()[0])
                for key in file.keys()  # noqa: SIM118 - not a mapping
                if key.endswith(_HEAD_ENDS) and ".autopeft_" not in key and ".lora_" not in key
            ]
    except Exception as error:  # what safetensors raises for a file that is none
        raise ModelError(f"{folder}: {WEIGHTS_FILE} cannot be read: {error}") from error
    if not widths:
        raise ModelError(f"{folder}: holds no task head, so its number of labels is not known. Give the model")
    return widths[-1]
