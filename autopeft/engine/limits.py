"""Limits that an architecture is measured against before it is trained: time of a forward pass, memory of training.

Unlike parameters they are not known from the architecture: each one is put into the model, measured, and rejected where
it is over a limit, without being trained.
"""

import re
from dataclasses import dataclass

from autopeft.errors import BudgetError

_RATIO = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)(%?)", re.ASCII)
_BYTES = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(MB|GB|MiB|GiB)", re.ASCII)
_UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Limits:
    """None: no limit."""

    latency_overhead: float | None = None
    """Time of the adapted model's forward pass over that of the base model; 1.2 is a fifth longer."""
    memory_bytes: int | None = None
    """Of one training step at its peak."""


NO_LIMITS = Limits()


def parse_overhead(text: str) -> float:
    """The ratio that `1.2` or `20%` stands for.

    Raises:
        BudgetError: another form, or a ratio of 1 or less, which no adapter could keep.
    """
    match = _RATIO.fullmatch(text)
    if match is None:
        raise BudgetError(
            f"--max-latency-overhead: {text[:40]!r} is not an overhead. Allowed: 1.2 (times the base model's forward "
            "pass) or 20%"
        )
    number = float(match[1])
    ratio = 1 + number / 100 if match[2] else number
    if ratio <= 1:
        raise BudgetError(
            f"--max-latency-overhead: must be above 1 (the base model's own time) or above 0%, got {text!r}"
        )
    return ratio


def parse_memory(text: str) -> int:
    """Bytes of `8GB`, `800MB`, `6GiB`, `512MiB`.

    Raises:
        BudgetError: another form, or nothing above zero.
    """
    match = _BYTES.fullmatch(text)
    n_bytes = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if n_bytes < 1:
        raise BudgetError(f"--max-memory: {text[:40]!r} is not an amount of memory. Allowed: 8GB, 800MB, 6GiB, 512MiB")
    return n_bytes
