"""Tags of words, counted word by word and entity by entity.

Entities are read as conlleval does (Tjong Kim Sang & Buchholz 2000): `B-` begins one, `I-` goes on with one of the same
type and otherwise begins one; `O`, or no tag at all, is outside. IOBES and BILOU come to the same, since `S-` and `U-`
begin one that `E-` and `L-` end. The tests compare with seqeval.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["entities", "entity_f1", "is_iob", "token_accuracy"]

Tags = Sequence[str | None]
Float = npt.NDArray[np.float64]

_BEGIN, _END = frozenset("BSU"), frozenset("ESLU")
_PREFIXES = frozenset("BIESLU")


def is_iob(names: Sequence[str]) -> bool:
    """Whether the tags are `O` and types behind one of the prefixes of entities."""
    return all(name == "O" or (name[:1] in _PREFIXES and name[1:2] == "-") for name in names) and any(
        name != "O" for name in names
    )


def entities(tags: Tags) -> set[tuple[str, int, int]]:
    """Type, first and last word of each entity."""
    found = set()
    kind, start, is_open = "", 0, False
    for place, tag in enumerate([*tags, None]):
        prefix, _, of = (tag or "O").partition("-")
        is_outside = prefix not in _PREFIXES
        if is_open and (is_outside or prefix in _BEGIN or of != kind):
            found.add((kind, start, place - 1))
            is_open = False
        if not is_outside and not is_open:
            kind, start, is_open = of, place, True
        if is_open and prefix in _END:
            found.add((kind, start, place))
            is_open = False
    return found


def token_accuracy(P: Sequence[Tags], Y: Sequence[Tags], weights: Float) -> Float:
    """Share of the words whose tag is right, over rows that are drawn `weights (R, n)` times."""
    hits = [sum(p == y for p, y in zip(said, true, strict=True)) for said, true in zip(P, Y, strict=True)]
    return _quotient(weights @ np.asarray(hits, float), weights @ np.asarray([len(true) for true in Y], float))


def entity_f1(P: Sequence[Tags], Y: Sequence[Tags], weights: Float) -> Float:
    """F1 of entities with the right type and both ends, all types together."""
    pairs = [(entities(said), entities(true)) for said, true in zip(P, Y, strict=True)]
    hits: Any = np.asarray([len(said & true) for said, true in pairs], float)
    both: Any = np.asarray([len(said) + len(true) for said, true in pairs], float)
    return _quotient(2 * (weights @ hits), weights @ both)


def _quotient(numerator: Float, denominator: Float) -> Float:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
