"""Cuts of a data set that depend on what the rows say, not on their order or on a seed.

A row's place follows from a hash of its text, so that the same rows fall into the same splits today and after the file
was sorted; and rows with the same text, whatever their case and spacing, are never in two splits.
"""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Split", "Texts", "cut", "draw", "normalised"]

Texts = tuple[str, ...]
"""`(text,)` or `(text, text_pair)`; or a question and its choices, or the words of a sentence."""


@dataclass(frozen=True, slots=True)
class Split:
    """Rows of one split, in the order of their file."""

    texts: tuple[Texts, ...]
    labels: tuple[Any, ...]
    """What is true of each row, as its problem has it: a class number, a real number, a tuple of numbers, a text."""

    paths: tuple[str, ...] = ()
    """Files of rows that are images; their texts are digests then."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: Sequence[int]) -> "Split":
        labels = tuple(self.labels[position] for position in positions)
        paths = tuple(self.paths[position] for position in positions) if self.paths else ()
        return Split(tuple(self.texts[position] for position in positions), labels, paths)


def normalised(texts: Texts) -> str:
    """The text of a row without case and spacing, a pair in one string."""
    return "\x1f".join(" ".join(text.casefold().split()) for text in texts)


def cut(rows: Sequence[Texts], strata: Sequence[Hashable], *fractions: float) -> list[list[int]]:
    """Positions of the rows, cut into a first part and one part for each of `fractions`, in the order of the file.

    Every stratum (class) is cut in the same proportion. A part gets a row of every stratum that has enough different
    texts; with fewer, the first part is served first.
    """
    same_text: dict[str, list[int]] = defaultdict(list)
    for position, texts in enumerate(rows):
        same_text[normalised(texts)].append(position)
    by_stratum: dict[Hashable, list[str]] = defaultdict(list)
    for text, positions in same_text.items():
        # Where one text has several labels, the choice among them must not depend on the order of the rows.
        stratum = min((strata[position] for position in positions), key=repr)
        by_stratum[stratum].append(text)
    parts: list[list[int]] = [[] for _ in range(len(fractions) + 1)]
    n_rows = 0
    for stratum in sorted(by_stratum, key=repr):
        left = sorted(by_stratum[stratum], key=_digest, reverse=True)
        n_rows += sum(len(same_text[text]) for text in left)
        for number, fraction in enumerate(fractions, start=1):
            # Of all rows so far: what one stratum's rounding gives too much, the next one gets less.
            wanted = max(1, round(fraction * n_rows) - len(parts[number]))
            taken = 0
            # The first part keeps a text of its own.
            while taken < wanted and len(left) > 1:
                positions = same_text[left.pop()]
                parts[number].extend(positions)
                taken += len(positions)
        parts[0].extend(position for text in left for position in same_text[text])
    return [sorted(part) for part in parts]


def draw(rows: Sequence[Texts], n: int, seed: int) -> list[int]:
    """Positions of `n` of the rows, in the order of the file; of one seed, a larger draw contains the smaller."""
    digests = [_digest(f"{seed}/" + "\x1f".join(texts)) for texts in rows]
    order = sorted(range(len(rows)), key=lambda position: (digests[position], position))
    return sorted(order[:n])


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8")).digest()
