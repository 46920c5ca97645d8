"""LoRA as one product gives what it gives as two, and is left alone where it cannot be one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model

from autopeft.engine.fused_lora import fused
from autopeft.hybrid import HybridConfig, anatomy_of
from autopeft.hybrid.modules.lora import LoRA
from autopeft.space.architecture import Architecture, place
from tests.hybrid.adapted import mixed
from tests.models import TINY_FAMILIES, VOCABULARY, tiny_bert

BATCH = torch.arange(3 * 24).view(3, 24) * 7 % VOCABULARY
"""72 tokens; models are 32 wide, their FFN 64."""


def adapted(architecture: Architecture, model: Any = None, dropout: float = 0.0) -> Any:
    made = get_peft_model(
        tiny_bert(3) if model is None else model, HybridConfig(architecture=architecture, dropout=dropout)
    )
    with torch.no_grad():
        for i, parameter in enumerate(p for p in made.parameters() if p.requires_grad):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)) / 8)
    return made


def lora(role: str = "attn.q", layer: int = 1, **options: Any) -> Any:
    return place("encoder", layer, role, "lora", 4, options)


def results(model: Any, ids: torch.Tensor = BATCH) -> list[torch.Tensor]:
    """The output and all gradients."""
    model.zero_grad()
    output = model(input_ids=ids)[0]
    (output**3).sum().backward()
    return [output.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[LoRA]:
    """LoRA parts that ran as two products."""
    seen: list[LoRA] = []
    before: Callable[..., Any] = LoRA.forward

    def forward(self: LoRA, *args: Any) -> Any:
        seen.append(self)
        return before(self, *args)

    monkeypatch.setattr(LoRA, "forward", forward)
    return seen


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture.of([lora(role, layer) for role in ("attn.q", "attn.v", "ffn.in", "ffn.out") for layer in (0, 1)]),
        Architecture.of([lora(variant="fa", scaling="rslora")]),
    ],
    ids=["everywhere", "frozen-A"],
)
def test_one_product_gives_the_same_outputs_and_gradients(architecture: Architecture, calls: list[LoRA]) -> None:
    model = adapted(architecture).double()
    expected = results(model)
    assert calls
    calls.clear()
    with fused(model):
        found = results(model)
    assert not calls, "one product"
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)
    results(model)
    assert calls, "as before, afterwards"


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_modules_of_all_kinds_beside_it_are_what_they_were(family: str) -> None:
    model = TINY_FAMILIES[family]()
    architecture = mixed(anatomy_of(model.config))
    model = adapted(architecture, model).double()
    with torch.no_grad():
        expected = model(input_ids=BATCH)[0]
        with fused(model):
            found = model(input_ids=BATCH)[0]
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


def few_tokens(model: Any) -> Any:
    results(model, BATCH[:, :10])


def under_autocast(model: Any) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results(model)


@pytest.mark.parametrize(
    ("placements", "dropout", "run"),
    [
        ([lora(gate="scalar")], 0.0, results),
        ([lora(), place("encoder", 1, "layer", "bitfit", 1)], 0.0, results),
        ([lora()], 0.5, results),
        ([lora()], 0.0, few_tokens),
        ([lora()], 0.0, under_autocast),
    ],
    ids=["gate", "bitfit", "dropout", "few-tokens", "autocast"],
)
def test_it_stays_two_products(placements: list[Any], dropout: float, run: Callable[[Any], Any], calls: Any) -> None:
    model = adapted(Architecture.of(placements), dropout=dropout).train()
    with fused(model):
        run(model)
    assert calls


def test_weights_in_16_bits_are_not_changed(calls: list[LoRA]) -> None:
    model = adapted(Architecture.of([lora()])).bfloat16()
    with fused(model):
        results(model)
    assert calls


def test_a_map_that_something_watches_or_stands_in_for_is_left_alone(calls: list[LoRA]) -> None:
    model = adapted(Architecture.of([lora(layer=0), lora(layer=1)]))
    first, second = (layer.attention.self.query for layer in model.base_model.model.bert.encoder.layer)
    first.base_layer.register_forward_hook(lambda module, args, output: None)
    second.base_layer.__dict__["forward"] = lambda x: x
    with fused(model):
        results(model)
    assert len(calls) == 2
