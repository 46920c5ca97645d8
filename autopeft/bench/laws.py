"""Which configurations the engine is measured on: two laws of which layers are adapted.

How much a trial can reuse hangs on its first adapted layer, so the law decides the figure. Under `uniform`, all layers
from some depth on are adapted and each depth is as likely: every depth stands once. Under `bernoulli`, each layer is
adapted or not by the toss of a coin, and half of all configurations begin at the first layer.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from autopeft.errors import UnknownNameError, UsageError
from autopeft.space.anatomy import Anatomy
from autopeft.space.architecture import Architecture, place
from autopeft.space.modules import MODULES

SIZES: Mapping[str, int] = MappingProxyType({"serial": 48, "parallel": 48, "compacter": 48, "vera": 64})
"""Of the kinds that do not have the usual 8."""


@dataclass(frozen=True)
class Configuration:
    """Modules of one kind in some layers."""

    kind: str
    layers: tuple[int, ...]
    n_layers: int
    architecture: Architecture

    @property
    def first(self) -> int:
        """The first adapted layer, from 0."""
        return self.layers[0]

    @property
    def is_top_third(self) -> bool:
        """Whether only layers of the last third are adapted."""
        return self.first >= self.n_layers - self.n_layers // 3

    @property
    def name(self) -> str:
        is_all_above = self.layers == tuple(range(self.first, self.n_layers))
        where = f"L{self.first}+" if is_all_above else "L" + ",".join(map(str, self.layers))
        return f"{self.kind} {where}"


def uniform(n_layers: int, n: int, rng: np.random.Generator) -> tuple[tuple[int, ...], ...]:
    """All layers from a depth on, each depth once; with more than `n` depths, `n` of them at even distances."""
    depths = np.unique(np.linspace(0, n_layers - 1, min(n, n_layers)).round().astype(int))
    return tuple(tuple(range(depth, n_layers)) for depth in depths.tolist())


def bernoulli(n_layers: int, n: int, rng: np.random.Generator) -> tuple[tuple[int, ...], ...]:
    """Each layer with probability 1/2; none at all is drawn again."""
    drawn: list[tuple[int, ...]] = []
    while len(drawn) < n:
        layers = tuple(np.flatnonzero(rng.random(n_layers) < 0.5).tolist())
        drawn += [layers] if layers else []
    return tuple(drawn)


LAWS: Mapping[str, Callable[[int, int, np.random.Generator], tuple[tuple[int, ...], ...]]] = MappingProxyType(
    {"uniform": uniform, "bernoulli": bernoulli}
)


def configurations(anatomy: Anatomy, kind: str, law: str, n: int, seed: int) -> tuple[Configuration, ...]:
    """At most `n` configurations of a law, the same for the same seed.

    Raises:
        UnknownNameError: no such kind of module or law.
        UsageError: the model has no place for modules of this kind in each of its layers.
    """
    for what, name, known in (("module", kind, MODULES), ("law", law, LAWS)):
        if name not in known:
            raise UnknownNameError(what, name, tuple(known))
    stack = anatomy.stacks[-1]
    return tuple(
        Configuration(kind, layers, len(stack.layers), _architecture(anatomy, kind, layers))
        for layers in LAWS[law](len(stack.layers), n, np.random.default_rng(seed))
    )


def _architecture(anatomy: Anatomy, kind: str, layers: Iterable[int]) -> Architecture:
    stack, facts = anatomy.stacks[-1], MODULES[kind]
    size = min(SIZES.get(kind, 8), facts.max_size or 10**9)
    placements = []
    for index in layers:
        roles = [role for role in facts.default_roles if facts.supports(stack.layers[index], role)]
        roles = roles or [role for role in facts.roles if facts.supports(stack.layers[index], role)][:1]
        if not roles:
            raise UsageError(f"{kind}: {anatomy.model_type} has no place for it in layer {index}")
        placements += [place(stack.name, index, role, kind, size) for role in roles]
    return Architecture.of(placements)
