"""Hostile and broken texts: a model or a ConfigError, soon, and nothing is run."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autopeft.config import load
from autopeft.errors import ConfigError

from .examples import Recipe

SEED_TEXT = """\
# autopeft search --recipe glue/mrpc
version: 1
name: "m\\u00e9rpc"
training:
  learning_rate: 1.0e-4
  epochs: 20
  schedule: {kind: steps, milestones: [1, 2]}
text: [sentence1, 'sentence2']
rank: {low: 1, high: 64}
sites:
  attn.q: {low: 1, high: 2}
  ffn.in:
    low: 3
    high: 4
weights: {0: 0.5, 1: 2}
"""
HOSTILE = [
    "!!python/object/apply:os.system ['touch {canary}']",
    "!!python/object/new:subprocess.Popen [[touch, '{canary}']]", "!<tag:yaml.org,2002:python/name:os.system> x",
    "!!python/module:os", "!!binary aGk=", "!!set {a, b}", "!!timestamp 2001-01-01", "! x", "!!", "&a [*a, *a]",
    "*unknown", "&a &b c", "<<: *a", "<<: [{a: 1}, {a: 2}]", "010", "12:30", "1e-4", "1e-999", "1e999", ".inf",
    "-.INF", ".nan", "0x" + "f" * 40, "9" * 5000, "-" + "1" * 40000, "0o777777777777777777777777777", "no", "on", "y",
    "2001-12-14t21:59:43.10-05:00", "１２", "=", "~", "[" * 5000, "{a: " * 5000, "- " * 5000, "? " * 5000,
    "[" * 31 + "]" * 31, "{{ template }}", "[a, b]: c", "|\n  \t x", ">9\n x", "|+-\n", "'", '"', '"\\x',
    '"\\UFFFFFFFF"', '"\\ud800\\udc00"', '"\\0"', "'\\0'", '"\\e[31m"', "@x", "`x`", "%x", "\tx", "a\tb", "x: y: z",
    "- - - -", ", ,", "]", "}", "#", "...", "---", "--- x\n--- y", "%YAML 9.9\n---",
    "%TAG ! tag:yaml.org,2002:python/\n---\n!object:os.system x", "\x00", "\x07", "\x1b[31m", "\x7f", "\x85",
    "\u2028", "\ufeff", "\ufffe", "\U0001f600", "\r", "\r\n", "x" * 70_000, "x " * 30_000, "[" + "1," * 30_000 + "]",
    "a: 1\n" * 3000, "include: recipe.yaml", "include: /dev/zero", "include: [../x.yaml, ~]", "training: null",
    "weights: {a: 1, a: 2}", "lol: &a [x]\nl2: &b [" + "*a," * 9 + "]\nl3: [" + "*b," * 9 + "]",
]  # fmt: skip


def _flip_bytes(rng: random.Random, text: bytes) -> bytes:
    changed = bytearray(text)
    for _ in range(rng.randint(1, 6)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _swap_characters(rng: random.Random, text: bytes) -> bytes:
    """Stays UTF-8, so that the parser behind the decoder is met."""
    changed = list(text.decode(errors="replace"))
    for _ in range(rng.randint(1, 6)):
        changed[rng.randrange(len(changed))] = rng.choice(":-[]{}#&*!|>'\"%@`,? \t\n\r\\0<~.é\u2028\x00")
    return "".join(changed).encode()


def _cut(rng: random.Random, text: bytes) -> bytes:
    start, end = sorted(rng.sample(range(len(text)), 2))
    return text[:start] if rng.random() < 0.5 else text[:start] + text[end:]


def _repeat(rng: random.Random, text: bytes) -> bytes:
    start, end = sorted(rng.sample(range(len(text)), 2))
    return text[:end] + text[start:end] * rng.choice([1, 3, 200]) + text[end:]


def _insert(rng: random.Random, text: bytes, canary: str) -> bytes:
    hostile = rng.choice(HOSTILE).replace("{canary}", canary).encode("utf-8", "surrogatepass")
    at = rng.choice([index + 1 for index, byte in enumerate(text) if byte in b": \n[{"])
    return text[:at] + hostile + rng.choice([b"", b" ", b"\n"]) + text[at:]


def _assert_a_model_or_a_config_error(path: Path, overrides: tuple[str, ...] = ()) -> None:
    start = time.process_time()
    try:
        assert isinstance(load(path, Recipe, overrides), Recipe)
    except ConfigError as error:
        assert error.problems
        assert len(error.problems) <= 51
        assert all(len(problem) < 2000 and "\x1b" not in problem for problem in error.problems)
    assert time.process_time() - start < 2  # most take milliseconds; the rest is for a busy machine


def _fuzz(folder: Path, rng: random.Random, n: int) -> None:
    canary, path = folder / "canary", folder / "recipe.yaml"
    mutations: list[Callable[[random.Random, bytes], bytes]] = [
        _flip_bytes, _swap_characters, _cut, _repeat, lambda rng, text: _insert(rng, text, str(canary))
    ]  # fmt: skip
    for _ in range(n):
        text = SEED_TEXT.encode()
        for _ in range(rng.choice([1, 1, 2, 3])):
            if len(text) > 1:
                text = rng.choice(mutations)(rng, text)
        path.write_bytes(text)
        _assert_a_model_or_a_config_error(path)
    assert not canary.exists()


def test_the_text_that_is_mutated_is_good(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(SEED_TEXT)
    assert load(path, Recipe).weights == {0: 0.5, 1: 2.0}


@pytest.mark.parametrize("seed", range(4))
def test_mutated_texts_give_a_model_or_a_config_error(tmp_path: Path, seed: int) -> None:
    _fuzz(tmp_path, random.Random(seed), 250)


@pytest.mark.nightly
def test_very_many_mutated_texts_give_a_model_or_a_config_error(tmp_path: Path) -> None:
    _fuzz(tmp_path, random.Random(100), 50_000)


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_text_alone_as_value_and_as_option_runs_nothing(tmp_path: Path, hostile: str) -> None:
    path, canary = tmp_path / "recipe.yaml", tmp_path / "canary"
    text = hostile.replace("{canary}", str(canary))
    for content in (text, f"name: {text}\n", f"rank:\n  - {text}\n", f"{text}: 1\n"):
        path.write_bytes(content.encode())
        _assert_a_model_or_a_config_error(path)
    path.write_text(SEED_TEXT)
    for option in (text, f"name={text}", f"training.{text}=1", f"{text}=1"):
        _assert_a_model_or_a_config_error(path, (option,))
    assert not canary.exists()
