"""LLaMA-Factory: it knows one rank for all layers, but goes on with any LoRA adapter, so it is given an untrained one.

Source: LLaMA-Factory 0.9.5, `model/adapter.py` (`adapter_name_or_path`).
"""

from pathlib import Path

import yaml

from autopeft.export.init import write_untrained
from autopeft.export.plain_lora import refuse_hybrid
from autopeft.export.spec import AdapterSpec
from autopeft.export.target import causal_anatomy, write_spec
from autopeft.resources import atomic_write

_HEAD = """\
# llamafactory-cli train llama_factory.yaml
#
# Run it in this folder. Replace dataset by one of yours in LLaMA-Factory's dataset_info.json, and template by your
# model's. What is trained is the adapter in init/: its ranks, not lora_rank. Warm-up is left to you: the key for it
# depends on the version of transformers (warmup_ratio, or warmup_steps below 1).
"""


def write_llama_factory(source: Path, spec: AdapterSpec, folder: Path) -> None:
    """llama_factory.yaml, init/ and the spec.

    Raises:
        ExportError: the base model is not causal, or the architecture is more than LoRA.
        ModelError: the base model's config cannot be read.
    """
    refuse_hybrid(spec.parsed_architecture, "LLaMA-Factory", "use --target axolotl, ms-swift or trl")
    causal_anatomy(spec, "LLaMA-Factory")
    (folder / "init").mkdir()
    write_untrained(spec, folder / "init")
    training = {**dict(spec.recipe.get("training", {})), **dict(spec.training)}
    content = {
        "model_name_or_path": spec.base_model.name,
        "adapter_name_or_path": "init",
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "dataset": "alpaca_en_demo",
        "template": "default",
        "cutoff_len": training.get("max_length", 512),
        "per_device_train_batch_size": training.get("batch_size", 8),
        "num_train_epochs": float(training.get("epochs", 3)),
        "learning_rate": training.get("learning_rate", 1e-3),
        "weight_decay": training.get("weight_decay", 0.0),
        "max_grad_norm": training.get("gradient_clip", 1.0),
        "lr_scheduler_type": "linear",
        "output_dir": "out",
    }
    atomic_write(folder / "llama_factory.yaml", _HEAD + yaml.safe_dump(content, sort_keys=False))
    write_spec(source, spec, folder)
