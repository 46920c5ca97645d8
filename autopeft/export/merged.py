"""The base model with the adapter added to its weights: a plain transformers model, as fast as the base."""

import shutil
from collections import Counter
from pathlib import Path

from autopeft.errors import ExportError
from autopeft.export.base import base_model_of
from autopeft.export.spec import AdapterSpec
from autopeft.export.target import problem_of, weights_of, write_spec

_MERGING = ("lora", "bitfit")


def write_merged(source: Path, spec: AdapterSpec, folder: Path) -> None:
    """Model, tokeniser and spec.

    Raises:
        ExportError: the architecture holds modules that no weight of the model can take up; names them.
        ModelError: the base model cannot be loaded, or the adapter does not fit it.
    """
    from autopeft.engine.images import PREPROCESSOR
    from autopeft.engine.models import find_model, load_tokenizer
    from autopeft.hybrid import load_strict

    obstacles = Counter(
        p.module if p.module not in _MERGING else f"gated {p.module}"
        for p in spec.parsed_architecture.placements
        if p.module not in _MERGING or p.all_options.get("gate", "none") != "none"
    )
    if obstacles:
        named = ", ".join(f"{module} ({n} places)" for module, n in sorted(obstacles.items()))
        raise ExportError(
            f"merged cannot hold {named}: only LoRA and BitFit without gates are sums of weights. Search with "
            "--space lora, or load the adapter beside the model: --target autopeft"
        )
    if (bits := dict(spec.recipe).get("model", {}).get("quantisation", "none")) != "none":
        raise ExportError(
            f"merged cannot hold an adapter that was trained on weights in {bits}: added to them it would be rounded "
            "away, and added to the whole weights it was never scored. Load it beside the model: --target autopeft"
        )
    adapted = load_strict(base_model_of(weights_of(source, spec)), source)
    model = adapted.merge_and_unload(safe_merge=True)
    problem = problem_of(spec)
    if spec.task.labels and problem.n_outputs == len(spec.task.labels):
        model.config.id2label = dict(enumerate(spec.task.labels))
        model.config.label2id = {label: i for i, label in enumerate(spec.task.labels)}
    model.save_pretrained(folder)
    name = spec.base_model.name
    found = find_model(name, spec.base_model.revision, weights=False)
    if not problem.reads_images:
        load_tokenizer(name, found).save_pretrained(folder)
    elif (found / PREPROCESSOR).is_file():
        shutil.copyfile(found / PREPROCESSOR, folder / PREPROCESSOR)
    write_spec(source, spec, folder)
