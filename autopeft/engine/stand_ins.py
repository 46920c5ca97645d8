"""Stand-ins for frozen modules: instead of computing, they hand over what the module gave for these rows before.

The model's own code runs on around them, so that each family makes its masks and position embeddings as it always does.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from autopeft.engine.activation_cache import Kept, Key
from autopeft.engine.batches import Per


@dataclass(frozen=True)
class Leaf:
    """One flat output of a module, and where a stand-in has it from."""

    source: Literal["kept", "blank", "passed", "constant"]
    """`blank`: nobody reads it, only its shape counts. `passed`: one of the module's own inputs."""
    kept: Kept | None = None
    """Of kept and blank ones."""
    argument: int = 0
    """Of passed ones: which of the flat inputs."""
    constant: Any = None


@dataclass(frozen=True)
class StandIn:
    """What takes the place of one module."""

    path: str
    """The module in the adapted model."""
    structure: Any
    leaves: tuple[Leaf, ...]

    @property
    def kept(self) -> tuple[Kept, ...]:
        return tuple(leaf.kept for leaf in self.leaves if leaf.source == "kept" and leaf.kept is not None)

    @property
    def made(self) -> tuple[Kept, ...]:
        """Kept and blank outputs."""
        return tuple(leaf.kept for leaf in self.leaves if leaf.kept is not None)

    def reading(self, keys: Iterable[Key]) -> "StandIn":
        """The same with the outputs of these keys kept, and all others blank."""
        keys = set(keys)
        return replace(
            self,
            leaves=tuple(
                leaf if leaf.kept is None else replace(leaf, source="kept" if leaf.kept.key in keys else "blank")
                for leaf in self.leaves
            ),
        )


@dataclass
class Feed:
    """What stand-ins hand over in the next forward pass."""

    sizes: Mapping[Per, tuple[int, ...]] = field(default_factory=dict)
    """Of the batch."""
    values: Mapping[Key, Tensor] | None = None
    fill: float = 0.0
    """What blank outputs are filled with."""

    def output(self, leaf: Leaf, inputs: list[Any]) -> Any:
        """The value of a stand-in's flat output."""
        if leaf.source == "constant":
            return leaf.constant
        if leaf.source == "passed":
            return inputs[leaf.argument]
        assert leaf.kept is not None and self.values is not None
        if leaf.source == "kept":
            return self.values[leaf.kept.key]
        return self._blank(leaf.kept)

    def _blank(self, kept: Kept) -> Tensor:
        like = next(iter(self.values.values())) if self.values else None
        device = None if like is None else like.device
        size = self.sizes[kept.key.per]
        return torch.full((), self.fill, dtype=kept.dtype, device=device).expand(*size, *kept.shape)


@contextmanager
def installed(model: nn.Module, stand_ins: Iterable[StandIn], feed: Feed) -> Iterator[None]:
    """Within it, the stand-ins take the place of their modules' `forward`; hooks of these modules still run."""
    with replaced((model.get_submodule(s.path), _forward(s, feed)) for s in stand_ins):
        yield


@contextmanager
def replaced(forwards: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Within it, modules have another `forward`."""
    before: list[tuple[nn.Module, Any]] = []
    try:
        for module, forward in forwards:
            before.append((module, module.__dict__.get("forward")))
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, own in reversed(before):
            if own is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = own


def _forward(stand_in: StandIn, feed: Feed) -> Callable[..., Any]:
    passes = any(leaf.source == "passed" for leaf in stand_in.leaves)
    is_plain = isinstance(stand_in.structure, _pytree.TreeSpec) and stand_in.structure.is_leaf()

    def forward(*args: Any, **kwargs: Any) -> Any:
        inputs = _pytree.tree_leaves((args, kwargs)) if passes else []
        outputs = [feed.output(leaf, inputs) for leaf in stand_in.leaves]
        return outputs[0] if is_plain else _pytree.tree_unflatten(outputs, stand_in.structure)

    return forward
