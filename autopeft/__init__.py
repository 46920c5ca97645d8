"""autopeft finds the best hybrid adapter for a transformer under a parameter budget.

Importing it makes `peft_type: AUTOPEFT` known to HF PEFT, so that `PeftModel.from_pretrained` loads what it exports.
Neither torch nor peft is imported here: the registration waits until something imports peft.
"""

from typing import TYPE_CHECKING, Any

from autopeft._peft_hook import register_with_peft

if TYPE_CHECKING:
    from autopeft.api import search, train
    from autopeft.engine.models import find_model
    from autopeft.hybrid import HybridConfig, HybridModel
    from autopeft.transfer import apply, load

__version__ = "0.1.0"
__all__ = ["HybridConfig", "HybridModel", "__version__", "apply", "find_model", "load", "search", "train"]

_LAZY = {
    "HybridConfig": "autopeft.hybrid",
    "HybridModel": "autopeft.hybrid",
    "apply": "autopeft.transfer",
    "find_model": "autopeft.engine.models",
    "load": "autopeft.transfer",
    "search": "autopeft.api",
    "train": "autopeft.api",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'autopeft' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


register_with_peft()
