"""What frozen modules of a model gave for the rows of a task, kept for all trials within a bound of memory.

An entry is one tensor that one module gave, for all rows of the splits that trials read again and again. It is stored
without padding, so that it fits batches of any composition. What does not fit makes the entry go that was not used for
the longest time: whether an entry was still there or is made anew changes the time of a trial, and no number in it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autopeft.engine.activation_stores import Entry, Shapes, Store
from autopeft.engine.batches import Batch, Per, TokenisedSplit


@dataclass(frozen=True)
class Key:
    """One output of one module of the base model."""

    module: str
    """Its name in the model without adapters."""
    leaf: int
    """Which of its outputs, counted flat."""
    per: Per
    """What there is a vector for."""


@dataclass(frozen=True)
class Kept:
    """The shape and the number format of what a key stands for."""

    key: Key
    shape: tuple[int, ...]
    """Of the value of one token or one row."""
    dtype: torch.dtype
    """In which the model computes it."""


Fill = Callable[[Mapping[Kept, Entry]], None]
"""Computes entries and writes them where it is told, see `write`."""


class ActivationCache:
    """Values by key and split.

    `share` bytes is the most that one trial may use, `capacity` what all workers may that have this store.
    Floating point numbers are stored in `dtype`; None: as the model computes them.
    """

    def __init__(
        self,
        splits: Mapping[str, TokenisedSplit],
        store: Store,
        share: int,
        capacity: int,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._splits = splits
        self._store = store
        self.share = share
        self._capacity = capacity
        self._dtype = dtype
        self._entries: dict[Kept, Entry] = {}

    def fits(self, wanted: Iterable[Kept]) -> bool:
        """Whether one trial may use all of `wanted`."""
        return sum(map(self._size, wanted)) <= self.share

    def provide(self, wanted: Sequence[Kept], fill: Fill) -> None:
        """Make `wanted` ready to be read, all else not; what is missing is filled, once for all workers.

        Raises:
            OSError: the files of the store cannot be written.
        """
        store = self._store
        self._entries = {}
        with store.locked():
            store.use(map(self._name, wanted))
            self._look(wanted)
        if len(self._entries) == len(wanted):
            return
        with store.filling():
            with store.locked():
                self._look(wanted)
                missing = [kept for kept in wanted if kept not in self._entries]
                self._make_room(sum(map(self._size, missing)))
                new = {kept: store.new(self._name(kept), self._shapes(kept)) for kept in missing}
            for kept, entry in new.items():
                if kept.key.per != "row":
                    for tensor in entry.values():
                        tensor[-1] = 0  # for padding
            if new:
                fill(new)
            with store.locked():
                for kept, entry in new.items():
                    store.put(self._name(kept), entry)
        self._entries |= new

    def read(self, kept: Kept, split: str, batch: Batch) -> Tensor:
        """The values of a batch of a split, `(S, T, *shape)` with zeros for padding, or `(S, *shape)`."""
        stored = self._entries[kept][split]
        if kept.key.per == "row":
            return stored.index_select(0, batch.sequences).to(kept.dtype)
        places = batch.places_of(kept.key.per)
        return stored.index_select(0, places.flatten()).view(*places.shape, *kept.shape).to(kept.dtype)

    def _look(self, wanted: Iterable[Kept]) -> None:
        found = {kept: self._store.get(self._name(kept), self._shapes(kept)) for kept in wanted}
        self._entries |= {kept: entry for kept, entry in found.items() if entry is not None}

    def _make_room(self, needed: int) -> None:
        for name in self._store.droppable():
            if self._store.n_bytes + needed <= self._capacity:
                return
            self._store.drop(name)

    def _name(self, kept: Kept) -> str:
        return f"{kept.key.module}/{kept.key.leaf}/{kept.key.per}/{self._dtype or kept.dtype}"

    def _shapes(self, kept: Kept) -> Shapes:
        dtype = self._dtype or kept.dtype
        return {name: ((self._n(kept, split), *kept.shape), dtype) for name, split in self._splits.items()}

    def _n(self, kept: Kept, split: TokenisedSplit) -> int:
        """Vectors of an entry: one for padding stands behind those of the tokens."""
        return split.n_sequences if kept.key.per == "row" else split.n_places(kept.key.per) + 1

    def _size(self, kept: Kept) -> int:
        return sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in self._shapes(kept).values())


def write(stored: Tensor, kept: Kept, batch: Batch, values: Tensor) -> None:
    """Put the values of a batch, padding left out, where `ActivationCache.read` looks for them."""
    if kept.key.per == "row":
        stored[batch.sequences] = values.to(stored.dtype)
    else:
        is_there = batch.is_there(kept.key.per)
        assert is_there is not None
        stored[batch.places_of(kept.key.per)[is_there]] = values[is_there].to(stored.dtype)
