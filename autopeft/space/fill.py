"""Filling a budget: sizes are not chosen but follow from what may be spent (S4's protocol of a fixed total).

Every layer gets parameters in proportion to its weight, shared evenly by the modules that are to be filled in it. The
common factor is the largest whose total stays within the budget; every size is at least 1.
"""

import heapq
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_MARGIN = 1e-9
"""Relative; far above the rounding of floats and far below one parameter."""


class Block(NamedTuple):
    """Placements that get the same size, since they may spend as much and cost as much; each of them:"""

    share: float
    """Weight of its layer, divided by the modules that are to be filled in the layer."""
    stored: int
    """Parameters at size 1."""
    step: int
    """Parameters that each further size adds."""
    trained: int
    trained_step: int


def fill_sizes(blocks: Mapping[Block, int], stored: int, trained: int | None = None) -> dict[Block, int]:
    """The size of each block, given how many placements it has.

    Together they store at most `stored` parameters and train at most `trained`. If even size 1 everywhere is too much,
    that is what comes back: the point is infeasible, and its count says so.
    """
    found, numbers = list(blocks), list(blocks.values())
    # A placement grows by its k-th step where factor · share reaches stored + k · step. Up to `start` all steps fit.
    start = _relaxed([(n, b.share, b.stored, b.step, b.stored, b.step) for b, n in blocks.items()], stored)
    left, more = stored, 0
    if trained is not None:
        rows = [(n, b.share, b.stored, b.step, b.trained, b.trained_step) for b, n in blocks.items()]
        start, more = min(start, _relaxed(rows, trained)), trained
    start *= 1 - _MARGIN
    steps = [max(0, int((start * b.share - b.stored) / b.step)) for b in found]
    for b, n, k in zip(found, numbers, steps, strict=True):
        left -= n * (b.stored + k * b.step)
        more -= n * (b.trained + k * b.trained_step)
    is_bound = trained is not None
    coming = [((b.stored + (k + 1) * b.step) / b.share, i) for i, (b, k) in enumerate(zip(found, steps, strict=True))]
    heapq.heapify(coming)
    while left >= 0 and (more >= 0 or not is_bound):
        factor, taken = coming[0][0], list[int]()
        while coming and coming[0][0] == factor:  # blocks that grow at the same factor grow together or not at all
            i = heapq.heappop(coming)[1]
            taken.append(i)
            left -= numbers[i] * found[i].step
            more -= numbers[i] * found[i].trained_step
        if left < 0 or (is_bound and more < 0):
            break
        for i in taken:
            steps[i] += 1
            b = found[i]
            heapq.heappush(coming, ((b.stored + (steps[i] + 1) * b.step) / b.share, i))
    return {b: 1 + k for b, k in zip(found, steps, strict=True)}


def _relaxed(rows: Sequence[tuple[int, float, int, int, int, int]], amount: int) -> float:
    """A factor whose total is at most `amount`, near the largest: where sizes need not be whole, the total is `amount`.

    A row is (placements, share, stored parameters and step that growth goes by, parameters and step that count).
    """
    growing = [row for row in rows if row[5]]
    left: float = amount - sum(n * cost for n, _, _, _, cost, _ in rows)
    if left <= 0 or not growing:
        return 0.0 if left <= 0 else float("inf")
    while True:
        slope = sum(n * share * add / step for n, share, _, step, _, add in growing)
        factor = (left + sum(n * first * add / step for n, _, first, step, _, add in growing)) / slope
        kept = [row for row in growing if factor * row[1] > row[2]]
        if len(kept) == len(growing):
            return factor
        growing = kept
