"""What a kind of adapter module is made of: parts, each at one module of the base model.

A kind is a function `attach(placement, sites, dropout)` that says which part goes to which module. A part knows its
parameters and what it does in the forward pass; the host that carries it (`autopeft.hybrid.layers`,
`autopeft.hybrid.attention`) owns the parameters, switches adapters, and merges.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from autopeft.errors import ModelError
from autopeft.hybrid.sites import LayerSites
from autopeft.space.architecture import Placement

Parameters = dict[str, nn.Module | nn.Parameter]
"""Parameters of one part by name: `lora_A` is stored as `<module>.autopeft_lora_A.<adapter>`."""

Own = Mapping[str, Any]
"""A part's parameters in the forward pass, under the names in which `Part.create` gave them."""


@dataclass
class LayerScope:
    """What the parts of one layer share during a forward pass; set where the layer's attention is entered.

    Attention comes before everything that reads it, also when a checkpointed layer is computed again.
    """

    keeps_tokens: bool = False
    keeps_input: bool = False
    true_tokens: Tensor | None = None
    """Which tokens are no padding, bool (B, T, 1); None where no mask is known: then all are."""
    mask_at: tuple[str, int] = ("attention_mask", 1)
    """Name and position of the mask among the arguments of the attention module."""
    hook: RemovableHandle | None = None
    attention_input: Tensor | None = None
    """Hidden states that enter attention (B, T, H), until the attention function has taken them."""

    def enter_attention(self, attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the attention module."""
        if self.keeps_input:
            self.attention_input = args[0] if args else kwargs["hidden_states"]
        if self.keeps_tokens:
            name, position = self.mask_at
            mask = kwargs.get(name, args[position] if len(args) > position else None)
            self.true_tokens = None if mask is None else _true_tokens(mask)

    def take_attention_input(self) -> Tensor:
        taken, self.attention_input = self.attention_input, None
        assert taken is not None
        return taken

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a model starts without activations (a tensor within a graph cannot be copied).
        return {**self.__dict__, "true_tokens": None, "attention_input": None}


def mask_parameter(attention: nn.Module) -> tuple[str, int]:
    """Name and position of the attention mask among the arguments of an attention module's `forward`."""
    names = [name for name in inspect.signature(attention.forward).parameters if name != "self"]
    found = next((name for name in ("attention_mask", "mask", "attn_mask") if name in names), None)
    return (found, names.index(found)) if found else ("attention_mask", 1)


def _true_tokens(mask: Any) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dim() not in {2, 4}:
        raise ModelError(
            f"gate 'mean': needs an attention mask of 2 or 4 dimensions to leave out padding, got {type(mask).__name__}"
        )
    if mask.dim() == 4:  # (B, 1 or heads, T, T): a token is true if any query sees it
        # Additive masks are 0 where a token is seen; DeBERTa's is 1 there, and 0 where it is not.
        is_seen = mask != 0
        allowed = torch.where(mask.amax() <= 0, mask > -1000.0, is_seen) if mask.is_floating_point() else is_seen
        return allowed.any(dim=1).any(dim=1).unsqueeze(-1)
    return (mask != 0).unsqueeze(-1)


@dataclass(frozen=True)
class Part(ABC):
    """What one placement puts at one module. Frozen: all state is in the parameters, which the host owns."""

    kind: ClassVar[str]
    """Name of the module kind, as in `MODULES`."""

    @abstractmethod
    def create(self, base: nn.Module) -> Parameters:
        """Fresh parameters for the module `base`, on the CPU."""

    @property
    def stored(self) -> "Part":
        """The part as it is saved: without what only helps training."""
        return self

    @property
    def merge_obstacle(self) -> str | None:
        """Why this part cannot become a change of the base's weight and bias; None where it can."""
        return self.kind


class HostedPart(Part):
    """A part of a linear map or a norm, which can perhaps be merged into it."""

    position: ClassVar[int] = 0
    """Order among the parts of one module: lower comes first."""
    reads_base: ClassVar[bool] = False
    """Whether merging it needs the base's own weight, free of other adapters."""

    @property
    def is_additive(self) -> bool:
        """Whether merging only adds `delta`, so that subtracting it undoes it."""
        return True

    def delta(self, own: Own) -> tuple[Tensor | None, Tensor | None]:
        """What merging adds to the weight (out, in) and to the bias (out,)."""
        raise NotImplementedError(self.kind)

    def merged(self, own: Own, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Weight (out, in) and bias (out,) with this part in them."""
        changes = self.delta(own)
        weight = weight if changes[0] is None else weight + changes[0]
        return weight, bias if bias is None or changes[1] is None else bias + changes[1]


class OutputPart(HostedPart):
    """A part that changes the output of the linear map or norm that it stands at."""

    @abstractmethod
    def forward(self, own: Own, x: Tensor, y: Tensor, at: "Pass") -> Tensor:
        """The output that takes the place of `y`; `x` is what entered the module."""


class InputPart(HostedPart):
    """A part that changes what enters the linear map that it stands at, before all parts on its output."""

    @abstractmethod
    def enter(self, own: Own, x: Tensor) -> Tensor:
        """The input that takes the place of `x`."""


class PromptPart(Part):
    """A part that puts vectors among those that enter a stack."""

    @abstractmethod
    def vectors(self, own: Own) -> Tensor:
        """The vectors (l, width)."""


class KeyValuePart(Part):
    """A part that puts keys and values before those of the sequence."""

    @property
    @abstractmethod
    def needs_input(self) -> bool:
        """Whether it reads what enters attention, `hidden` in `keys_values`."""

    @abstractmethod
    def keys_values(
        self, own: Own, batch: int, hidden: Tensor | None, scope: LayerScope
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values (B, kv heads, l, head dim), and what is added to their attention scores (B, 1, T, 1)."""


@dataclass(frozen=True)
class Pass:
    """What a part may read besides its own parameters in a forward pass of its host."""

    base: Any
    """The module of the base model."""
    scope: LayerScope
    training: bool


class FrozenMap(nn.Module):
    """A linear map without bias whose weight (out, in) does not train; saved where `stored`."""

    weight: Tensor

    def __init__(self, weight: Tensor, stored: bool) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=stored)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype))


@dataclass
class Mailbox:
    """Carries a tensor from one module to a later one of the same forward pass; empty outside of it."""

    content: Tensor | None = None

    def put(self, content: Tensor) -> None:
        self.content = content

    def take(self) -> Tensor:
        taken, self.content = self.content, None
        assert taken is not None, "the module that fills the mailbox was not called"
        return taken

    def __getstate__(self) -> dict[str, Any]:
        return {"content": None}


@dataclass(frozen=True)
class Attachment:
    """`part` goes to the base model's module of the name `module`."""

    module: str
    part: Part
    sites: LayerSites = field(repr=False)
    """The layer that the module belongs to."""
    gate: str = "none"


Attach = Callable[[Placement, LayerSites, float], tuple[Attachment, ...]]
"""Parts of a placement in its layer, given the dropout on the inputs of adapters."""
