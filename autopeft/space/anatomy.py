"""What a model offers to adapters: stacks, layers, sites by role, widths. Pure data, read elsewhere from a config.

Roles are canonical and never module paths: `attn.q/k/v/qkv/o`, `ffn.in/gate/out` for linear maps. Sub-layers are
`attn` and `ffn`; `layer` stands for all biases or norms of a layer, `embeddings` for what enters the first one.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

LINEAR_ROLES = ("attn.q", "attn.k", "attn.v", "attn.qkv", "attn.o", "ffn.in", "ffn.gate", "ffn.out")
_LATER_FACTS = ("norm_weights", "n_heads", "embeddings", "repeats")


@dataclass(frozen=True)
class Site:
    """One linear map of a layer: `role`, its widths, and whether it has a bias."""

    role: str
    in_features: int
    out_features: int
    has_bias: bool


@dataclass(frozen=True)
class Layer:
    """One transformer layer."""

    hidden: int
    """Width of the residual stream."""
    sites: tuple[Site, ...]
    norm_biases: tuple[int, ...] = ()
    """Widths of the biases of the layer's norms (empty for RMSNorm)."""
    n_kv_heads: int = 0
    head_dim: int = 0
    prefix: bool = False
    """Whether prefix key/value vectors reach this layer's attention."""
    norm_weights: tuple[int, ...] = ()
    """Widths of the weights of the layer's norms."""
    n_heads: int = 0
    """Query heads; 0 where they are not known."""
    embeddings: int = 0
    """Width of the vectors that enter the stack, where prompts can stand before this layer; else 0."""
    repeats: int = 1
    """How often the model goes through this one layer (ALBERT); its adapters are shared by all passes."""

    def site(self, role: str) -> Site | None:
        """The site of `role`, or None where the layer has none."""
        return next((site for site in self.sites if site.role == role), None)

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(site.role for site in self.sites)


@dataclass(frozen=True)
class Stack:
    name: str
    """`encoder` (bidirectional) or `decoder` (causal)."""
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Anatomy:
    """A model as the search sees it."""

    model_type: str
    n_parameters: int
    """All parameters of the base model as `AutoModel` loads it: task head excluded, tied weights once."""
    stacks: tuple[Stack, ...]
    notes: tuple[str, ...] = ()
    """What adapters cannot do on this model, and why, in sentences."""

    @cached_property
    def layers(self) -> tuple[tuple[str, int, Layer], ...]:
        """All layers as (stack name, index in the stack, layer), in the order of the forward pass."""
        return tuple((stack.name, index, layer) for stack in self.stacks for index, layer in enumerate(stack.layers))

    def layer(self, stack: str, index: int) -> Layer | None:
        return self._by_position.get((stack, index))

    @cached_property
    def _by_position(self) -> dict[tuple[str, int], Layer]:
        return {(stack, index): layer for stack, index, layer in self.layers}

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def hidden(self) -> int:
        """Width of the residual stream (of the first stack, where they differ)."""
        return self.stacks[0].layers[0].hidden

    @property
    def is_causal(self) -> bool:
        return any(stack.name == "decoder" for stack in self.stacks)

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits that change with anything an adapter could notice.

        Facts that follow from the others and the model type are left out: they came later, and fingerprints must last.
        """
        data = self.to_json()
        del data["notes"]
        for layer in (layer for stack in data["stacks"] for layer in stack["layers"]):
            for name in _LATER_FACTS:
                del layer[name]
        text = json.dumps(data, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Anatomy":
        """Inverse of `to_json`."""
        stacks = tuple(
            Stack(
                stack["name"],
                tuple(
                    Layer(
                        **{
                            **layer,
                            "sites": tuple(Site(**site) for site in layer["sites"]),
                            "norm_biases": tuple(layer["norm_biases"]),
                            "norm_weights": tuple(layer.get("norm_weights", ())),
                        }
                    )
                    for layer in stack["layers"]
                ),
            )
            for stack in data["stacks"]
        )
        return cls(data["model_type"], data["n_parameters"], stacks, tuple(data.get("notes", ())))
