"""Layer groups as in S4 (Chen et al. 2023): the layers of a stack cut into consecutive groups, by a named pattern.

A pattern fixes how many layers each group has relative to the others; the groups cover all layers, in order.
"""

from collections.abc import Callable, Mapping, Sequence

from autopeft.space.anatomy import Anatomy

# Relative number of layers of group i of n (i from 0).
_WEIGHTS: Mapping[str, Callable[[int, int], int]] = {
    "uniform": lambda i, n: 1,
    "increasing": lambda i, n: i + 1,
    "decreasing": lambda i, n: n - i,
    "spindle": lambda i, n: min(i, n - 1 - i) + 1,
    "bottleneck": lambda i, n: (n + 1) // 2 - min(i, n - 1 - i),
}
PATTERNS = tuple(_WEIGHTS)

# Relative parameters of layer i of n when a budget is filled (S4's allocation over layers).
_ALLOCATIONS: Mapping[str, Callable[[int, int], int]] = {
    name: _WEIGHTS[name] for name in ("uniform", "increasing", "decreasing")
}
ALLOCATIONS = tuple(_ALLOCATIONS)


def group_sizes(n_layers: int, n_groups: int, pattern: str) -> tuple[int, ...]:
    """Layers in each group: at least one, in proportion to the pattern (largest remainders, the first of equals).

    With fewer layers than groups there are only `n_layers` groups.
    """
    n = min(n_groups, n_layers)
    weights = [_WEIGHTS[pattern](i, n) for i in range(n)]
    spare = n_layers - n
    shares = [_beyond_one(weight, sum(weights), n_layers) for weight in weights]
    sizes = [1 + int(share) for share in shares]
    for i in sorted(range(n), key=lambda i: (int(shares[i]) - shares[i], i))[: spare - sum(s - 1 for s in sizes)]:
        sizes[i] += 1
    while sum(sizes) > n_layers:  # groups lifted to one layer take from the largest
        sizes[sizes.index(max(sizes))] -= 1
    return tuple(sizes)


def _beyond_one(weight: int, total: int, n_layers: int) -> float:
    """A group's share of the layers beyond the one it has in any case."""
    return max(0.0, weight * n_layers / total - 1)


def group_of_layers(anatomy: Anatomy, n_groups: int, pattern: str) -> dict[tuple[str, int], int]:
    """(stack, layer) → group, from 1; each stack is cut on its own, group i of every stack has the same settings."""
    groups: dict[tuple[str, int], int] = {}
    for stack in anatomy.stacks:
        layer = 0
        for group, size in enumerate(group_sizes(len(stack.layers), n_groups, pattern), start=1):
            for index in range(layer, layer + size):
                groups[stack.name, index] = group
            layer += size
    return groups


def layer_weights(anatomy: Anatomy, allocation: str) -> dict[tuple[str, int], float]:
    """(stack, layer) → its relative share of the parameters when a budget is filled."""
    n = anatomy.n_layers
    return {
        (stack, index): float(_ALLOCATIONS[allocation](position, n))
        for position, (stack, index, _) in enumerate(anatomy.layers)
    }


def groups_of_lists(anatomy: Anatomy, lists: Sequence[Sequence[int]]) -> dict[tuple[str, int], int]:
    """(stack, layer) → group, from 1, of groups that are written out; layers that are in none are left out."""
    return {
        (stack.name, index): group
        for group, layers in enumerate(lists, start=1)
        for stack in anatomy.stacks
        for index in layers
        if index < len(stack.layers)
    }
