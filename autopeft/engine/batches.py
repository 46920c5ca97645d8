"""Rows tokenised once and kept ragged, in batches of like length that are padded to their own longest row.

Training order: a permutation is cut into mega-batches, each is sorted by length and cut into batches, and these are
shuffled. The order depends on lengths, batch size, seed and epoch alone, so that trials with one seed see the same
batches and a resumed trial goes on with those it would have had. Evaluation goes through all rows by length, and its
results come back in the order of the rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autopeft.engine.splits import Split

__all__ = [
    "Batch",
    "TokenisedSplit",
    "evaluate",
    "evaluation_batches",
    "tokenise",
    "training_batches",
    "training_order",
]

MEGA = 8
"""Batches that are sorted by length together: more make less padding, and batches that are less random."""

_CHUNK = 10_000
"""Rows tokenised at a time."""


@dataclass(frozen=True, slots=True)
class Batch:
    """`B` rows, padded on the right to the longest, `T` tokens."""

    rows: Tensor
    """Their positions in the split `(B,)`."""
    input_ids: Tensor
    """`(B, T)`"""
    attention_mask: Tensor
    """1 for tokens, 0 for padding `(B, T)`."""
    token_type_ids: Tensor | None
    """`(B, T)`; None where the tokenizer gives none, or zeros only, which is what models assume."""
    labels: Tensor
    """Class numbers (int64) or real numbers (float32) `(B,)`."""
    places: Tensor
    """Where each token stands among those of the split, `n_tokens` for padding `(B, T)`."""

    def to(self, device: torch.device | str) -> "Batch":
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        types = None if self.token_type_ids is None else move(self.token_type_ids)
        rows, ids, mask = move(self.rows), move(self.input_ids), move(self.attention_mask)
        return Batch(rows, ids, mask, types, move(self.labels), move(self.places))

    def model_inputs(self) -> dict[str, Tensor]:
        """The keyword arguments of a transformer's `forward`, without labels."""
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return inputs if self.token_type_ids is None else {**inputs, "token_type_ids": self.token_type_ids}


@dataclass(frozen=True, slots=True)
class TokenisedSplit:
    """`n` rows of different lengths, one after the other."""

    tokens: Tensor
    """Token ids of all rows `(n_tokens,)`, int32."""
    types: Tensor | None
    """Token type ids `(n_tokens,)`, uint8."""
    starts: Tensor
    """Where each row begins, and the end of the last `(n + 1,)`."""
    labels: Tensor
    """`(n,)`, int64 for classes, float32 for numbers."""
    pad_id: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row `(n,)`."""
        return self.starts.diff()

    def batch(self, rows: Tensor, multiple_of: int = 1) -> Batch:
        """The rows at positions `rows (B,)`; their common length is rounded up to a multiple."""
        lengths = self.lengths[rows]
        T = -(-int(lengths.max()) // multiple_of) * multiple_of
        place = torch.arange(T)
        is_token = place < lengths[:, None]  # (B, T)
        places = (self.starts[rows, None] + place).masked_fill_(~is_token, len(self.tokens))
        index = places.clamp(max=len(self.tokens) - 1)
        return Batch(
            rows=rows,
            input_ids=self.tokens[index].long().masked_fill_(~is_token, self.pad_id),
            attention_mask=is_token.long(),
            token_type_ids=None if self.types is None else self.types[index].long().masked_fill_(~is_token, 0),
            labels=self.labels[rows],
            places=places,
        )


def tokenise(split: Split, tokenizer: Any, max_length: int) -> TokenisedSplit:
    """Token ids of every row with the tokenizer's special tokens; of a pair too long, the longer text is cut first.

    A row without any token (an empty text, for tokenizers without special tokens) gets one, so that attention has
    something to look at.
    """
    pad_id = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    filler = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), pad_id)
    ids: list[list[int]] = []
    types: list[list[int]] = []
    for start in range(0, len(split), _CHUNK):
        texts = [list(column) for column in zip(*split.texts[start : start + _CHUNK], strict=True)]
        encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
        ids.extend(row or [filler] for row in encoded["input_ids"])
        types.extend(row or [0] for row in encoded.get("token_type_ids", []))
    lengths = torch.tensor([len(row) for row in ids], dtype=torch.int64)
    flat_types = _flat(types, np.uint8) if types else None
    is_real = any(isinstance(label, float) for label in split.labels)
    return TokenisedSplit(
        tokens=_flat(ids, np.int32),
        types=flat_types if flat_types is not None and bool(flat_types.any()) else None,
        starts=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        labels=torch.tensor(split.labels, dtype=torch.float32 if is_real else torch.int64),
        pad_id=pad_id,
    )


def training_order(lengths: Tensor, batch_size: int, seed: int, epoch: int, mega: int = MEGA) -> list[Tensor]:
    """Positions of the rows of each batch of an epoch; every row once, all batches full but one."""
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    length = lengths.numpy()
    batches: list[np.ndarray] = []
    for start in range(0, len(order), mega * batch_size):
        together = order[start : start + mega * batch_size]
        together = together[np.argsort(-length[together], kind="stable")]
        batches.extend(together[i : i + batch_size] for i in range(0, len(together), batch_size))
    return [torch.from_numpy(batches[i]) for i in rng.permutation(len(batches))]


def training_batches(
    split: TokenisedSplit, batch_size: int, seed: int, epoch: int, rows: Tensor, multiple_of: int = 1
) -> Iterator[Batch]:
    """The batches of one epoch over the rows at these positions, in the order of `training_order`."""
    for chosen in training_order(split.lengths[rows], batch_size, seed, epoch):
        yield split.batch(rows[chosen], multiple_of)


def evaluation_batches(split: TokenisedSplit, batch_size: int, multiple_of: int = 1) -> Iterator[Batch]:
    """All rows once, the longest first: if the memory is too small, that shows at once."""
    for rows in split.lengths.argsort(descending=True, stable=True).split(batch_size):
        yield split.batch(rows, multiple_of)


def evaluate(
    split: TokenisedSplit, batch_size: int, forward: Callable[[Batch], Tensor], multiple_of: int = 1
) -> Tensor:
    """What `forward` gives for each row `(B, ...)`, in the order of the rows `(n, ...)`, on the CPU."""
    rows: list[Tensor] = []
    results: list[Tensor] = []
    for batch in evaluation_batches(split, batch_size, multiple_of):
        rows.append(batch.rows)
        results.append(forward(batch).detach().cpu())
    together = torch.cat(results)
    in_order = torch.empty_like(together)
    in_order[torch.cat(rows)] = together
    return in_order


def _flat(rows: Sequence[Sequence[int]], dtype: Any) -> Tensor:
    n_tokens = sum(map(len, rows))
    return torch.from_numpy(np.fromiter(chain.from_iterable(rows), dtype=dtype, count=n_tokens))
