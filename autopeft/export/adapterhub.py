"""AdapterHub's `adapters`: one adapter for each module, size and role, active as a `Stack`, with its own file format.

Its union of methods takes one LoRA and one prefix for the whole model, hence the stack; `leave_out` names the layers
that an adapter skips. `adapters` pins transformers 4.57 and is no dependency: files are written, not made by it.

Sources: adapters 1.3, `configuration/adapter_config.py`, `loading.py`; what it computes is compared in the tests.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.engine.models import load_anatomy
from autopeft.errors import ExportError
from autopeft.export.spec import AdapterSpec
from autopeft.export.target import WEIGHTS_FILE, refuse_other_problems, weights_of, write_spec
from autopeft.resources import atomic_write
from autopeft.space.architecture import Placement

if TYPE_CHECKING:
    from torch import Tensor

VERSION = "adapters.1.3.0"
_MODELS = {"bert": "BertForSequenceClassification", "roberta": "RobertaForSequenceClassification"}
_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "silu": "swish", "tanh": "tanh"}
_PEFT_PREFIX = "base_model.model."
_LEAVES = {
    "attention.self.query": "attn.q",
    "attention.self.key": "attn.k",
    "attention.self.value": "attn.v",
    "attention.self.hybrid_prefix": "attn",
    "attention.output.dense": "attn",
    "intermediate.dense": "ffn.in",
    "output.dense": "ffn.out",
}
"""Module within a layer → role."""
_KEY = re.compile(
    r"(\w+\.encoder\.layer\.(\d+)\.(.+?))\.autopeft_(lora|serial|parallel|prefix)_(\w+?)(\.weight|\.bias)?"
)
_README = """\
# Adapters for {base}

The modules of this architecture as {n} adapters of AdapterHub's `adapters` (1.3), to be active together as a stack:

```python
import adapters
from transformers import AutoModelForSequenceClassification

model = AutoModelForSequenceClassification.from_pretrained({name!r}, num_labels={labels})
adapters.init(model)
model.load_adapter_setup("PATH OF THIS FOLDER", set_active=True, use_safetensors=True)
```
"""


def write_adapters(source: Path, spec: AdapterSpec, folder: Path) -> None:
    """adapter_setup.json, a folder for each adapter (the first also with the task head), README.md and the spec.

    Raises:
        ExportError: `adapters` does not hold the model or some modules; names them all.
        ModelError: the base model's config cannot be read.
    """
    refuse_other_problems(spec, "adapters", "classification", "regression")
    from safetensors.torch import load_file, save_file

    placements = spec.parsed_architecture.placements
    _refuse(spec, placements)
    anatomy = load_anatomy(spec.base_model.name, spec.base_model.revision)
    n_layers = anatomy.n_layers
    groups: dict[tuple[Any, ...], list[Placement]] = {}
    for p in placements:
        groups.setdefault((p.module, p.role, p.size, p.options), []).append(p)
    names = {f"{i:02d}_{m}_{role.replace('.', '_')}": group for i, ((m, role, *_), group) in enumerate(groups.items())}
    weights = {
        key.removeprefix(_PEFT_PREFIX): tensor
        for key, tensor in load_file(weights_of(source, spec) / WEIGHTS_FILE).items()
    }
    facts = {
        "hidden_size": anatomy.hidden,
        "model_class": _MODELS[spec.base_model.model_type],
        "model_name": spec.base_model.name,
        "model_type": spec.base_model.model_type,
        "version": VERSION,
    }
    for name, group in names.items():
        (folder / name).mkdir()
        config = _config(group[0], _left_out(group, n_layers), anatomy.hidden)
        _write_json(folder / name / "adapter_config.json", {"config": config, "name": name, **facts})
        save_file(_weights(name, group, weights, n_layers), folder / name / "adapter.safetensors")
    first = folder / next(iter(names))
    trained = {key: tensor for key, tensor in weights.items() if ".autopeft_" not in key}
    if inside := [key for key in trained if key.startswith(f"{spec.base_model.model_type}.")]:
        raise ExportError(f"adapters cannot hold {inside[0]}, trained with the head: the base's checkpoint lacks it")
    save_file(trained, first / "model_head.safetensors")
    labels = {label: i for i, label in enumerate(spec.task.labels or ("LABEL_0",))}
    head = {"config": None, "name": None, "label2id": labels, "num_labels": len(labels)}
    _write_json(first / "head_config.json", {**head, **facts})
    children = [{"type": "single", "children": [name]} for name in names]
    setup = {"adapter_setup": {"type": "Stack", "children": children}, "head_setup": None, "version": VERSION}
    _write_json(folder / "adapter_setup.json", setup)
    text = _README.format(base=spec.base_model.name, n=len(names), name=spec.base_model.name, labels=len(labels))
    atomic_write(folder / "README.md", text)
    write_spec(source, spec, folder)


def _refuse(spec: AdapterSpec, placements: tuple[Placement, ...]) -> None:
    if spec.base_model.model_type not in _MODELS:
        raise ExportError(
            f"adapters: written for {', '.join(_MODELS)}, not for {spec.base_model.model_type}. "
            "Transfer the spec first: autopeft train --spec … --model …, or use --target autopeft"
        )
    if spec.base_model.site_map is not None:
        raise ExportError("adapters: takes sites by their usual names, not by a site map. Use --target autopeft")
    if not placements:
        raise ExportError("adapters: an architecture without modules has nothing to write")
    problems = dict.fromkeys(obstacle for p in placements if (obstacle := _obstacle(p)))
    there = {(p.layer, p.role, p.module) for p in placements}
    if any((layer, role, "parallel") in there for layer, role, module in there if module == "serial"):
        problems["serial and parallel adapters at one sub-layer (a stack feeds one into the other)"] = None
    if problems:
        raise ExportError(
            f"adapters cannot hold {'; '.join(problems)}. Search without them (autopeft show SPACE gives the keys, "
            "--set space.modules.….roles=…), or use --target autopeft"
        )


def _obstacle(p: Placement) -> str | None:
    if p.module == "bitfit":
        return "bitfit"
    gate = p.all_options.get("gate", "none")
    if gate == "mean":
        return f"gate 'mean' on {p.module} (it would average over padding too)"
    if gate != "none":
        return f"gate '{gate}' on {p.module}"
    if p.module == "lora" and p.role not in ("attn.q", "attn.k", "attn.v", "ffn.in", "ffn.out"):
        return f"lora at {p.role}"
    if p.module == "parallel" and p.role != "ffn":
        return "parallel adapters at attn"
    return None


def _left_out(group: list[Placement], n_layers: int) -> list[int]:
    return sorted(set(range(n_layers)) - {p.layer for p in group})


def _config(p: Placement, leave_out: list[int], hidden: int) -> dict[str, Any]:
    """The adapter's config as `adapters` writes it; what is left out has its default."""
    if p.module == "prefix":
        return {"architecture": "prefix_tuning", "flat": True, "prefix_length": p.size, "leave_out": leave_out}
    if p.module == "lora":
        where = p.role.rpartition(".")[2]
        return {
            "architecture": "lora",
            "r": p.size,
            "alpha": p.option("alpha"),
            "selfattn_lora": p.role.startswith("attn"),
            "attn_matrices": [where] if p.role.startswith("attn") else [],
            "intermediate_lora": p.role == "ffn.in",
            "output_lora": p.role == "ffn.out",
            "leave_out": leave_out,
        }
    return {
        "mh_adapter": p.role == "attn",
        "output_adapter": p.role == "ffn",
        "is_parallel": p.module == "parallel",
        "reduction_factor": hidden / (p.size + 0.5),  # it takes ⌊hidden / factor⌋, and b exactly might round down
        "non_linearity": _ACTIVATIONS[str(p.option("activation"))],
        "scaling": p.option("scale"),
        "original_ln_before": False,
        "original_ln_after": True,
        "residual_before_ln": True,
        "leave_out": leave_out,
    }


def _weights(name: str, group: list[Placement], weights: Mapping[str, "Tensor"], n_layers: int) -> dict[str, "Tensor"]:
    """The group's weights under the names of `adapters`."""
    import torch

    first = group[0]
    layers = {p.layer for p in group}
    found: dict[str, Tensor] = {}
    prefixes: dict[tuple[int, str], Tensor] = {}
    for key, tensor in weights.items():
        match = _KEY.fullmatch(key)
        if match is None or int(match[2]) not in layers or match[4] != first.module:
            continue
        path, layer, leaf, module, part, kind = match[1], int(match[2]), match[3], match[4], match[5], match[6] or ""
        role = _LEAVES[leaf]
        if module == "prefix":
            prefixes[layer, part] = tensor
        elif module == "lora" and role == first.role:
            found[f"{path}.loras.{name}.lora_{part}"] = tensor
        elif module != "lora" and role.partition(".")[0] == first.role:
            out = path.replace("intermediate.dense", "output.dense").removesuffix(".dense")
            at = {"down": f"adapter_down.0{kind}", "up": f"adapter_up{kind}", "scale": "scaling"}[part]
            found[f"{out}.adapters.{name}.{at}"] = tensor
    if prefixes:
        pairs = [prefixes[layer, part] for layer in sorted(layers) for part in "kv"]  # each (heads, length, width)
        flat = torch.stack(pairs).permute(2, 0, 1, 3).reshape(-1)  # (length, 2 · layers, heads, width)
        base = next(key.partition(".")[0] for key in weights if ".encoder.layer." in key)
        own = f"prefix_tunings.{name}.self_prefix.control_trans"
        places = [f"{base}.prefix_tuning.{own}"]
        places += [f"{base}.encoder.layer.{i}.attention.self.prefix_tuning.pool.{own}" for i in range(n_layers)]
        found |= {place: flat.clone() for place in places}
    return {key: tensor.contiguous() for key, tensor in found.items()}


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    atomic_write(path, json.dumps(data, indent=2) + "\n")
