"""Attention as plain products gives what the fused one gives, and is left alone where it cannot be so."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from autopeft.engine import short_attention as module
from autopeft.engine.short_attention import short_attention
from tests.models import TINY_FAMILIES, VOCABULARY, tiny_bert

B, HEADS, T, D = 3, 2, 7, 4


class Caller(nn.Module):
    is_causal = False


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of the queries that plain products attended with."""
    seen: list[tuple[int, ...]] = []
    before = module._Products.apply

    def apply(query: Tensor, *args: Any) -> Any:
        seen.append(tuple(query.shape))
        return before(query, *args)

    monkeypatch.setattr(module._Products, "apply", apply)
    yield seen


def inputs(trains: str, n_keys: int = T) -> list[Tensor]:
    made = []
    for seed, (name, n) in enumerate((("q", T), ("k", n_keys), ("v", n_keys))):
        x = torch.randn(B, n, HEADS, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        made.append(x.requires_grad_(name in trains).transpose(1, 2))
    return made


def attended(given: list[Tensor], mask: Tensor | None, caller: nn.Module | None = None, **kwargs: Any) -> list[Tensor]:
    """The output and the gradients of what trains."""
    function = ALL_ATTENTION_FUNCTIONS["sdpa"]
    output, weights = function(caller or Caller(), *given, mask, **kwargs)
    assert weights is None
    trained = [x for x in given if x.requires_grad]
    return [output.detach(), *torch.autograd.grad((output**3).sum(), trained)]


def masks(n_keys: int = T) -> dict[str, Tensor | None]:
    is_seen = torch.arange(n_keys).expand(B, 1, 1, n_keys) < torch.tensor([n_keys, n_keys - 2, 1]).view(B, 1, 1, 1)
    added = torch.zeros(B, 1, 1, n_keys, dtype=torch.float64).masked_fill(~is_seen, -1e9)
    by_head = torch.randn(1, HEADS, T, n_keys, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    return {"none": None, "keys": is_seen, "all": is_seen.expand(B, 1, T, n_keys), "added": added, "heads": by_head}


@pytest.mark.parametrize("trains", ["qkv", "qv", "k", "v"])
@pytest.mark.parametrize("mask", masks())
def test_it_gives_what_the_fused_one_gives(mask: str, trains: str, plain: list[Any]) -> None:
    given, scaling = inputs(trains), 0.3
    expected = attended(given, masks()[mask], scaling=scaling)
    assert not plain
    with short_attention():
        found = attended(given, masks()[mask], scaling=scaling)
    assert plain == [(B, HEADS, T, D)]
    assert len(found) == 1 + len(trains)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_keys_may_be_more_than_queries(plain: list[Any]) -> None:
    given, mask = inputs("qkv", n_keys=T + 2), masks(T + 2)["added"]
    expected = attended(given, mask)
    with short_attention():
        found = attended(given, mask)
    assert plain
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_row_of_which_nothing_is_seen_stays_finite() -> None:
    mask = torch.ones(B, 1, T, T, dtype=torch.bool)
    mask[1, :, 2] = False
    with short_attention():
        assert all(bool(x.isfinite().all()) for x in attended(inputs("qkv"), mask))


def causal() -> nn.Module:
    caller = Caller()
    caller.is_causal = True
    return caller


@pytest.mark.parametrize(
    "call",
    [
        lambda: attended([x.float() for x in inputs("qkv")], None, causal()),
        lambda: attended([x.bfloat16() for x in inputs("qkv")], None),
        lambda: attended(inputs("qkv", n_keys=65), None),
        lambda: attended(inputs("qkv"), None, position_bias=masks()["heads"]),
        lambda: ALL_ATTENTION_FUNCTIONS["sdpa"](Caller(), *inputs(""), None),
    ],
    ids=["causal", "bfloat16", "long", "position bias", "evaluation"],
)
def test_all_else_is_left_to_the_fused_one(call: Any, plain: list[Any]) -> None:
    with short_attention():
        call()
    assert not plain


def test_dropout_is_left_to_the_fused_one(plain: list[Any]) -> None:
    with short_attention():
        attended(inputs("qkv"), None, dropout=0.5)
    assert not plain


def test_the_registry_is_afterwards_what_it_was() -> None:
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with pytest.raises(RuntimeError), short_attention():
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not before
        raise RuntimeError
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before


@pytest.mark.parametrize("family", sorted(TINY_FAMILIES))
def test_models_give_the_same(family: str) -> None:
    model = TINY_FAMILIES[family]().double()
    ids = torch.arange(3 * 12).view(3, 12) * 7 % VOCABULARY
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0

    def gradients() -> list[Tensor]:
        model.zero_grad()
        output = model(input_ids=ids, attention_mask=mask)[0]
        (output[mask.bool()] ** 2).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    expected = gradients()
    with short_attention():
        found = gradients()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_model_calls_it(plain: list[Any]) -> None:
    model = tiny_bert(2)
    with short_attention():
        model(input_ids=torch.ones(2, 9, dtype=torch.long))[0].sum().backward()
    assert [shape[2] for shape in plain] == [9, 9]
