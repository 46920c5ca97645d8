"""What frozen modules of a model gave for the rows of a task, kept for all trials of a worker within a bound of memory.

An entry is one tensor that one module gave, for all rows of the splits that trials read again and again. It is stored
without padding, so that it fits batches of any composition. What does not fit makes the entry that was not used for the
longest time go: whether an entry was still there or is made anew changes the time of a trial, and no number in it.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from autopeft.engine.batches import Batch, TokenisedSplit


@dataclass(frozen=True)
class Key:
    """One output of one module of the base model."""

    module: str
    """Its name in the model without adapters."""
    leaf: int
    """Which of its outputs, counted flat."""
    per: Literal["token", "row"]
    """Whether there is a vector for each token, or one for each row."""


@dataclass(frozen=True)
class Kept:
    """The shape and the number format of what a key stands for."""

    key: Key
    shape: tuple[int, ...]
    """Of the value of one token or one row."""
    dtype: torch.dtype
    """In which the model computes it."""


class ActivationCache:
    """Values by key and split: at most `capacity` bytes, stored in `dtype`; None: as the model computes them."""

    def __init__(
        self,
        splits: Mapping[str, TokenisedSplit],
        capacity: int,
        device: torch.device,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._splits = splits
        self.capacity = capacity
        self._device = device
        self._dtype = dtype
        self._entries: OrderedDict[Key, dict[str, Tensor]] = OrderedDict()

    @property
    def n_bytes(self) -> int:
        """In use now."""
        return sum(tensor.nbytes for entry in self._entries.values() for tensor in entry.values())

    def fits(self, wanted: Iterable[Kept]) -> bool:
        """Whether all of `wanted` can be there at a time."""
        return sum(map(self._size, wanted)) <= self.capacity

    def missing(self, wanted: Iterable[Kept]) -> tuple[Kept, ...]:
        """Those of `wanted` that are not there."""
        return tuple(kept for kept in wanted if kept.key not in self._entries)

    def make_room(self, wanted: Iterable[Kept]) -> None:
        """Let others go until what is missing of `wanted` fits; those of `wanted` that are there stay."""
        wanted = tuple(wanted)
        for kept in wanted:
            if kept.key in self._entries:
                self._entries.move_to_end(kept.key)
        needed = sum(map(self._size, self.missing(wanted)))
        mine = {kept.key for kept in wanted}
        for key in [key for key in self._entries if key not in mine]:
            if self.n_bytes + needed <= self.capacity:
                return
            del self._entries[key]

    def empty(self, kept: Kept) -> dict[str, Tensor]:
        """Tensors for an entry, by split; the last row of those with a value for each token is zero, for padding."""
        made = {}
        for name, split in self._splits.items():
            n = len(split.tokens) + 1 if kept.key.per == "token" else len(split)
            made[name] = torch.empty((n, *kept.shape), dtype=self._dtype or kept.dtype, device=self._device)
            if kept.key.per == "token":
                made[name][-1] = 0
        return made

    def put(self, kept: Kept, entry: dict[str, Tensor]) -> None:
        """Keep a filled entry."""
        self._entries[kept.key] = entry

    def read(self, kept: Kept, split: str, batch: Batch) -> Tensor:
        """The values of a batch of a split, `(B, T, *shape)` with zeros for padding, or `(B, *shape)`."""
        stored = self._entries[kept.key][split]
        if kept.key.per == "row":
            return stored.index_select(0, batch.rows).to(kept.dtype)
        B, T = batch.input_ids.shape
        return stored.index_select(0, batch.places.view(-1)).view(B, T, *kept.shape).to(kept.dtype)

    def _size(self, kept: Kept) -> int:
        n = sum(len(s.tokens) + 1 if kept.key.per == "token" else len(s) for s in self._splits.values())
        return n * (self._dtype or kept.dtype).itemsize * int(torch.Size(kept.shape).numel())


def write(stored: Tensor, kept: Kept, batch: Batch, values: Tensor) -> None:
    """Put the values of a batch, padding left out, where `ActivationCache.read` looks for them."""
    if kept.key.per == "row":
        stored[batch.rows] = values.to(stored.dtype)
    else:
        is_token = batch.attention_mask.bool()
        stored[batch.places[is_token]] = values[is_token].to(stored.dtype)
