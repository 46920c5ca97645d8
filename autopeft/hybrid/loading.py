"""Loading a saved adapter, strictly: every weight must be there, none may be left over."""

from pathlib import Path

from peft import PeftModel, get_peft_model_state_dict
from peft.utils import load_peft_weights
from torch import nn

from autopeft.errors import ModelError
from autopeft.hybrid.model import remove_adapters
from autopeft.hybrid.weights import check_weights, with_current_names


def load_strict(model: nn.Module, folder: Path | str, adapter_name: str = "default") -> PeftModel:
    """`PeftModel.from_pretrained` that fails where PEFT would warn; a failed load leaves `model` without adapters.

    Raises:
        ModelError: no adapter in `folder`, weights missing, left over or of another shape, or an adapter for another
            model.
        ConfigError: its config is malformed.
    """
    folder = Path(folder)
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder}: no adapter here (adapter_config.json is missing)")
    try:
        adapted = PeftModel.from_pretrained(model, str(folder), adapter_name=adapter_name)
        saved = with_current_names(load_peft_weights(str(folder), device="cpu"))
        there = get_peft_model_state_dict(adapted, adapter_name=adapter_name, save_embedding_layers=False)
        check_weights(there, saved, str(folder))
    except (ValueError, RuntimeError, KeyError) as error:  # what PEFT and torch raise for weights that do not fit
        remove_adapters(model)
        raise ModelError(f"{folder}: the adapter does not fit the model: {error}") from error
    except BaseException:
        remove_adapters(model)
        raise
    return adapted
