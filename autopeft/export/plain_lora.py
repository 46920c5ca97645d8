"""A LoRA-only architecture as a plain LoRA adapter: rank and alpha by layer, loadable without this package.

PEFT matches `rank_pattern` keys as regular expressions against the end of module names, the first match wins: keys are
escaped, anchored, and name one module each.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autopeft.errors import ExportError
from autopeft.export.spec import AdapterSpec
from autopeft.export.target import CONFIG_FILE, WEIGHTS_FILE
from autopeft.space.architecture import Architecture, Placement

_LORA_KEY = re.compile(r"(.*)\.autopeft_lora_([AB])\.weight")


def is_plain_lora(architecture: Architecture) -> bool:
    """Whether HF PEFT's LoRA holds the architecture: no gates, no DoRA; once trained, LoRA-FA is LoRA."""
    return bool(architecture) and not any(_beyond_lora(p) for p in architecture.placements)


def refuse_hybrid(architecture: Architecture, target: str, instead: str) -> None:
    """
    Raises:
        ExportError: `target` holds LoRA alone; names the modules that it cannot hold, and what can be done `instead`.
    """
    if is_plain_lora(architecture):
        return
    held = Counter(name for p in architecture.placements if (name := _beyond_lora(p)))
    named = ", ".join(f"{module} ({n} places)" for module, n in sorted(held.items())) or "an empty architecture"
    raise ExportError(f"{target} cannot hold {named}, only LoRA without gates. Search with --space lora, or {instead}")


def _beyond_lora(placement: Placement) -> str:
    """What PEFT's LoRA cannot hold of a placement, by name; empty where it holds it."""
    if placement.module != "lora":
        return placement.module
    if placement.option("gate") != "none":
        return "gated lora"
    return "dora" if placement.option("variant") == "dora" else ""


def lora_settings(spec: AdapterSpec) -> dict[str, Any]:
    """Arguments of `LoraConfig` that make the architecture: r, lora_alpha, target_modules and the two patterns.

    Raises:
        ModelError: the base model's config cannot be read.
    """
    ranks, alphas = _by_module(spec)
    rank, alpha = _most_common(ranks), _most_common(alphas)
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted(ranks),
        "rank_pattern": {_exactly(name): r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {_exactly(name): a for name, a in alphas.items() if a != alpha},
    }


def write_plain_lora(source: Path, spec: AdapterSpec, target: Path) -> None:
    """Write the adapter in `source` (peft_type AUTOPEFT) into `target` as peft_type LORA, with the same function.

    Raises:
        ExportError: a weight is none that LoRA has.
        ModelError: the base model's config cannot be read.
    """
    from peft import LoraConfig
    from safetensors.torch import load_file, save_file

    ours: dict[str, Any] = json.loads((source / CONFIG_FILE).read_text(encoding="utf-8"))
    config = LoraConfig(
        **lora_settings(spec),
        lora_dropout=ours.get("dropout", 0.0),
        modules_to_save=ours.get("modules_to_save"),
        task_type=ours.get("task_type"),
        base_model_name_or_path=ours.get("base_model_name_or_path"),
        inference_mode=True,
    )
    weights = {}
    for key, tensor in load_file(source / WEIGHTS_FILE).items():
        match = _LORA_KEY.fullmatch(key)
        if match is None and ".autopeft_" in key:
            raise ExportError(f"{source / WEIGHTS_FILE}: '{key}' is no LoRA weight")
        weights[f"{match[1]}.lora_{match[2]}.weight" if match else key] = tensor
    n_modules = len(spec.parsed_architecture)
    if 2 * n_modules != sum(".lora_" in key for key in weights):
        raise ExportError(f"{source / WEIGHTS_FILE}: its weights are not those of {n_modules} LoRA modules")
    save_file(weights, target / WEIGHTS_FILE, metadata={"format": "pt"})
    config.save_pretrained(str(target))


def _by_module(spec: AdapterSpec) -> tuple[dict[str, int], dict[str, float]]:
    """Module name in the base model → rank, and → alpha."""
    import torch
    from transformers import AutoModel

    from autopeft.engine.models import load_config
    from autopeft.hybrid import find_sites

    config = load_config(spec.base_model.name, spec.base_model.revision)
    with torch.device("meta"):
        sites = find_sites(AutoModel.from_config(config), spec.base_model.sites)
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for p in spec.parsed_architecture.placements:
        name = sites.of(p).linears[p.role]
        alpha = float(p.option("alpha"))  # rsLoRA's alpha/√r is LoRA's (alpha·√r)/r
        ranks[name], alphas[name] = p.size, alpha * math.sqrt(p.size) if p.option("scaling") == "rslora" else alpha
    return ranks, alphas


def _most_common(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _exactly(name: str) -> str:
    return r"^(.*\.)?" + re.escape(name)
