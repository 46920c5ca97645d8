"""Backbones of 8 or 4 bits a weight, by bitsandbytes through transformers; heads and adapters stay in float32.

Sources: Dettmers et al. 2022 (LLM.int8()); Dettmers et al. 2023 (NF4, QLoRA).
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from autopeft.errors import EnvironmentProblem

if TYPE_CHECKING:
    from autopeft.engine.recipe import Quantisation

PACKAGE = "bitsandbytes"
_PACKS_ON_CPU = "support_avx512bf16_for_cpu"


def check_installed(quantisation: "Quantisation") -> None:
    """
    Raises:
        EnvironmentProblem: it is wanted, and bitsandbytes is not installed.
    """
    if quantisation != "none" and find_spec(PACKAGE) is None:
        raise EnvironmentProblem(
            f"model.quantisation {quantisation}: {PACKAGE} is not installed. Try: pip install 'autopeft[quantised]'"
        )


def loading_options(
    quantisation: "Quantisation", auto: Any, config: Any, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """What `from_pretrained` of the class `auto` is given besides; all but what may be a head is quantised.

    Raises:
        EnvironmentProblem: bitsandbytes is not installed.
    """
    if quantisation == "none":
        return {}
    check_installed(quantisation)
    from transformers import BitsAndBytesConfig

    with torch.device("meta"):
        model = auto.from_config(config)
    heads = [name for name, _ in model.named_children() if name != model.base_model_prefix]
    made = BitsAndBytesConfig(
        load_in_8bit=quantisation == "int8",
        load_in_4bit=quantisation == "nf4",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[*heads, "pooler"],  # of 4 bits, too
    )
    return {"quantization_config": made, "device_map": {"": device}}


def keep_layout(model: nn.Module) -> None:
    """Have bitsandbytes leave the weights as they are: on CPUs it would pack them for inference at the first pass
    without gradients, and a shared model trains and evaluates in turns."""
    for module in model.modules():
        if hasattr(module, _PACKS_ON_CPU):
            setattr(module, _PACKS_ON_CPU, False)


def is_exact_by_row(quantisation: "Quantisation") -> bool:
    """Whether what a row gives does not hang on the other rows of its batch, so that it can be kept for later.

    8-bit products take the columns in which any row of the batch has an outlier apart.
    """
    return quantisation != "int8"
