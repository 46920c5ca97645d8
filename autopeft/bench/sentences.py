"""A task of made-up sentences that are as long as GLUE's: is what is said of things rather good, bad, or neither?

For BERT's tokeniser 5, 25, 50, 75 and 95 % have at most 10, 16, 21, 28 and 42 tokens, and none has more than 64 (SST-2:
9, 17, 24, 33 and 46; CoLA: 6, 9, 10, 13 and 20; pairs have more). The longest of 32 is 2.1 times as long as the mean,
as in SST-2 and CoLA: so much is padded. The label is the sign of the sum over clauses, where "not" turns a clause
around, so that a model can learn some of it in a few steps.
"""

import hashlib
import json

import numpy as np

from autopeft.engine.columns import Columns
from autopeft.engine.data import TaskData
from autopeft.engine.splits import Split

NAME = "sentences"
_THINGS = (
    *("food", "room", "staff", "pool", "garden", "lobby", "price", "view"),
    *("music", "service", "bed", "breakfast", "location", "parking", "lift", "bar"),
)
_WORDS = {
    1: ("lovely", "perfect", "splendid", "friendly", "spotless", "generous", "cosy", "excellent"),
    -1: ("awful", "dirty", "rude", "broken", "noisy", "stale", "cramped", "horrible"),
    0: ("large", "small", "old", "modern", "green", "ordinary", "usual"),
}
_DEGREES = ("very", "quite", "rather", "somewhat", "really", "mostly")
_PLACES = (
    "near the station",
    "on the second floor",
    "behind the main building",
    "for a family of four",
    "during our stay",
)
_SHAPE, _SCALE, _FEWEST, _MOST = 4.0, 5.0, 5, 56
"""Of the gamma distribution of the number of words, and its ends."""


def sentences(n_train: int, n_validation: int, seed: int = 0) -> TaskData:
    """`n_train`, `n_validation` and as many test rows, three classes."""
    rng = np.random.default_rng(seed)
    sizes = {"train": n_train, "validation": n_validation, "test": n_validation}
    splits = {name: _split(rng, n) for name, n in sizes.items()}
    content = json.dumps([[name, split.texts, split.labels] for name, split in splits.items()])
    digest = hashlib.sha256(content.encode()).hexdigest()
    return TaskData(NAME, splits, ("bad", "neither", "good"), Columns(("text",), "label"), (), digest, "classification")


def _split(rng: np.random.Generator, n: int) -> Split:
    rows = [_sentence(rng) for _ in range(n)]
    return Split(tuple((text,) for text, _ in rows), tuple(label for _, label in rows))


def _sentence(rng: np.random.Generator) -> tuple[str, int]:
    n_words = int(np.clip(rng.gamma(_SHAPE, _SCALE), _FEWEST, _MOST))
    words: list[str] = []
    total = 0
    while len(words) < n_words:
        sign = int(rng.choice([1, -1, 0], p=[0.4, 0.4, 0.2]))
        is_turned = bool(rng.random() < 0.25)
        total += -sign if is_turned else sign
        words += ["and", "the"] if words else ["the"]
        words += [str(rng.choice(_THINGS)), "was", *(["not"] if is_turned else [])]
        words += [str(rng.choice(_DEGREES)), str(rng.choice(_WORDS[sign]))]
        words += str(rng.choice(_PLACES)).split() if rng.random() < 0.3 else []
    return " ".join(words[:n_words]) + ".", int(np.sign(total)) + 1
