"""Small tasks of every kind of problem, as rows of files, with words that the tiny tokenisers know."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.checkpoints import WORDS

Rows = list[dict[str, Any]]


def _some(rng: random.Random, group: int, n: int) -> str:
    """Words that only one group has."""
    return " ".join(rng.choice(WORDS[group * 20 : group * 20 + 6]) for _ in range(n))


def multi_label(n: int) -> Rows:
    """The classes whose words a text has, perhaps none."""
    rng, rows = random.Random(0), []
    for _ in range(n):
        groups = [group for group in range(3) if rng.random() < 0.5]
        text = " ".join(_some(rng, group, rng.randint(1, 3)) for group in groups) or "w90 w91"
        rows.append({"text": text, "labels": [f"class {group}" for group in groups]})
    return rows


def token_classification(n: int) -> Rows:
    """Entities of two words, which begin with w5."""
    rng, rows = random.Random(0), []
    for _ in range(n):
        words, tags = list[str](), list[str]()
        for _ in range(rng.randint(2, 5)):
            if rng.random() < 0.5:
                words += ["w5", f"w{rng.randint(20, 25)}"]
                tags += ["B-X", "I-X"]
            else:
                words.append(f"w{rng.randint(60, 70)}")
                tags.append("O")
        rows.append({"tokens": words, "tags": tags})
    return rows


def multiple_choice(n: int) -> Rows:
    """The right choice has words of the first group."""
    rng, rows = random.Random(0), []
    for _ in range(n):
        label = rng.randint(0, 2)
        choices = [_some(rng, 0 if place == label else 3, rng.randint(1, 4)) for place in range(3)]
        rows.append({"question": _some(rng, 2, rng.randint(1, 4)), "choices": choices, "label": label})
    return rows


def causal_lm(n: int) -> Rows:
    """The completion is the prompt's last word, twice."""
    rng, rows = random.Random(0), []
    for _ in range(n):
        prompt = _some(rng, rng.randint(0, 1), rng.randint(1, 6))
        rows.append({"prompt": prompt, "completion": " ".join([prompt.split()[-1]] * 2)})
    return rows


def plain_text(n: int) -> Rows:
    """Texts alone, some of them longer than a sequence."""
    rng = random.Random(0)
    return [{"text": _some(rng, rng.randint(0, 1), rng.randint(3, 30))} for _ in range(n)]


def seq2seq(n: int) -> Rows:
    """The target is the first word of the source."""
    rng, rows = random.Random(0), []
    for _ in range(n):
        source = _some(rng, rng.randint(0, 1), rng.randint(1, 6))
        rows.append({"source": source, "target": source.split()[0]})
    return rows


TASKS = {
    "multi_label": (multi_label, "bert"),
    "token_classification": (token_classification, "bert"),
    "multiple_choice": (multiple_choice, "bert"),
    "causal_lm": (causal_lm, "gpt2"),
    "plain_text": (plain_text, "llama"),
    "seq2seq": (seq2seq, "t5"),
}
"""Rows, and the family of a model that can learn them."""


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def image_folder(folder: Path, n: int, size: int = 16) -> Path:
    """Images of two classes, one darker than the other, each unlike all others."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for number in range(n):
        of_class = folder / ("dark" if number % 2 else "light")
        of_class.mkdir(parents=True, exist_ok=True)
        low = 0 if number % 2 else 150
        pixels = rng.integers(low, low + 100, (size, size + 4, 3), dtype=np.uint8)
        image.fromarray(pixels).save(of_class / f"{number}.png")
    return folder
