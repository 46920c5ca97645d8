"""Our modules compute what AdapterHub's `adapters` computes, by a stored reference; see `parity/make_reference.py`."""

import re

import pytest
import torch
from safetensors import safe_open

from autopeft.space.architecture import Architecture, place
from tests.hybrid.adapted import adapt, distance
from tests.hybrid.parity.make_reference import FILE, IDS, MASK, fill
from tests.models import tiny_bert

GATE = {"gate": "mean"}


def in_both_layers(*rows) -> Architecture:
    return Architecture.of(place("encoder", layer, *row) for layer in (0, 1) for row in rows)


PREFIX = ("attn", "prefix", 3)
METHODS = {
    "serial": in_both_layers(
        ("attn", "serial", 6, {"activation": "silu"}), ("ffn", "serial", 6, {"activation": "silu"})
    ),
    "serial_ffn": in_both_layers(("ffn", "serial", 5)),
    "parallel": in_both_layers(("ffn", "parallel", 7)),
    "scaled_parallel": in_both_layers(("ffn", "parallel", 7, {"scale": 4.0})),
    "learned_parallel": in_both_layers(("ffn", "parallel", 7, {"scale": "learned"})),
    "prefix": in_both_layers(PREFIX),
    "lora": in_both_layers(*((role, "lora", 3, {"alpha": 6.0}) for role in ("attn.q", "attn.k", "attn.v"))),
    "lora_ffn": in_both_layers(*((role, "lora", 2, {"alpha": 8.0}) for role in ("ffn.in", "ffn.out"))),
    "mam": in_both_layers(PREFIX, ("ffn", "parallel", 7, {"scale": 4.0})),
    "unipelt": in_both_layers(
        (*PREFIX, GATE),
        ("ffn", "serial", 5, GATE),
        ("attn.q", "lora", 3, GATE),
        ("attn.v", "lora", 3, GATE),
    ),
}

_NAMES = [
    (r"(.*)\.loras\.a\.lora_([AB])", r"\1.autopeft_lora_\2.default.weight"),
    (r"(.*)\.loras\.a\.gate\.(weight|bias)", r"\1.autopeft_lora_gate.default.\2"),
    (r"(.*output)\.adapters\.a\.adapter_(down\.0|up)\.(weight|bias)", r"\1.dense.autopeft_serial_\2.default.\3"),
    (r"(.*output)\.adapters\.a\.gate\.(weight|bias)", r"\1.dense.autopeft_serial_gate.default.\2"),
    (
        r"(.*self)\.prefix_tuning\.prefix_gates\.a\.(weight|bias)",
        r"\1.hybrid_prefix.autopeft_prefix_gate.default.\2",
    ),
]
"""Name of a weight in `adapters` → ours, for a serial adapter."""


def ours(key: str, is_parallel: bool) -> str:
    for pattern, template in _NAMES:
        if re.fullmatch(pattern, key):
            name = re.sub(pattern, template, key).replace("down.0", "down")
            if is_parallel and "autopeft_serial" in name:  # computed at the first linear map of the sub-layer
                return name.replace("output.dense.autopeft_serial", "intermediate.dense.autopeft_parallel")
            return name
    assert key.endswith("output.adapters.a.scaling"), key
    return key.replace("output.adapters.a.scaling", "intermediate.dense.autopeft_parallel_scale.default")


def reference(method: str) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    with safe_open(FILE, "pt") as file:
        keys = [key for key in file.keys() if key.startswith(f"{method}/")]  # noqa: SIM118 - not a mapping
        weights = {key.removeprefix(f"{method}/"): file.get_tensor(key) for key in keys}
        return weights, file.get_tensor(f"{method}:padded"), file.get_tensor(f"{method}:whole")


@torch.no_grad()
def with_weights(method: str):
    """The adapted model, with every adapter weight taken from the reference and none left over on either side."""
    model = tiny_bert(num_labels=3)
    fill(model)
    adapted = adapt(model, METHODS[method])
    mine = {name: p for name, p in adapted.base_model.model.named_parameters() if "autopeft_" in name}
    taken = set()
    for key, value in reference(method)[0].items():
        if key.endswith("control_trans"):
            pairs = value.view(3, 4, 4, 8).permute(1, 2, 0, 3)  # (2 · layers, heads, length, head width)
            for layer in (0, 1):
                for name, tensor in zip("kv", pairs[2 * layer : 2 * layer + 2], strict=True):
                    own = f"bert.encoder.layer.{layer}.attention.self.hybrid_prefix.autopeft_prefix_{name}.default"
                    mine[own].copy_(tensor)
                    taken.add(own)
        else:
            own = ours(key, any(p.module == "parallel" for p in METHODS[method].placements))
            assert mine[own].shape == value.shape
            mine[own].copy_(value)
            taken.add(own)
    assert taken == set(mine)
    return adapted


@torch.no_grad()
def outputs(model, ids=IDS, mask=MASK) -> torch.Tensor:
    return model(input_ids=ids, attention_mask=mask).logits


@pytest.mark.parametrize("method", METHODS)
def test_logits_are_those_of_adapters(method):
    _, padded, whole = reference(method)
    adapted = with_weights(method)
    assert distance(outputs(adapted, mask=torch.ones_like(IDS)), whole) <= 1e-5
    if method != "unipelt":
        assert distance(outputs(adapted), padded) <= 1e-5
    with adapted.disable_adapter():
        assert distance(outputs(adapted), padded) > 1e-2  # the reference is not the base model


def test_the_mean_gate_of_adapters_counts_padding_and_ours_does_not():
    """Their gate averages over padding too, so a sentence's logits depend on its batch. Rows without padding agree."""
    _, padded, _ = reference("unipelt")
    adapted = with_weights("unipelt")
    mine = outputs(adapted)
    assert distance(mine[:1], padded[:1]) <= 1e-5
    assert distance(mine[1:], padded[1:]) > 1e-3
    alone = outputs(adapted, IDS[1:, :4], MASK[1:, :4])
    assert distance(mine[1:], alone) <= 1e-5


def test_every_method_of_the_reference_is_compared():
    with safe_open(FILE, "pt") as file:
        assert {key.partition("/")[0] for key in file.keys() if "/" in key} == set(METHODS)  # noqa: SIM118
        assert file.metadata()["adapters"] == "1.3.0"
