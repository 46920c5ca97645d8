"""Broken and hostile spaces and budgets: a space or an error in words, soon, and nothing is run."""

import random
import re
import time
from pathlib import Path

import numpy as np
import pytest

from autopeft.errors import BudgetError, UsageError
from autopeft.resources import find_yaml, shipped_names
from autopeft.space.budget import ParameterBudget
from autopeft.space.search_space import SearchSpace
from autopeft.space.spec import load_space
from tests.anatomies import bert_like

MODEL = bert_like(2, 16, 20_000)
TEXTS = [find_yaml("search_spaces", name).read_text() for name in shipped_names("search_spaces")]
VALUES = [
    "-1", "0", "1", "1e9", "1.5", "99999999999999999999", "nan", ".inf", "null", "true", "on", "fill", "lora", "''",
    "[]",
    "{}", "[0, fill]", "{low: 1, high: 8, power: 2}", "{low: 8, high: 1}", "{halvings: 99}", "{share: 0.3}",
    "{share: [2]}",
    "{first: [1, 3]}", "{last: 0}", "{lists: [[0], [0]]}", "{lists: [[0, 5], [1]]}", "[1, 2, 3, 4]", "'q,v'",
    "'q,,v'", "[uniform, spindle]", "[token, mean]", "!!python/object/apply:os.system ['touch {canary}']",
    "!!python/name:os.system", "&a [*a]", "*a", "<<: x", "'{{ x }}'", "__import__('os')", "2001-01-01", "0x10", "per",
    "[[[[[[]]]]]]",
    "include", "layer", "model", "any", "learned", "1" * 5000, "\x00", "\u202e", "💥",
]  # fmt: skip
KEYS = [
    "size", "per", "kind", "depth", "mask", "roles", "scale", "gate", "alpha", "fill", "exclude", "points", "modules",
    "layers", "groups", "pattern", "training", "version", "include", "lora", "serial", "sise", "at_least_one", "tuned",
]  # fmt: skip


def mutated(text: str, rng: random.Random, canary: Path) -> str:
    """A few values, keys and lines of the text changed."""
    for _ in range(rng.randint(1, 3)):
        value = rng.choice(VALUES).replace("{canary}", str(canary))
        spots = list(re.finditer(r"(?<=: )[^,{}\[\]\n]+|\[[^\[\]\n]*\]|\{[^{}\n]*\}|\b\d+\b|\b\w+(?=:)", text))
        match rng.randrange(5):
            case 0 | 1 | 2 if spots:
                spot = rng.choice(spots)
                new = rng.choice(KEYS) if text[spot.end() : spot.end() + 1] == ":" else value
                text = text[: spot.start()] + new + text[spot.end() :]
            case 3:
                text += f"{rng.choice(KEYS)}: {value}\n"
            case _:
                lines = text.splitlines(keepends=True)
                del lines[rng.randrange(len(lines))]
                text = "".join(lines) or "x"
    return text


def fuzz(folder: Path, seed: int, n: int) -> int:
    """Load, bind, sample and show `n` mutated spaces; the number of those that are spaces still."""
    rng, canary, path = random.Random(seed), folder / "canary", folder / "space.yaml"
    good = 0
    for _ in range(n):
        path.write_text(mutated(rng.choice(TEXTS), rng, canary), encoding="utf-8")
        start = time.monotonic()
        try:
            space = SearchSpace(load_space(str(path)), MODEL, rng.choice([40, 1_000, 20_000]))
            point = space.sample(np.random.default_rng(0))
            assert space.is_valid(point)
            assert point.stored <= (space.budget or 0)
            space.named_points()
            good += 1
        except UsageError as error:
            lines = str(error).splitlines()
            assert lines
            assert all(len(line) < 2_000 for line in lines)
        assert time.monotonic() - start < 30  # most take milliseconds; the rest is for a busy machine
    assert not canary.exists()
    return good


@pytest.mark.parametrize("seed", range(4))
def test_mutated_spaces_are_spaces_or_refused_in_words(tmp_path, seed):
    assert fuzz(tmp_path, seed, 500) > 20


@pytest.mark.nightly
def test_very_many_mutated_spaces_are_spaces_or_refused_in_words(tmp_path):
    fuzz(tmp_path, 1_000, 50_000)


BUDGETS = [
    "", " ", "0", "0%", "-0%", "-1", "-1%", "0.5", "0,5%", "5 %", " 5%", "5%\n", "+5%", "--5", "%", "k", "M", ".5%",
    "5.%",
    "nan", "nan%", "inf", "inf%", "-inf", "1e3", "1e-9%", "1_000", "0x10", "500K", "1.2m", "1.2.3M", "5%%", "101%",
    "1" * 40, "５%", "½%", "٣k", "null", "true", "__import__('os')", "[1]", "0.00000000000001%",
]  # fmt: skip


def test_there_are_forty_broken_budgets():
    assert len(set(BUDGETS)) >= 40


@pytest.mark.parametrize("text", BUDGETS, ids=range(len(BUDGETS)))
def test_a_broken_budget_is_refused_with_what_is_allowed(text):
    with pytest.raises(BudgetError) as caught:
        ParameterBudget.parse(text)
    message = str(caught.value)
    assert message.startswith("--budget: ")
    assert "\n" not in message


@pytest.mark.parametrize("text", ["1", "0.000001%", "0.001k"])
def test_a_budget_that_nothing_fits_names_the_smallest_that_does_and_why(text):
    space = SearchSpace(load_space("hybrid"), bert_like(), ParameterBudget.parse(text).resolve(109_482_240))
    with pytest.raises(BudgetError, match=r"size forces it: it is at least 1, in \d+ layer.* --budget \d+"):
        space.sample(np.random.default_rng(0))
