"""Hosts of adapter parts: what they share, and the one that wraps a linear map or a norm.

Every parameter lies at `<module>.autopeft_<name>.<adapter>[.weight]`, flat, so that the key translation of HF PEFT and
of transformers works as it is. No activation is kept here.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from autopeft.hybrid.modules.base import LayerScope, Own, Part

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
            created = part.create(base)
            for name, value in created.items():
                self._container(name, value)[adapter] = value
            placed.append((part, tuple(created)))
        self.parts[adapter] = tuple(placed)
        self._move_adapter_to_device_of_base_layer(adapter)

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
        if not self.disable_adapters:
            for adapter in self.active_adapters:
                if adapter not in self.merged_adapters:
                    yield from self.own(adapter)

    def own(self, adapter: str) -> Iterator[tuple[Any, Own]]:
        """The adapter's parts here, each with its parameters."""
        for part, names in self.parts.get(adapter, ()):
            yield part, {name: getattr(self, f"{PREFIX}{name}")[adapter] for name in names}

    def delete_adapter(self, adapter_name: str) -> None:
        self.parts.pop(adapter_name, None)
        super().delete_adapter(adapter_name)

    def merge_obstacles(self, adapter: str) -> list[str]:
        """What keeps the adapter from being merged at this module."""
        return [obstacle for part, _ in self.parts.get(adapter, ()) if (obstacle := part.merge_obstacle)]


class AdaptedOutput(nn.Module, HybridLayer):
    """A linear map or a norm with adapters on its output."""

    def __init__(self, base_layer: nn.Module, scope: LayerScope) -> None:
        super().__init__()
        self.base_layer: nn.Module = base_layer
        self._begin(scope)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters and self.merged:
            self.unmerge()
        y: Tensor = self.base_layer(x, *args, **kwargs)
        dtype = y.dtype
        for part, own in self.active():
            y = part.forward(own, x, y, self.scope, self.training)
        return y.to(dtype)

    def merge_obstacles(self, adapter: str) -> list[str]:
        obstacles = super().merge_obstacles(adapter)
        if self.parts.get(adapter) and not self.base.weight.is_floating_point():
            obstacles.append("quantised base weight")
        return obstacles

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters to the base's weight and bias. What may be merged is checked by `HybridModel`."""
        for adapter in check_adapters_to_merge(self, adapter_names):
            if adapter in self.parts:
                self._add_deltas(adapter, 1.0, safe_merge)
                self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        while self.merged_adapters:
            adapter = self.merged_adapters.pop()
            self._add_deltas(adapter, -1.0, False)

    @torch.no_grad()
    def _add_deltas(self, adapter: str, sign: float, safe: bool) -> None:
        base = self.base
        for part, own in self.own(adapter):
            for target, delta in zip((base.weight, base.bias), part.delta(own), strict=True):
                if delta is None:
                    continue
                is_transposed = target is base.weight and hasattr(base, "nf")
                change = (sign * (delta.T if is_transposed else delta)).to(target.dtype)
                if safe and not torch.isfinite(target + change).all():
                    raise ValueError(f"NaN or infinity in merged weights: adapter '{adapter}' seems to be broken")
                target.data += change
