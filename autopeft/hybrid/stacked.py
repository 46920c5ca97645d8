"""Maps of one form that many adapters have at one module, in two matrix products instead of two for each.

Their weights lie in common tensors, ranks padded with zeros; an adapter that has no map there has rank 0. What is
padding stays zero: its gradient is, since the other map's padding is zero as well. Each adapter's own parameters are
views of the common tensors, so that optimisers, clipping and saving go on as if it were alone.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.hybrid.detached import DetachedAdapter
from autopeft.hybrid.modules.base import Own, Part
from autopeft.hybrid.modules.bottleneck import ACTIVATIONS, ParallelStart, Serial
from autopeft.hybrid.modules.lora import DoRA, LoRA


def form_of(part: Part) -> Hashable | None:
    """Parts of one form at one module can be stacked; None for those that cannot."""
    if isinstance(part, LoRA) and not isinstance(part, DoRA) and part.gate == "none" and not part.dropout:
        return "lora"
    if type(part) in (Serial, ParallelStart):
        bottleneck = part.bottleneck  # type: ignore[attr-defined]
        if bottleneck.gate == "none" and not bottleneck.dropout:
            return part.kind, bottleneck.activation
    return None


View = Callable[[Tensor], Tensor]


class Common:
    """A tensor `(K, ...)` that holds one parameter of up to K adapters."""

    def __init__(self, shape: tuple[int, ...], like: Tensor) -> None:
        self.tensor = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self._views: list[tuple[int, nn.Parameter, View]] = []

    def hold(self, member: int, value: Tensor, view: View) -> None:
        """Let the member's `value` be `view` of this tensor; one that does not train is copied."""
        own = view(self.tensor)
        own.copy_(value.detach())
        if isinstance(value, nn.Parameter):
            value.data = own
            self._views.append((member, value, view))

    def ready(self) -> None:
        """All are held: the tensor can be used."""
        self.tensor.requires_grad_(bool(self._views))

    def hand_out(self, members: Iterable[int]) -> None:
        """Give each of these members the gradient of its parameter."""
        gradient, self.tensor.grad = self.tensor.grad, None
        if gradient is None:
            return
        for member, parameter, view in self._views:
            if member in members:
                own = view(gradient)
                parameter.grad = own if parameter.grad is None else parameter.grad + own


class StackedMaps:
    """U f(D x + b_d) + b_u for all adapters of a pack; `parts` are those that have such maps, by member."""

    def __init__(self, n_members: int, parts: Mapping[int, tuple[Part, Own]]) -> None:
        self.members = frozenset(parts)
        first, own = next(iter(parts.values()))
        down, up = _maps(first, own)
        K, r = n_members, max(_maps(*part)[0].weight.shape[0] for part in parts.values())
        d_in, d_out = down.weight.shape[1], up.weight.shape[0]
        self._down = Common((K, r, d_in), down.weight)
        self._up = Common((K, r, d_out), up.weight)
        self._commons = [self._down, self._up]
        self._biases: tuple[Common, Common] | None = None
        self._activation: Callable[[Tensor], Tensor] | None = None
        self._learned: Common | None = None
        if not isinstance(first, LoRA):
            bottleneck = first.bottleneck  # type: ignore[attr-defined]
            self._activation = ACTIVATIONS[bottleneck.activation]
            self._biases = Common((K, 1, r), down.weight), Common((K, 1, d_out), down.weight)
            self._commons += self._biases
            if any(part.bottleneck.scale is None for part, _ in parts.values()):  # type: ignore[attr-defined]
                self._learned = Common((K, 1, 1), down.weight)
                self._commons.append(self._learned)
        self._fixed = torch.zeros(K, 1, 1, dtype=down.weight.dtype, device=down.weight.device)
        with torch.no_grad():
            for member, (part, own) in parts.items():
                self._hold(member, part, own)
        for common in self._commons:
            common.ready()

    def _hold(self, k: int, part: Any, own: Own) -> None:
        down, up = _maps(part, own)
        r = down.weight.shape[0]
        self._down.hold(k, down.weight, lambda t: t[k, :r])
        self._up.hold(k, up.weight, lambda t: t[k, :r].T)
        if isinstance(part, LoRA):
            self._fixed[k] = part.scale
            return
        assert self._biases is not None
        self._biases[0].hold(k, down.bias, lambda t: t[k, 0, :r])
        self._biases[1].hold(k, up.bias, lambda t: t[k, 0])
        if part.bottleneck.scale is None:
            assert self._learned is not None
            self._learned.hold(k, own[f"{part.kind}_scale"], lambda t: t[k, 0])
        else:
            self._fixed[k] = part.bottleneck.scale

    def update(self, x: Tensor, members: list[int]) -> Tensor:
        """What these members' maps make of `x (n, N, d_in)`, scaled: `(n, N, d_out)`; zeros where one has none."""
        x = x.to(self._down.tensor.dtype)
        down, up = self._of(self._down, members), self._of(self._up, members)
        scale = self._fixed if self._learned is None else self._fixed + self._learned.tensor
        scale = scale if len(members) == len(scale) else scale[members]
        if self._biases is None or self._activation is None:
            return torch.bmm(torch.bmm(x, down.transpose(1, 2)), up) * scale
        inner = self._activation(torch.baddbmm(self._of(self._biases[0], members), x, down.transpose(1, 2)))
        return torch.baddbmm(self._of(self._biases[1], members), inner, up) * scale

    def hand_out(self, members: Iterable[int]) -> None:
        """Give the members' parameters their gradients, after the backward pass."""
        for common in self._commons:
            common.hand_out(members)

    @staticmethod
    def _of(common: Common, members: list[int]) -> Tensor:
        tensor = common.tensor
        if members == list(range(len(tensor))):
            return tensor
        if members == list(range(members[0], members[0] + len(members))):
            return tensor[members[0] : members[0] + len(members)]
        return tensor[members]


def _maps(part: Part, own: Own) -> tuple[Any, Any]:
    name = part.kind
    return (own["lora_A"], own["lora_B"]) if isinstance(part, LoRA) else (own[f"{name}_down"], own[f"{name}_up"])


def lay_out(adapter: DetachedAdapter) -> None:
    """Put parameters into memory as they will lie in common tensors, so that an optimiser's state fits both."""
    for parts in adapter.outputs.values():
        for part, own in parts:
            if form_of(part) is not None:
                weight = _maps(part, own)[1].weight
                transposed = torch.empty_like(weight.T, memory_format=torch.contiguous_format)
                weight.data = transposed.copy_(weight.detach().T).T
