"""Steps are made of smaller parts where they do not fit into the memory, or where parts of like length take less time.

A step's loss is the sum of all its losses over their number, whatever parts they are computed in; gradients of the
parts add up to that of the whole. So batch size, order, schedule and loss stay what they are, and numbers differ by
rounding alone. Dropout within the adapters is the exception: parts draw other masks than the whole would.

What did not fit in one trial is not tried again in the next ones of the worker.
"""

import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from autopeft.engine.batches import Batch, TokenisedSplit
from autopeft.engine.causes import is_out_of_memory
from autopeft.engine.fitting import Fitting, learned

T = TypeVar("T")


class StepTooLargeError(Exception):
    """A part of a training step does not fit into the memory."""


@dataclass(frozen=True)
class Cut:
    """How a step's batch is cut into parts."""

    rows: int
    """Of a part, at most."""
    pass_tokens: float = math.inf
    """The tokens that must go for one more pass to be worth it; with infinitely many, lengths cut no batch."""

    def parts(self, split: TokenisedSplit, batch: Batch) -> Iterator[Batch]:
        """The batch of `split` in parts, the longest rows first; as it is where there is one."""
        sizes = cheapest_sizes(split.lengths[batch.rows], self.pass_tokens / split.per_row)
        if len(sizes) == 1 and sizes[0] <= self.rows:
            yield batch
            return
        rows = batch.rows
        if len(sizes) > 1:
            rows = rows[split.lengths[rows].argsort(descending=True, stable=True)]
        for part in rows.split(sizes):
            for some in part.split(self.rows):
                yield split.batch(some)


def cheapest_sizes(lengths: Tensor, per_part: float) -> list[int]:
    """How many rows of these `lengths (B,)`, sorted from the longest, go into each part so that all takes least time.

    A part takes the time of its rows, padded to its longest, and that of `per_part` tokens besides.
    """
    longest = int(lengths.max())
    if longest * len(lengths) - int(lengths.sum()) <= per_part:
        return [len(lengths)]
    different, counts = np.unique(lengths.numpy(), return_counts=True)  # rows of one length are not parted
    upto = np.concatenate([[0], counts.cumsum()])  # shortest first
    costs, begins = np.zeros(len(upto)), np.zeros(len(upto), dtype=np.int64)
    for end in range(1, len(upto)):
        of_last = costs[:end] + (upto[end] - upto[:end]) * different[end - 1] + per_part
        begins[end] = of_last.argmin()
        costs[end] = of_last[begins[end]]
    sizes, end = list[int](), len(different)
    while end:
        sizes.append(int(upto[end] - upto[begins[end]]))
        end = int(begins[end])
    return sizes


def backward(
    split: TokenisedSplit, batch: Batch, cut: Cut, weight: Tensor, losses_of: Callable[[Tensor, Batch], Tensor]
) -> Fitting[Tensor]:
    """Add the gradients of a batch of `split` up, part by part; the sum of its losses.

    `losses_of` gives the sum of the losses of a part's outputs, `weight` is the number of all losses.

    Raises:
        StepTooLargeError: a part wants more memory than there is.
    """

    def told(part: Batch, outputs: Tensor) -> tuple[Tensor, Tensor]:
        losses = losses_of(outputs, part)
        return losses / weight, losses

    total: Tensor | None = None
    try:
        for part in cut.parts(split, batch):
            _, losses = yield from learned(part, partial(told, part))
            total = losses if total is None else total + losses
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        problem = str(error).strip().partition("\n")[0] or type(error).__name__
    else:
        assert total is not None
        return total
    raise StepTooLargeError(problem)  # here, where it holds on to none of the step's tensors


class MemoryFit:
    """How many rows at a time one worker trains and evaluates on; fewer, once more did not fit."""

    def __init__(self, micro_batch_size: int | None, eval_batch_size: int) -> None:
        self._rows, self._eval_rows = micro_batch_size, eval_batch_size

    def rows(self, batch_size: int) -> int:
        """Of a step's parts, at most."""
        return batch_size if self._rows is None else min(batch_size, self._rows)

    def trained(self, batch_size: int, attempt: Callable[[int], T]) -> T:
        """What `attempt(rows)` gives, begun anew with half the rows until they fit.

        Raises:
            MemoryError: a step does not fit row by row.
        """
        while True:
            rows = self.rows(batch_size)
            try:
                return attempt(rows)
            except StepTooLargeError as error:
                self.lessen(rows, error)
            _tidy()

    def lessen(self, rows: int, error: StepTooLargeError) -> None:
        """From now on at most half of these `rows`, which did not fit.

        Raises:
            MemoryError: it was one.
        """
        if rows == 1:
            raise MemoryError(f"a step does not fit into the memory, not even row by row: {error}") from None
        self._rows = self.rows((rows + 1) // 2)

    def evaluated(self, judge: Callable[[int], T]) -> T:
        """What `judge(rows)` gives, with half the rows until they fit; they have no influence on it.

        Raises:
            MemoryError: it does not fit row by row.
        """
        while True:
            try:
                return judge(self._eval_rows)
            except Exception as error:
                if not is_out_of_memory(error) or self._eval_rows == 1:
                    raise
            self._eval_rows = (self._eval_rows + 1) // 2
            _tidy()


def told_once(on_epoch: "Callable[[T], None]", epoch_of: Callable[[T], int]) -> "Callable[[T], None]":
    """`on_epoch` for records of epochs that it was not called for: those of a repeated attempt are the same."""
    last = 0

    def tell(record: T) -> None:
        nonlocal last
        if epoch_of(record) > last:
            last = epoch_of(record)
            on_epoch(record)

    return tell


def _tidy() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
