"""The best architecture of a surface where a space has one setting for the model and a switch for every layer."""

from itertools import product

import numpy as np

from autopeft.bench.found import Found
from autopeft.bench.surface import DEFAULT_LEARNING_RATE, Array, Slot, Surface
from autopeft.space.architecture import Placement
from autopeft.space.counting import count_placement
from autopeft.space.modules import Scalar
from autopeft.space.parameters import Choices
from autopeft.space.search_space import SearchSpace

_MOST_LAYERS = 14
"""Of a pooled surface: all sets of layers are tried."""


def best_of_masks(space: SearchSpace, surface: Surface) -> Found:
    """The best valid point: all settings are tried, each with its best set of layers.

    Where layers add up, the best set of k layers is that of the k largest values. On a pooled surface all sets are
    tried, which restricts it to models of few layers.

    Raises:
        ValueError: a pooled surface on a model of more than 14 layers.
    """
    assert space.budget is not None
    n = surface.n_layers
    switches = [p.name for p in space.parameters if p.name.startswith("layer.")]
    sizes = [p for p in space.parameters if p.name not in switches]
    only_first: dict[str, Scalar] = {name: at == 0 for at, name in enumerate(switches)}
    settings: list[dict[str, Scalar]] = []
    placed: list[tuple[Placement, ...]] = []
    for values in product(*(p.domain.values for p in sizes if isinstance(p.domain, Choices))):
        given = dict(zip((p.name for p in sizes), values, strict=True))
        settings.append(given)
        placed.append(space.build(space.canonical(only_first | given)).placements)
    costs = np.array([sum(count_placement(p, surface.anatomy) for p in found) for found in placed])
    most = np.where(costs > 0, space.budget // np.maximum(costs, 1), 0)
    capacities = _capacities(surface, placed)
    if surface.family == "pooled":
        if n > _MOST_LAYERS:
            raise ValueError(f"a pooled surface on {n} layers has too many sets of layers to try them all")
        masks = np.array(list(product((False, True), repeat=n)))
        pooled = {
            slot: (masks @ surface.depth(slot))[:, None] / n * capacity[None, :]
            for slot, capacity in capacities.items()
        }
        n_on = masks.sum(axis=1)
        total = surface.pooled_value(pooled) - surface.price * n_on[:, None] * costs[None, :]
        total[(n_on[:, None] > most[None, :]) | (n_on[:, None] * costs[None, :] == 0)] = -np.inf
        which, at = divmod(int(np.argmax(total)), len(costs))
        mask, value = masks[which], total[which, at]
        method = "exact: all settings with all sets of layers"
    else:
        layers = np.stack([surface.layer_value(i, capacities) - surface.price * costs for i in range(n)])
        order = np.argsort(-layers, axis=0)
        chosen = np.take_along_axis(layers, order, axis=0)
        wanted = (np.arange(n)[:, None] < most[None, :]) & ((chosen > 0) | (np.arange(n)[:, None] == 0))
        sums = np.where(most > 0, np.where(wanted, chosen, 0).sum(axis=0), -np.inf)
        at = int(np.argmax(sums))
        mask = np.zeros(n, dtype=bool)
        mask[order[wanted[:, at], at]] = True
        value = sums[at]
        method = "exact: all settings, each with its best set of layers"
    params = space.canonical(settings[int(at)] | {name: bool(on) for name, on in zip(switches, mask, strict=True)})
    return Found(params, float(surface.saturated(np.asarray(value), DEFAULT_LEARNING_RATE)), method)


def _capacities(surface: Surface, placed: list[tuple[Placement, ...]]) -> dict[Slot, Array]:
    """Slot → capacity of every setting `(settings,)` in one layer."""
    values = [surface.capacities(found, DEFAULT_LEARNING_RATE) for found in placed]
    slots = sorted({slot for value in values for slot in value})
    return {slot: np.array([float(value.get(slot, 0.0)) for value in values]) for slot in slots}
