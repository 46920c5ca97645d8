"""Architectures over a whole model, and adapted tiny models to run them on."""

import torch
from peft import PeftModel, get_peft_model

from autopeft.hybrid import HybridConfig, anatomy_of
from autopeft.space.anatomy import Anatomy
from autopeft.space.architecture import Architecture, place
from autopeft.space.modules import MODULES
from tests.models import TINY_FAMILIES, tiny_batch

SIZES = {"lora": 3, "serial": 5, "parallel": 4, "prefix": 3, "vera": 5, "kronecker": 2, "compacter": 4, "prompt": 3}

NOT_IDENTITY = {"prefix", "prompt"}
"""Kinds that change the model from the start."""


def size_of(kind: str) -> int:
    return MODULES[kind].max_size or SIZES.get(kind, 2)


def everywhere(kind: str, anatomy: Anatomy, **options) -> Architecture:
    """The kind at every place of every layer that can hold it."""
    return Architecture.of(
        place(stack, index, role, kind, size_of(kind), options)
        for stack, index, layer in anatomy.layers
        for role in MODULES[kind].roles
        if MODULES[kind].supports(layer, role)
    )


def mixed(anatomy: Anatomy, gate: str = "token", *, prefix: bool = True) -> Architecture:
    """All kinds together, gated and not, every option once."""
    stack = anatomy.stacks[0]
    name, layer = stack.name, stack.layers[0]
    first, *_, last = layer.roles
    rows = [
        (0, first, "lora", 3, {"alpha": 6.0}),
        (0, "attn", "parallel", 4, {"scale": 4.0, "activation": "gelu"}),
        (0, "attn", "serial", 2, {"scale": "learned", "activation": "tanh"}),
        (1, first, "lora", 2, {"gate": gate}),
    ]
    if MODULES["serial"].supports(layer, "ffn"):
        rows += [
            (0, last, "lora", 2, {}),
            (0, "ffn", "serial", 5, {"gate": gate}),
            (1, "ffn", "serial", 3, {}),
            (1, "ffn", "parallel", 3, {"scale": "learned", "gate": gate, "activation": "silu"}),
        ]
    rows += [
        (0, "attn.o", "lora", 2, {"variant": "dora", "scaling": "rslora"}),
        (0, "attn", "multihead", 2, {"activation": "silu", "scale": "learned"}),
        (0, "attn.o", "vera", 4, {"seed": 3}),
        (0, "layer", "layernorm", 1, {}),
        (1, "attn.o", "lora", 2, {"variant": "fa"}),
        (1, "attn.o", "kronecker", 2, {}),
        (1, "attn", "compacter", 4, {"gate": "scalar"}),
        (1, "layer", "layernorm", 1, {}),
    ]
    if MODULES["ia3"].supports(layer, "ffn.out"):
        rows += [(0, "ffn.out", "ia3", 1, {}), (1, "ffn.out", "ia3", 1, {})]
    if prefix:
        rows += [(0, "attn", "prefix", 4, {}), (1, "attn", "prefix", 3, {"gate": gate})]
    if MODULES["bitfit"].supports(layer, "layer"):
        rows += [(0, "layer", "bitfit", 1, {}), (1, "layer", "bitfit", 1, {})]
    return Architecture.of(
        place(name, *row)
        for row in rows
        if row[0] < len(stack.layers) and MODULES[row[2]].supports(layer, row[1])  # ALBERT has one layer
    )


VARIANTS = {
    "dora": lambda anatomy: everywhere("lora", anatomy, variant="dora", scaling="rslora"),
    "lora-fa": lambda anatomy: everywhere("lora", anatomy, variant="fa"),
    "gated dora": lambda anatomy: everywhere("lora", anatomy, variant="dora", gate="token"),
    "prefix with mlp": lambda anatomy: everywhere("prefix", anatomy, reparameterisation=6, gate="scalar"),
    "norms": lambda anatomy: everywhere("layernorm", anatomy, trains="all"),
}

ARCHITECTURES = {
    **{kind: lambda anatomy, kind=kind: everywhere(kind, anatomy) for kind in MODULES},
    **VARIANTS,
    "mixed": mixed,
}
"""Name -> architecture of an anatomy: every kind alone, its variants, and all together."""


def anatomy_of_family(family: str, **config) -> Anatomy:
    return anatomy_of(TINY_FAMILIES[family](**config).config)


def architecture_for(name: str, family: str) -> Architecture:
    return ARCHITECTURES[name](anatomy_of_family(family))


CASES = [
    (name, family)
    for name in ARCHITECTURES
    for family in TINY_FAMILIES
    if architecture_for(name, family).placements and not (name in VARIANTS and family == "roberta")
]
"""(architecture, family); BitFit has no place in Llama, which has no biases, and RoBERTa is BERT to a variant."""


def adapt(model, architecture: Architecture, **config) -> PeftModel:
    return get_peft_model(model, HybridConfig(architecture=architecture, **config)).eval()


def classifier(family: str, **config):
    return TINY_FAMILIES[family](num_labels=3, **config)


def shake(model, seed: int = 7, std: float = 0.3):
    """Random values for all adapter parameters, by the seed alone: zero-initialised ones would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "autopeft_" in name:
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return model


def batch_of(model):
    return tiny_batch(model.config.pad_token_id)


@torch.no_grad()
def logits(model, **inputs):
    """First output of the model on the tiny batch, or on `inputs`."""
    return model(**(inputs or batch_of(model)))[0]


def distance(a, b) -> float:
    return float((a - b).abs().max())
