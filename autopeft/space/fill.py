"""Filling a budget: sizes are not chosen but follow from what may be spent (S4's protocol of a fixed total).

Every layer gets parameters in proportion to its weight, shared evenly by the modules that are to be filled in it. The
common factor is the largest whose total stays within the budget; every size is at least 1.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from autopeft.space.anatomy import Anatomy
from autopeft.space.architecture import Placement
from autopeft.space.counting import count_placement

_STEPS = 60
"""Halvings of the factor's interval: exact far below one parameter."""


def fill_budget(
    to_fill: Sequence[Placement],
    fixed: Sequence[Placement],
    weights: Mapping[tuple[str, int], float],
    anatomy: Anatomy,
    budget: int,
) -> list[Placement]:
    """`to_fill` with sizes, such that they and `fixed` together store at most `budget` parameters.

    If even size 1 everywhere is too much, that is what comes back: the point is infeasible, and its count says so.
    """
    spent = sum(count_placement(p, anatomy) for p in fixed)
    base = [count_placement(p, anatomy) for p in to_fill]
    step = [count_placement(replace(p, size=2), anatomy) - first for p, first in zip(to_fill, base, strict=True)]
    sharing = Counter((p.stack, p.layer) for p in to_fill)
    shares = [weights[p.stack, p.layer] / sharing[p.stack, p.layer] for p in to_fill]

    def sizes(factor: float) -> list[int]:
        return [
            1 + max(0, int((factor * share - first) / more))
            for share, first, more in zip(shares, base, step, strict=True)
        ]

    def total(chosen: Sequence[int]) -> int:
        return spent + sum(b + (n - 1) * s for n, b, s in zip(chosen, base, step, strict=True))

    low, high = 0.0, float(budget) * len(to_fill) / min(shares)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if total(sizes(middle)) <= budget else (low, middle)
    return [replace(p, size=size) for p, size in zip(to_fill, sizes(low), strict=True)]
