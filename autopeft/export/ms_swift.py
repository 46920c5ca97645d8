"""ms-swift: an external plugin that makes the architecture a tuner type, and the command that uses it.

Source: ms-swift 4.6, `tuner_plugin/` (`tuners_map`) and `--external_plugins`.
"""

import shlex
from pathlib import Path

from autopeft.export.spec import AdapterSpec
from autopeft.export.target import causal_anatomy, write_spec
from autopeft.resources import atomic_write

PLUGIN_FILE, TUNER = "plugin.py", "autopeft"

_PLUGIN = '''\
"""Makes the architecture in autopeft_spec.json a tuner type of ms-swift: --external_plugins plugin.py."""

from pathlib import Path

from swift.tuner_plugin import tuners_map

from autopeft.integrations.ms_swift import tuner_for

tuners_map["autopeft"] = tuner_for(Path(__file__).with_name("autopeft_spec.json"))
'''


def write_ms_swift(source: Path, spec: AdapterSpec, folder: Path) -> None:
    """plugin.py, train.sh and the spec.

    Raises:
        ExportError: the base model is not causal.
        ModelError: the base model's config cannot be read.
    """
    causal_anatomy(spec, "ms-swift")
    training = {**dict(spec.recipe.get("training", {})), **dict(spec.training)}
    options = {
        "model": spec.base_model.name,
        "external_plugins": PLUGIN_FILE,
        "tuner_type": TUNER,
        "dataset": "train.jsonl",
        "learning_rate": training.get("learning_rate", 1e-3),
        "num_train_epochs": training.get("epochs", 3),
        "per_device_train_batch_size": training.get("batch_size", 8),
        "warmup_ratio": training.get("warmup_fraction", 0.06),
        "weight_decay": training.get("weight_decay", 0.0),
        "max_length": training.get("max_length", 512),
        "output_dir": "out",
    }
    words = " \\\n    ".join(f"--{name} {shlex.quote(str(value))}" for name, value in options.items())
    atomic_write(folder / PLUGIN_FILE, _PLUGIN)
    atomic_write(
        folder / "train.sh",
        f"#!/bin/sh\n# Run it in this folder; replace train.jsonl by your data.\nswift sft \\\n    {words}\n",
    )
    write_spec(source, spec, folder)
