"""Whose rows a tensor holds, where several adapters share a forward pass.

Every member brings its own rows; they stand one after the other along the first axis. Where a module computes some
members only (others begin later), the others' rows are left out within it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree


class Rows:
    """The rows of a forward pass: how many each member has, and which members are present now."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        """Rows of each member in this pass, in the order in which they stand."""
        self.present: tuple[int, ...] = ()

    def begin(self, sizes: dict[int, int]) -> None:
        """A forward pass with so many rows of each member."""
        self.sizes, self.present = sizes, tuple(sizes)

    @property
    def n(self) -> int:
        """Rows of all that are present."""
        return sum(self.sizes[member] for member in self.present)

    @property
    def are_even(self) -> bool:
        """Whether all present members have as many rows."""
        return len({self.sizes[member] for member in self.present}) == 1

    @contextmanager
    def only(self, members: tuple[int, ...]) -> Iterator[None]:
        """Within it, these members alone are present."""
        before, self.present = self.present, members
        try:
            yield
        finally:
            self.present = before

    def spans(self, present: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Where each member's rows begin, and how many there are, in a tensor of the `present` ones."""
        found, start = {}, 0
        for member in present:
            found[member] = start, self.sizes[member]
            start += self.sizes[member]
        return found

    def narrow(self, value: Tensor, members: Sequence[int], present: Sequence[int] | None = None) -> Tensor:
        """The rows of `members` in a tensor that holds those of `present`, by default of all that are present now."""
        present = self.present if present is None else present
        if tuple(members) == tuple(present):
            return value
        spans = self.spans(present)
        runs: list[tuple[int, int]] = []
        for member in members:
            start, n = spans[member]
            if runs and sum(runs[-1]) == start:
                runs[-1] = runs[-1][0], runs[-1][1] + n
            else:
                runs.append((start, n))
        pieces = [value.narrow(0, start, n) for start, n in runs]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def narrowed(self, arguments: Any, members: Sequence[int]) -> Any:
        """`narrow` of every tensor with a row for each row that is present, however nested; all else as it is."""
        n, narrow = self.n, self.narrow

        def of_rows(value: Any) -> Any:
            has_rows = isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == n
            return narrow(value, members) if has_rows else value

        return _pytree.tree_map(of_rows, arguments)


class Pieces:
    """A tensor, whole or in the pieces of the present members: each form is made when it is asked for."""

    def __init__(self, rows: Rows, whole: Tensor) -> None:
        self._rows = rows
        self._whole: Tensor | None = whole
        self._pieces: dict[int, Tensor] | None = None

    @property
    def whole(self) -> Tensor:
        if self._whole is None:
            assert self._pieces is not None
            pieces = list(self._pieces.values())
            self._whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return self._whole

    @whole.setter
    def whole(self, value: Tensor) -> None:
        self._whole, self._pieces = value, None

    def __getitem__(self, member: int) -> Tensor:
        return self._split()[member]

    def __setitem__(self, member: int, value: Tensor) -> None:
        self._split()[member] = value
        self._whole = None

    def _split(self) -> dict[int, Tensor]:
        if self._pieces is None:
            assert self._whole is not None
            # Some models flatten rows and tokens into one axis before a linear map.
            share, left = divmod(self._whole.shape[0], self._rows.n)
            if left or not share:
                raise ValueError(
                    f"{self._whole.shape[0]} rows cannot be told apart as those of {self._rows.n} examples"
                )
            spans = self._rows.spans(self._rows.present)
            self._pieces = {m: self._whole.narrow(0, start * share, n * share) for m, (start, n) in spans.items()}
        return self._pieces


def together(function: Callable[[int], Any], members: Sequence[int]) -> Any:
    """What `function` gives for each member, tensors one after the other; of all else what the first one has."""
    results = [function(member) for member in members]
    if len(results) == 1:
        return results[0]
    leaves, structure = zip(*map(_pytree.tree_flatten, results), strict=True)
    joined = [torch.cat(same) if isinstance(same[0], Tensor) else same[0] for same in zip(*leaves, strict=True)]
    return _pytree.tree_unflatten(joined, structure[0])
