"""What splits share: rows that are in two of them make a result look better than it is."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from autopeft.engine.splits import Split, Texts, normalised
from autopeft.errors import DataError

__all__ = ["describe_overlap", "refuse_identical"]


def refuse_identical(splits: Mapping[str, Split], names: Mapping[str, str]) -> None:
    """
    Raises:
        DataError: two splits hold the same rows, in whatever order.
    """
    for a, b in combinations(splits, 2):
        if len(splits[a]) == len(splits[b]) and _rows(splits[a]) == _rows(splits[b]):
            raise DataError(f"{a} ({names[a]}) and {b} ({names[b]}) are the same {len(splits[a]):,} rows; remove one.")


def describe_overlap(splits: Mapping[str, Split], *, of_classes: bool) -> Iterator[str]:
    """A sentence for each pair of splits that share texts, and for texts that train holds several times."""
    plain = {name: [normalised(texts) for texts in split.texts] for name, split in splits.items()}
    for a, b in combinations(splits, 2):
        if alike := _shared(plain[a], plain[b]):
            exact, n = _shared(splits[a].texts, splits[b].texts), len(splits[b])
            rest = f", of these {alike - exact:,} with other case or spacing" if alike > exact else ""
            yield f"{alike:,} of {n:,} {b} rows ({alike / n:.1%}) are also in {a}{rest}"
    train = splits["train"]
    if repeated := len(train) - len(set(train.texts)):
        yield f"{repeated:,} of {len(train):,} train rows repeat the text of another"
    if of_classes and (contrary := _contrary(train)):
        yield f"{contrary:,} texts in train have different labels in different rows"


def _rows(split: Split) -> Counter[tuple[Texts, Any]]:
    return Counter(zip(split.texts, split.labels, strict=True))


def _shared(a: Sequence[str] | Sequence[Texts], b: Sequence[str] | Sequence[Texts]) -> int:
    """Rows of `b` that are in `a`."""
    known = set(a)
    return sum(row in known for row in b)


def _contrary(split: Split) -> int:
    labels: dict[Texts, set[Any]] = defaultdict(set)
    for texts, label in zip(split.texts, split.labels, strict=True):
        labels[texts].add(label)
    return sum(len(found) > 1 for found in labels.values())
