"""An untrained adapter as a folder, for pipelines that can only go on with an adapter that exists.

No weights of the base model are read or allocated: adapters are drawn as they are for a new model, and the task head,
where there is one, as transformers draws it. A causal model is taken with its language-model head, any other with
the head of the spec's problem.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.errors import ExportError
from autopeft.export.plain_lora import is_plain_lora, write_plain_lora
from autopeft.export.spec import AdapterSpec
from autopeft.export.target import WEIGHTS_FILE, problem_of, write_spec

if TYPE_CHECKING:
    from torch import Tensor

_SEED = 0


def write_init(source: Path, spec: AdapterSpec, folder: Path) -> None:
    """Adapter folder with untrained weights: plain LORA for a LoRA-only architecture, else AUTOPEFT; and the spec.

    Raises:
        ModelError: the base model's config cannot be read, or it has no place for a module.
    """
    write_untrained(spec, folder)
    write_spec(source, spec, folder)


def write_untrained(spec: AdapterSpec, folder: Path) -> None:
    """The adapter folder alone.

    Raises:
        ExportError: a module starts from weights of the base model, which are not read here.
    """
    if n_dora := sum(dict(p.options).get("variant") == "dora" for p in spec.parsed_architecture.placements):
        raise ExportError(
            f"an untrained adapter cannot hold dora ({n_dora} places): its magnitudes start at the norms of the base "
            "model's weights. Train it with: autopeft train --spec …"
        )
    if not is_plain_lora(spec.parsed_architecture):
        _write_hybrid(spec, folder)
        return
    with tempfile.TemporaryDirectory() as place:
        _write_hybrid(spec, Path(place))
        write_plain_lora(Path(place), spec, folder)


def _write_hybrid(spec: AdapterSpec, folder: Path) -> None:
    import torch
    from peft import get_peft_model, get_peft_model_state_dict
    from safetensors.torch import save_file

    from autopeft.hybrid import HybridConfig, read_anatomy
    from autopeft.hybrid.weights import check_weights

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model, task_type = _without_weights(spec)
        config = HybridConfig(
            architecture=spec.parsed_architecture,
            task_type=task_type,
            base_fingerprint=read_anatomy(model, spec.base_model.sites).fingerprint,
            site_map=spec.base_model.sites,
            base_model_name_or_path=spec.base_model.name,
        )
        adapted = get_peft_model(model, config)
        expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        drawn = _drawn(adapted)
        deviation = float(getattr(model.config, "initializer_range", 0.02))
        weights = {
            key: drawn[key] if key in drawn else _head_weight(shape.shape, deviation) for key, shape in expected.items()
        }
    check_weights(expected, drawn | weights, "the untrained adapter")
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    config.inference_mode = True
    config.save_pretrained(str(folder))


def _without_weights(spec: AdapterSpec) -> tuple[Any, str | None]:
    """The base model on the meta device with the head of a task, and PEFT's name of that task."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    from autopeft.engine.models import load_config
    from autopeft.hybrid import anatomy_of

    config = load_config(spec.base_model.name, spec.base_model.revision)
    is_causal = (
        anatomy_of(config, spec.base_model.sites).is_causal and type(config) in AutoModelForCausalLM._model_mapping
    )
    problem = problem_of(spec)
    problem.configure(config)
    auto = AutoModelForCausalLM if is_causal else getattr(transformers, problem.auto)
    with torch.device("meta"):
        return auto.from_config(config), "CAUSAL_LM" if is_causal else problem.task_type


def _drawn(adapted: Any) -> dict[str, "Tensor"]:
    """Fresh adapter weights by their keys in an adapter file."""
    from torch import nn

    from autopeft.hybrid.layers import PREFIX, HybridLayer

    weights: dict[str, Tensor] = {}
    for name, host in adapted.named_modules():
        if isinstance(host, HybridLayer):
            for part, _ in host.parts.get("default", ()):
                for own, value in part.create(host.base).items():
                    key = f"{name}.{PREFIX}{own}"
                    if isinstance(value, nn.Parameter):
                        weights[key] = value.detach()
                    else:
                        weights |= {f"{key}.{sub}": p.detach() for sub, p in value.named_parameters()}
    return weights


def _head_weight(shape: Any, deviation: float) -> "Tensor":
    import torch

    return torch.randn(shape) * deviation if len(shape) >= 2 else torch.zeros(shape)
