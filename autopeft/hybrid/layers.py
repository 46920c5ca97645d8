"""Hosts of adapter parts: what they share, and the one that wraps a linear map or a norm.

Every parameter lies at `<module>.autopeft_<name>.<adapter>[.weight]`, flat, so that the key translation of HF PEFT and
of transformers works as it is. No activation is kept here.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from autopeft.hybrid.modules.base import HostedPart, InputPart, LayerScope, OutputPart, Own, Parameters, Part, Pass

PREFIX = "autopeft_"


class HybridLayer(BaseTunerLayer):
    """Parameters of the parts at one module, by adapter."""

    parts: dict[str, tuple[tuple[Part, tuple[str, ...]], ...]]
    """By adapter: its parts at this module, each with the names of its parameters."""
    scope: LayerScope
    adapter_layer_names: tuple[str, ...]
    merged_adapters: list[str]
    _active_adapter: str | list[str]

    def _begin(self, scope: LayerScope) -> None:
        self.scope = scope
        self.parts = {}
        self.adapter_layer_names = ()
        self.merged_adapters = []
        self._disable_adapters = False
        self._active_adapter = []

    def add(self, adapter: str, parts: Sequence[Part]) -> None:
        """Give the adapter its parts at this module, with fresh parameters on the base's device and in its dtype."""
        base = self.base
        placed = []
        for part in sorted(parts, key=lambda part: getattr(part, "position", 0)):
            placed.append((part, self._hold(adapter, part.create(base))))
        self.parts[adapter] = tuple(placed)
        self._move_adapter_to_device_of_base_layer(adapter)

    def _hold(self, adapter: str, created: Parameters) -> tuple[str, ...]:
        for name, value in created.items():
            self._container(name, value)[adapter] = value
        return tuple(created)

    def _container(self, name: str, value: nn.Module | nn.Parameter) -> Any:
        attribute = f"{PREFIX}{name}"
        if attribute not in self.adapter_layer_names:
            setattr(self, attribute, nn.ParameterDict() if isinstance(value, nn.Parameter) else nn.ModuleDict())
            self.adapter_layer_names = (*self.adapter_layer_names, attribute)
        return getattr(self, attribute)

    @property
    def base(self) -> Any:
        """The module of the base model, without any adapter around it."""
        return self.get_base_layer()

    def active(self) -> Iterator[tuple[Any, Own]]:
        """Parts that take part in the forward pass, each with its parameters."""
        for parts in self.active_by_adapter():
            yield from parts

    def active_by_adapter(self) -> list[list[tuple[Any, Own]]]:
        """`active`, for each adapter apart."""
        if self.disable_adapters:
            return []
        return [list(self.own(adapter)) for adapter in self.active_adapters if adapter not in self.merged_adapters]

    def own(self, adapter: str) -> Iterator[tuple[Any, Own]]:
        """The adapter's parts here, each with its parameters."""
        for part, names in self.parts.get(adapter, ()):
            yield part, {name: getattr(self, f"{PREFIX}{name}")[adapter] for name in names}

    def delete_adapter(self, adapter_name: str) -> None:
        self.parts.pop(adapter_name, None)
        super().delete_adapter(adapter_name)

    def merge_obstacles(self, adapter: str, with_others: bool) -> list[str]:
        """What keeps the adapter from being merged at this module, alone or `with_others`."""
        return [obstacle for part, _ in self.parts.get(adapter, ()) if (obstacle := part.merge_obstacle)]


class AdaptedOutput(nn.Module, HybridLayer):
    """A linear map or a norm with adapters on its output."""

    def __init__(self, base_layer: nn.Module, scope: LayerScope) -> None:
        super().__init__()
        self.base_layer: nn.Module = base_layer
        self._before: dict[str, Any] = {}  # weight and bias before a merge that only a copy can undo
        self._begin(scope)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        adapters = self.active_by_adapter()
        inputs: list[Tensor] = []
        for parts in reversed(adapters):  # as if each adapter were merged before the next one comes
            for part, own in parts:
                if isinstance(part, InputPart):
                    x = part.enter(own, x)
            inputs.insert(0, x)
        y: Tensor = self.base_layer(x, *args, **kwargs)
        dtype, at = y.dtype, Pass(self.base_layer, self.scope, self.training)
        for parts, entered in zip(adapters, inputs, strict=True):
            for part, own in parts:
                if isinstance(part, OutputPart):
                    y = part.forward(own, entered, y, at)
        return y.to(dtype)

    def merge_obstacles(self, adapter: str, with_others: bool) -> list[str]:
        obstacles = super().merge_obstacles(adapter, with_others)
        if with_others and any(
            isinstance(part, HostedPart) and part.reads_base for part, _ in self.parts.get(adapter, ())
        ):
            obstacles.append("dora together with another adapter")
        if self.parts.get(adapter) and not self.base.weight.is_floating_point():
            obstacles.append("quantised base weight")
        return obstacles

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put the adapters into the base's weight and bias. What may be merged is checked by `HybridModel`."""
        for adapter in check_adapters_to_merge(self, adapter_names):
            if adapter in self.parts:
                self._merge(adapter, safe_merge)
                self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        while self.merged_adapters:
            self._unmerge(self.merged_adapters.pop())

    @torch.no_grad()
    def _merge(self, adapter: str, safe: bool) -> None:
        weight, bias = self._weight_and_bias()
        before = weight, bias
        for part, own in self.own(adapter):
            assert isinstance(part, HostedPart)
            weight, bias = part.merged(own, weight, bias)
        if safe and not all(torch.isfinite(tensor).all() for tensor in (weight, bias) if tensor is not None):
            raise ValueError(f"NaN or infinity in merged weights: adapter '{adapter}' seems to be broken")
        if not self._is_additive(adapter):
            self._before[adapter] = tuple(tensor.clone() if tensor is not None else None for tensor in before)
        self._set(weight, bias)

    @torch.no_grad()
    def _unmerge(self, adapter: str) -> None:
        if adapter in self._before:
            self._set(*self._before.pop(adapter))
            return
        weight, bias = self._weight_and_bias()
        for part, own in self.own(adapter):
            changes = part.delta(own)
            weight = weight if changes[0] is None else weight - changes[0]
            bias = bias if bias is None or changes[1] is None else bias - changes[1]
        self._set(weight, bias)

    def _is_additive(self, adapter: str) -> bool:
        return all(part.is_additive for part, _ in self.own(adapter))

    def _weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        base = self.base
        weight = base.weight.T if hasattr(base, "nf") else base.weight  # the transposed linear map of GPT-2
        return weight, getattr(base, "bias", None)

    def _set(self, weight: Tensor, bias: Tensor | None) -> None:
        base = self.base
        base.weight.data.copy_(weight.T if hasattr(base, "nf") else weight)
        if bias is not None:
            base.bias.data.copy_(bias)


def kinds_of_parameters(model: nn.Module) -> dict[nn.Parameter, str]:
    """Every adapter parameter in a model → the kind of module that it belongs to."""
    found: dict[nn.Parameter, str] = {}
    for layer in (module for module in model.modules() if isinstance(module, HybridLayer)):
        for adapter in layer.parts:
            for part, own in layer.own(adapter):
                for value in own.values():
                    parameters = value.parameters() if isinstance(value, nn.Module) else (value,)
                    found |= dict.fromkeys(parameters, part.kind)
    return found
