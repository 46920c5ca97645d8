"""Response surfaces over architectures: made-up scores of adapters, shaped as PEFT's are, drawn from a seed.

A surface is a function of placements and the learning rate alone, so that it means the same in every search space. A
placement has a *capacity*: the worth of its kind at its site, growing with its size at a falling rate, changed by its
options (scale, gate, alpha), and by how near the learning rate is to the optimum of its kind. Capacities of a layer are
weighted by depth and joined in one of two ways:

- `layered` and `patchy`: modules at one sub-layer are partly redundant (a p-norm), attention and FFN help or hinder
  each other, a serial and a parallel adapter at one FFN compete; layers add up. In `patchy` single layers and few kinds
  matter most, and some trainings fail badly.
- `pooled`: every kind has falling returns over the whole model, and every pair of kinds helps or hinders each other.

Too high a learning rate ruins everything, every parameter costs a little (overfitting), and the sum saturates. All
constants are drawn, none is fitted to a sampler. The orders of magnitude are those of published studies: two to eight
points between an average and the best architecture of a budget, one seed's noise of 0.5 to 1 point, useful ranks of 4
to 16, bottlenecks of 16 to 64, upper layers worth more, LoRA and adapters worth more than prefixes, and those more than
biases alone (Hu et al. 2022; He et al. 2022; Mao et al. 2022; Chen et al. 2023; Zhou et al. 2024).
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from autopeft.space.anatomy import Anatomy
from autopeft.space.architecture import Architecture, Placement
from autopeft.space.counting import count_placement
from autopeft.space.modules import MODULES, Scalar

Family = Literal["layered", "patchy", "pooled"]
Slot = tuple[str, str]
"""(module, sub-layer): capacities of the same slot of a layer stand together."""
Array = NDArray[np.float64]
Capacities = Mapping[Slot, Array]

DEFAULT_LEARNING_RATE = 1e-3
"""In spaces that do not search it."""

_WORTH: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "lora": (1.0, 4),
        "serial": (0.9, 24),
        "parallel": (1.0, 24),
        "prefix": (0.7, 6),
        "bitfit": (0.35, 0.5),
        "ia3": (0.4, 0.5),
        "layernorm": (0.3, 0.5),
        "vera": (0.5, 64),
        "kronecker": (0.6, 8),
        "compacter": (0.6, 48),
        "multihead": (0.8, 16),
        "prompt": (0.3, 10),
    }
)
"""Kind → typical (worth, size at which most of it is reached); a surface's own are drawn around them."""
_OTHER_KIND = (0.5, 8.0)
_FASTER = MappingProxyType({"prefix": 0.5, "bitfit": 0.4, "ia3": 0.5, "prompt": 0.8})
"""Kinds that like higher learning rates, in natural logarithms."""
_OUTLIER_POINTS = (5.0, 15.0)


def stream(*key: object) -> np.random.Generator:
    """A random stream of its own for every key, so that one more kind of module does not change the others' draws."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def slot_of(module: str, role: str) -> Slot:
    return module, role.split(".", maxsplit=1)[0]


@dataclass(frozen=True)
class Surface:
    """One made-up response on one model. `raw` is its value before it is scaled to points."""

    family: Family
    anatomy: Anatomy
    seed: int
    _memo: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def raw(self, architecture: Architecture, training: Mapping[str, Scalar]) -> float:
        """Noise-free value of an architecture, within a budget or not; larger is better, 0 for none."""
        learning_rate = float(training.get("learning_rate", DEFAULT_LEARNING_RATE))
        layers: dict[int, list[Placement]] = defaultdict(list)
        for placement in architecture.placements:
            layers[self._positions[placement.stack, placement.layer]].append(placement)
        slots = {at: self.capacities(placements, learning_rate) for at, placements in layers.items()}
        if self.family == "pooled":
            pooled: dict[Slot, Array] = {}
            for at, found in slots.items():
                for slot, capacity in found.items():
                    pooled[slot] = pooled.get(slot, np.zeros(())) + self.depth(slot)[at] * capacity / self.n_layers
            total = self.pooled_value(pooled)
        else:
            total = sum((self.layer_value(at, found) for at, found in slots.items()), np.zeros(()))
        stored = sum(count_placement(placement, self.anatomy) for placement in architecture.placements)
        return float(self.saturated(total - self.price * stored, learning_rate))

    # ---- parts, for arrays of many configurations as well as for one

    def capacities(self, placements: Iterable[Placement], learning_rate: float) -> dict[Slot, Array]:
        """Slot → capacity () of the placements of one layer, before depth."""
        found: dict[Slot, float] = {}
        for p in placements:
            slot = slot_of(p.module, p.role)
            found[slot] = found.get(slot, 0.0) + self._capacity(p.module, p.role, p.size, p.options, learning_rate)
        return {slot: np.asarray(value) for slot, value in found.items()}

    def depth(self, slot: Slot) -> Array:
        """Worth `(layers,)` of the slot by layer, 1 on average."""
        key = ("depth", slot)
        if key not in self._memo:
            module, sublayer = slot
            x = np.linspace(-1, 1, self.n_layers)
            common, own = self._stream("depth", sublayer), self._stream("depth", sublayer, module)
            slope = common.uniform(-0.2, 1.0) + own.normal(0, 0.25)
            bump, centre = common.normal(0, 0.4), common.uniform(-0.6, 0.6)
            curve = slope * x + bump * np.exp(-(((x - centre) / 0.4) ** 2))
            if self.family == "patchy":
                curve = curve + common.normal(0, 0.5, self.n_layers) + own.normal(0, 0.25, self.n_layers)
            weights = np.exp(curve)
            self._memo[key] = weights / weights.mean()
        return np.asarray(self._memo[key])

    def layer_value(self, at: int, slots: Capacities) -> Array:
        """What the layer at position `at` adds; slots hold arrays that broadcast against each other."""
        weighted = {slot: self.depth(slot)[at] * capacity for slot, capacity in slots.items()}
        total: Array = np.zeros(())
        joined: dict[str, Array] = {}
        for sublayer in sorted({sublayer for _, sublayer in weighted}):
            here = [capacity for (_, other), capacity in weighted.items() if other == sublayer]
            powers: Array = np.zeros(())
            for capacity in here:
                powers = powers + capacity**self._overlap
            joined[sublayer] = powers ** (1 / self._overlap) if len(here) > 1 else here[0]
            total = total + joined[sublayer]
        if {"attn", "ffn"} <= set(joined):
            total = total + self._mutual * np.sqrt(joined["attn"] * joined["ffn"])
        serial, parallel = weighted.get(("serial", "ffn")), weighted.get(("parallel", "ffn"))
        if serial is not None and parallel is not None:
            total = total - self._rivalry * np.minimum(serial, parallel)
        return np.asarray(total / self.n_layers)

    def pooled_value(self, pooled: Capacities) -> Array:
        """Value of capacities averaged over the layers, by slot; arrays that broadcast against each other."""
        total: Array = np.zeros(())
        for slot, capacity in pooled.items():
            limit = self._limit(slot)
            total = total + limit * (1 - np.exp(-capacity / limit))
        roots = {slot: np.sqrt(capacity) for slot, capacity in pooled.items()}
        for one, other in combinations(sorted(roots), 2):
            total = total + self._affinity(one, other) * (roots[one] * roots[other])
        return np.asarray(total)

    def saturated(self, total: Array, learning_rate: float) -> Array:
        """The raw value of a sum: monotone in it at a fixed learning rate."""
        alive = 1 / (1 + math.exp(min(50.0, (math.log(learning_rate) - self._cliff) / 0.15)))
        return np.asarray(1 - np.exp(-np.maximum(total * alive, -1.0) / self._half))

    @cached_property
    def n_layers(self) -> int:
        return self.anatomy.n_layers

    @cached_property
    def price(self) -> float:
        """Of one stored parameter."""
        per_half_percent = self._stream("price").uniform(0.0, 0.12)
        return float(per_half_percent / (0.005 * self.anatomy.n_parameters))

    # ---- drawn constants

    def _capacity(
        self, module: str, role: str, size: int, options: tuple[tuple[str, Scalar], ...], learning_rate: float
    ) -> float:
        key = (module, role, size, options)
        if key not in self._memo:
            worth, at_most, bend = self._growth(module)
            faster, wider, factor = 0.0, 1.0, 1.0
            for name, value in options:
                option = self._option(module, name, value)
                faster, wider, factor = faster + option[0], wider * option[1], factor * option[2]
            grown = 1 - math.exp(-((size / at_most) ** bend))
            optimum, width = self._tempo(module)
            self._memo[key] = worth * self._site(module, role) * grown * factor, optimum + faster, width * wider
        height, optimum, width = self._memo[key]
        return float(height * math.exp(-0.5 * ((math.log(learning_rate) - optimum) / width) ** 2))

    def _growth(self, module: str) -> tuple[float, float, float]:
        worth, at_most = _WORTH.get(module, _OTHER_KIND)
        rng = self._stream("growth", module)
        worth *= math.exp(rng.normal(0, 0.35))
        at_most *= math.exp(rng.normal(0, 0.5))
        bend = rng.uniform(0.6, 1.0)
        if self.family == "patchy" and rng.random() < 0.3:
            worth *= 0.3
        return float(worth), float(at_most), float(bend)

    def _site(self, module: str, role: str) -> float:
        """Worth of a site for a kind: LoRA's sites add up to about twice that of an adapter at all of them."""
        usual = {"attn.q": 0.4, "attn.k": 0.2, "attn.v": 0.6, "attn.qkv": 0.9, "attn.o": 0.4, "ffn.out": 0.4}
        rng = self._stream("site", module, role)
        if "." in role:
            return float(usual.get(role, 0.3) * math.exp(rng.normal(0, 0.3)))
        return float((0.8 if role == "attn" else 1.0) * math.exp(rng.normal(0, 0.25)))

    def _option(self, module: str, name: str, value: Scalar) -> tuple[float, float, float]:
        """(shift of the best log learning rate, factor of its width, factor of the capacity)."""
        if name in {"scale", "alpha"} and not isinstance(value, str):
            usual = float(MODULES[module].options[name].default)
            octaves = math.log2(float(value) / usual)
            best = self._stream("option", module, name).uniform(-0.5, 2.0)
            gain = math.exp(-0.5 * ((octaves - best) / 2) ** 2 + 0.5 * (best / 2) ** 2)
            return -0.3 * octaves * math.log(2), 1.0, gain
        rng = self._stream("option", module, name, value)
        return float(rng.normal(0, 0.1)), 1.2 if name == "gate" else 1.0, float(math.exp(rng.normal(0, 0.08)))

    def _tempo(self, module: str) -> tuple[float, float]:
        """Natural logarithm of the best learning rate of a kind, and how far from it a kind still learns."""
        rng = self._stream("tempo", module)
        return self._pace + _FASTER.get(module, 0.0) + float(rng.normal(0, 0.35)), float(rng.uniform(0.8, 1.3))

    def _limit(self, slot: Slot) -> float:
        key = ("limit", slot)
        if key not in self._memo:
            self._memo[key] = float(self._stream("limit", *slot).uniform(0.3, 1.0))
        return float(self._memo[key])

    def _affinity(self, one: Slot, other: Slot) -> float:
        key = ("affinity", one, other)
        if key not in self._memo:
            self._memo[key] = float(self._stream("affinity", *one, *other).normal(0.0, 0.2))
        return float(self._memo[key])

    @cached_property
    def _pace(self) -> float:
        return float(math.log(10) * self._stream("pace").uniform(-3.1, -2.6))

    @cached_property
    def _cliff(self) -> float:
        return self._pace + float(self._stream("cliff").uniform(1.2, 2.2))

    @cached_property
    def _overlap(self) -> float:
        return float(self._stream("overlap").uniform(1.1, 2.2))

    @cached_property
    def _mutual(self) -> float:
        return float(self._stream("mutual").uniform(-0.2, 0.6))

    @cached_property
    def _rivalry(self) -> float:
        return float(self._stream("rivalry").uniform(0.0, 0.6))

    @cached_property
    def _half(self) -> float:
        return float(self._stream("half").uniform(0.8, 2.5))

    @cached_property
    def _positions(self) -> dict[tuple[str, int], int]:
        return {(stack, index): at for at, (stack, index, _) in enumerate(self.anatomy.layers)}

    def _stream(self, *key: object) -> np.random.Generator:
        return stream("surface", self.family, self.seed, *key)
