"""Rows tokenised once and kept ragged, in batches of like length that are padded to their own longest row.

Training order: a permutation is cut into mega-batches, each is sorted by length and cut into batches, and these are
shuffled. The order depends on lengths, batch size, seed and epoch alone, so that trials with one seed see the same
batches and a resumed trial goes on with those it would have had. Evaluation goes through all rows by length, and its
results come back in the order of the rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from autopeft.engine.images import Pixels
from autopeft.engine.splits import Texts

__all__ = [
    "Batch",
    "TokenisedSplit",
    "evaluation_batches",
    "tokenise",
    "training_batches",
    "training_order",
]

IGNORED = -100
"""Label of a token that has none, and of padding."""

MEGA = 8
"""Batches that are sorted by length together: more make less padding, and batches that are less random."""

Per = Literal["row", "token", "target"]
"""What a model has a vector for: a sequence, each of its tokens, or each token that a decoder reads."""

_CHUNK = 10_000
"""Rows tokenised at a time."""

_FEWEST, _SHORTEST = 16, 0.8
"""Where no gradient is needed, a batch of so many rows or more ends before a row that is shorter than this share of its
longest: few rows of very different lengths would be padding for the most part."""


@dataclass(frozen=True, slots=True)
class Batch:
    """`B` rows in `S` sequences (as many, or several a row), padded on the right to the longest, `T` tokens."""

    rows: Tensor
    """Their positions in the split `(B,)`."""
    sequences: Tensor
    """Positions of their sequences in the split `(S,)`."""
    input_ids: Tensor
    """`(S, T)`"""
    attention_mask: Tensor
    """1 for tokens, 0 for padding `(S, T)`."""
    token_type_ids: Tensor | None
    """`(S, T)`; None where the tokenizer gives none, or zeros only, which is what models assume."""
    labels: Tensor
    """What is true of the rows, as their problem encodes it `(B, ...)`."""
    decoder_input_ids: Tensor | None
    """What a decoder reads `(B, Td)`: the labels, one place later; None for models without an encoder of its own."""
    pixel_values: Tensor | None
    """Of rows that are images `(B, 3, H, W)`."""
    places: Tensor
    """Where each token stands among those of the split, `n_tokens` for padding `(S, T)`."""
    target_places: Tensor | None
    """The same of what a decoder reads, among the split's labels `(B, Td)`."""

    def to(self, device: torch.device | str) -> "Batch":
        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        types = None if self.token_type_ids is None else move(self.token_type_ids)
        rows, sequences = move(self.rows), move(self.sequences)
        ids, mask = move(self.input_ids), move(self.attention_mask)
        decoder = None if self.decoder_input_ids is None else move(self.decoder_input_ids)
        pixels = None if self.pixel_values is None else move(self.pixel_values)
        targets = None if self.target_places is None else move(self.target_places)
        return Batch(rows, sequences, ids, mask, types, move(self.labels), decoder, pixels, move(self.places), targets)

    def places_of(self, per: "Per") -> Tensor:
        """Places of the tokens that there is a vector for."""
        places = self.places if per == "token" else self.target_places
        assert places is not None
        return places

    def is_there(self, per: "Per") -> Tensor | None:
        """Which of them are no padding; None for rows."""
        if per == "row":
            return None
        return self.attention_mask.bool() if per == "token" else self.labels != IGNORED

    def model_inputs(self) -> dict[str, Tensor]:
        """The keyword arguments of a transformer's `forward`, without labels."""
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        if self.decoder_input_ids is not None:
            inputs["decoder_input_ids"] = self.decoder_input_ids
        return inputs if self.token_type_ids is None else {**inputs, "token_type_ids": self.token_type_ids}


@dataclass(frozen=True, slots=True)
class TokenisedSplit:
    """`n` rows of different lengths, one after the other, each of one sequence or of several."""

    tokens: Tensor
    """Token ids of all rows `(n_tokens,)`, int32."""
    types: Tensor | None
    """Token type ids `(n_tokens,)`, uint8."""
    starts: Tensor
    """Where each sequence begins, and the end of the last `(n_sequences + 1,)`."""
    labels: Tensor
    """What is true of the rows, as their problem encodes it: `(n, ...)`, or of all tokens one after the other."""
    pad_id: int
    per_row: int = 1
    """Sequences of each row."""
    label_starts: Tensor | None = None
    """Where each row's labels begin, and the end of the last; None where a row has one entry."""
    truths: tuple[Any, ...] = ()
    """What predictions are compared with, where the labels do not say it."""
    pixels: Pixels | None = None
    """Of rows that are images: these count as one token each."""
    decoder_start: int | None = None
    """The token that a decoder begins with, where the labels are what it makes and not of the tokens."""

    def __len__(self) -> int:
        return self.n_sequences // self.per_row

    @property
    def n_sequences(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Tensor:
        """Tokens of each row's longest sequence `(n,)`."""
        lengths = self.starts.diff()
        return lengths if self.per_row == 1 else lengths.view(-1, self.per_row).amax(1)

    def batch(self, rows: Tensor, multiple_of: int = 1) -> Batch:
        """The rows at positions `rows (B,)`; their common length is rounded up to a multiple."""
        sequences = rows
        if self.per_row > 1:
            sequences = (rows[:, None] * self.per_row + torch.arange(self.per_row)).flatten()
        lengths = self.starts.diff()[sequences]
        T = -(-int(lengths.max()) // multiple_of) * multiple_of
        place = torch.arange(T)
        is_token = place < lengths[:, None]  # (S, T)
        places = (self.starts[sequences, None] + place).masked_fill_(~is_token, len(self.tokens))
        index = places.clamp(max=len(self.tokens) - 1)
        labels = self.labels[rows] if self.label_starts is None else self._padded_labels(rows, T)
        return Batch(
            rows=rows,
            sequences=sequences,
            input_ids=self.tokens[index].long().masked_fill_(~is_token, self.pad_id),
            attention_mask=is_token.long(),
            token_type_ids=None if self.types is None else self.types[index].long().masked_fill_(~is_token, 0),
            labels=labels,
            decoder_input_ids=None if self.decoder_start is None else self._shifted(labels, self.decoder_start),
            pixel_values=None if self.pixels is None else self.pixels.of(rows),
            places=places,
            target_places=None if self.decoder_start is None else self._target_places(rows),
        )

    @property
    def n_labels(self) -> Tensor:
        """Labels of each row that count `(n,)`, where rows have several."""
        assert self.label_starts is not None
        n_before = torch.nn.functional.pad((self.labels != IGNORED).cumsum(0), (1, 0))
        return n_before[self.label_starts].diff()

    def labelled(self, labels: Tensor, starts: Tensor, truths: tuple[Any, ...]) -> "TokenisedSplit":
        """With these labels, one row's after the other's."""
        return replace(self, labels=labels, label_starts=starts, truths=truths)

    def n_places(self, per: Per) -> int:
        """Tokens, or labels of a decoder, of all rows."""
        return len(self.tokens) if per == "token" else len(self.labels)

    def _target_places(self, rows: Tensor) -> Tensor:
        assert self.label_starts is not None
        lengths = self.label_starts.diff()[rows]
        place = torch.arange(int(lengths.max()))
        is_label = place < lengths[:, None]
        return (self.label_starts[rows, None] + place).masked_fill_(~is_label, len(self.labels))

    def _shifted(self, labels: Tensor, start: int) -> Tensor:
        shifted = torch.cat([labels.new_full((len(labels), 1), start), labels[:, :-1]], 1)
        return shifted.masked_fill_(shifted == IGNORED, self.pad_id)

    def _padded_labels(self, rows: Tensor, T: int) -> Tensor:
        """Labels of the rows `(B, T)`: of their tokens, or of what a decoder makes, as long as the longest is."""
        assert self.label_starts is not None
        lengths = self.label_starts.diff()[rows]
        place = torch.arange(T if self.decoder_start is None else int(lengths.max()))
        index = (self.label_starts[rows, None] + place).clamp(max=len(self.labels) - 1)
        return self.labels[index].masked_fill_(place >= lengths[:, None], IGNORED)


def tokenise(
    texts: Sequence[Texts], labels: Tensor, tokenizer: Any, max_length: int, per_row: int = 1
) -> TokenisedSplit:
    """Token ids of every text or pair with the tokenizer's special tokens; of a pair too long the longer is cut.

    `labels (n, ...)` are those of the rows, of `per_row` texts each.

    A row without any token (an empty text, for tokenizers without special tokens) gets one, so that attention has
    something to look at.
    """
    ids: list[list[int]] = []
    types: list[list[int]] = []
    for start in range(0, len(texts), _CHUNK):
        columns = [list(column) for column in zip(*texts[start : start + _CHUNK], strict=True)]
        encoded = tokenizer(*columns, truncation=True, max_length=max_length, return_attention_mask=False)
        ids.extend(encoded["input_ids"])
        types.extend(row or [0] for row in encoded.get("token_type_ids", []))
    flat_types = _flat(types, np.uint8) if types else None
    return replace(
        ragged(ids, tokenizer),
        types=flat_types if flat_types is not None and bool(flat_types.any()) else None,
        labels=labels,
        per_row=per_row,
    )


def ragged(rows: Sequence[Sequence[int]], tokenizer: Any) -> TokenisedSplit:
    """Token ids one after the other; a row without any gets one. Labels are still to be set."""
    pad_id = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    filler = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), pad_id)
    rows = [row or [filler] for row in rows]
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    return TokenisedSplit(_flat(rows, np.int32), None, starts, torch.zeros(len(rows)), pad_id)


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
    order = split.lengths.argsort(descending=True, stable=True)
    lengths = split.lengths[order].tolist()
    start = 0
    for i in range(1, len(lengths) + 1):
        n = i - start
        is_short = i < len(lengths) and n >= _FEWEST and lengths[i] < _SHORTEST * lengths[start]
        if i == len(lengths) or n == batch_size or is_short:
            yield split.batch(order[start:i], multiple_of)
            start = i


def _flat(rows: Sequence[Sequence[int]], dtype: Any) -> Tensor:
    n_tokens = sum(map(len, rows))
    return torch.from_numpy(np.fromiter(chain.from_iterable(rows), dtype=dtype, count=n_tokens))
