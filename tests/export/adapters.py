"""Trained adapters of tiny models as folders, with their specs: what exports start from."""

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from autopeft.export.spec import AdapterSpec
from autopeft.hybrid import anatomy_of
from autopeft.space.architecture import Architecture, place
from autopeft.space.depth import depth_of
from tests.engine.checkpoints import checkpoint, recipe
from tests.export.test_spec import spec as any_spec
from tests.hybrid.adapted import adapt, mixed, shake


@dataclass(frozen=True)
class TrainedAdapter:
    base: Path
    source: Path
    spec: AdapterSpec
    model: object


def loras(stack: str, q: str = "attn.q") -> Architecture:
    """LoRA of different rank and alpha by layer and role."""
    rows = [(0, q, 2, 8.0), (0, "ffn.out", 3, 3.0), (1, q, 4, 16.0), (1, "attn.o", 2, 2.0)]
    return Architecture.of(place(stack, layer, role, "lora", r, {"alpha": alpha}) for layer, role, r, alpha in rows)


def trained_adapter(folder: Path, family: str, kind: str, task_type: str = "SEQ_CLS") -> TrainedAdapter:
    """`kind`: lora, bitfit (LoRA and BitFit), adapters (all that AdapterHub holds), dora, or mixed (all but DoRA)."""
    base = checkpoint(folder / "base", family)
    auto = AutoModelForCausalLM if task_type == "CAUSAL_LM" else AutoModelForSequenceClassification
    labels = {} if task_type == "CAUSAL_LM" else {"num_labels": 2}
    model = auto.from_pretrained(base, **labels)
    model.config.pad_token_id = model.config.pad_token_id or 0
    anatomy = anatomy_of(model.config)
    stack = anatomy.stacks[0].name
    architecture = {
        "lora": lambda: loras(stack, "attn.qkv" if family == "gpt2" else "attn.q"),
        "bitfit": lambda: Architecture.of(
            [*loras(stack).placements, *(place(stack, i, "layer", "bitfit", 1) for i in (0, 1))]
        ),
        "adapters": lambda: Architecture.of(
            [
                place(stack, 0, "attn.q", "lora", 2, {"alpha": 8.0}),
                place(stack, 1, "attn.q", "lora", 2, {"alpha": 8.0}),
                place(stack, 0, "attn.v", "lora", 3),
                place(stack, 1, "ffn.out", "lora", 4),
                place(stack, 0, "attn", "prefix", 3),
                place(stack, 1, "attn", "prefix", 5),
                place(stack, 0, "ffn", "serial", 6, {"activation": "silu"}),
                place(stack, 0, "attn", "serial", 5),
                place(stack, 1, "ffn", "parallel", 7, {"scale": "learned", "activation": "gelu"}),
            ]
        ),
        "mixed": lambda: Architecture.of(p for p in mixed(anatomy).placements if ("variant", "dora") not in p.options),
        "dora": lambda: Architecture.of([place(stack, 0, "attn.o", "lora", 2, {"variant": "dora"})]),
    }[kind]()
    adapted = shake(adapt(model, architecture, task_type=task_type, base_fingerprint=anatomy.fingerprint))
    adapted.save_pretrained(folder / "trained")
    spec = any_spec(
        architecture=architecture.to_json(),
        recipe=recipe().model_dump(mode="json"),
        base_model={
            "name": str(base),
            "model_type": anatomy.model_type,
            "anatomy": anatomy.fingerprint,
            "n_parameters": anatomy.n_parameters,
            "layers": depth_of(anatomy),
        },
    )
    (folder / "trained" / "autopeft_spec.json").write_text(spec.to_text())
    return TrainedAdapter(base, folder / "trained", spec, adapted)
