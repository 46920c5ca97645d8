"""axolotl: a YAML. LoRA goes as `lora_rank_pattern` and `lora_alpha_pattern`, a hybrid through our plugin.

Sources: axolotl 0.19, `utils/schemas/peft.py` and `integrations/base.py` (`BasePlugin.load_adapter`).
"""

from pathlib import Path
from typing import Any

import yaml

from autopeft.export.plain_lora import is_plain_lora, lora_settings
from autopeft.export.spec import SPEC_FILE, AdapterSpec
from autopeft.export.target import causal_anatomy, write_spec
from autopeft.resources import atomic_write

PLUGIN = "autopeft.integrations.axolotl.AutopeftPlugin"
_HEAD = """\
# axolotl train axolotl.yaml
#
# Run it in this folder. Replace train.jsonl by your data (one {"text": ...} a line), and see axolotl's own options.
"""


def write_axolotl(source: Path, spec: AdapterSpec, folder: Path) -> None:
    """axolotl.yaml and the spec.

    Raises:
        ExportError: the base model is not causal.
        ModelError: the base model's config cannot be read.
    """
    causal_anatomy(spec, "axolotl")
    content = {**_adapter(spec), **_training(spec)}
    atomic_write(folder / "axolotl.yaml", _HEAD + yaml.safe_dump(content, sort_keys=False))
    write_spec(source, spec, folder)


def _adapter(spec: AdapterSpec) -> dict[str, Any]:
    base = {"base_model": spec.base_model.name}
    dropout = _recipe_training(spec).get("dropout", 0.0)
    if not is_plain_lora(spec.parsed_architecture):
        return {
            **base,
            "plugins": [PLUGIN],
            "adapter": "autopeft",
            "autopeft_spec": SPEC_FILE,
            "autopeft_dropout": dropout,
        }
    lora = lora_settings(spec)
    alpha = lora["lora_alpha"]
    patterns = {"lora_rank_pattern": lora["rank_pattern"], "lora_alpha_pattern": _whole(lora["alpha_pattern"])}
    return {
        **base,
        "adapter": "lora",
        "lora_r": lora["r"],
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": dropout,
        "lora_target_modules": lora["target_modules"],
        **{name: pattern for name, pattern in patterns.items() if pattern},
    }


def _whole(pattern: dict[str, float]) -> dict[str, int | float]:
    return {name: int(alpha) if float(alpha).is_integer() else alpha for name, alpha in pattern.items()}


def _training(spec: AdapterSpec) -> dict[str, Any]:
    training = {**_recipe_training(spec), **dict(spec.training)}
    return {
        "datasets": [{"path": "train.jsonl", "type": "completion"}],
        "sequence_len": training.get("max_length", 512),
        "micro_batch_size": training.get("batch_size", 8),
        "gradient_accumulation_steps": 1,
        "num_epochs": training.get("epochs", 3),
        "learning_rate": training.get("learning_rate", 1e-3),
        "warmup_ratio": training.get("warmup_fraction", 0.06),
        "weight_decay": training.get("weight_decay", 0.0),
        "max_grad_norm": training.get("gradient_clip", 1.0),
        "lr_scheduler": "linear",
        "optimizer": "adamw_torch",
        "bf16": "auto",
        "output_dir": "out",
    }


def _recipe_training(spec: AdapterSpec) -> dict[str, Any]:
    return dict(spec.recipe.get("training", {}))
