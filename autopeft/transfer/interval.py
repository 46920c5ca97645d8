"""The mean of a few figures, with the interval in which it lies for all seeds, if figures are about normal.

Student's t by its closed form for whole degrees of freedom: Abramowitz & Stegun 1964, 26.7.3 and 26.7.4.
"""

import math
from collections.abc import Sequence

CONFIDENCE = 0.95


def t_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean; None for a single value, which tells nothing of the spread."""
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = t_quantile(n - 1) * deviation / math.sqrt(n)
    return mean - half, mean + half


def t_quantile(freedom: int) -> float:
    """t with P(|T| < t) = 0.95, for `freedom` >= 1 degrees of freedom."""
    low, high = 0.0, math.pi / 2
    while high - low > 1e-15:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _within(middle, freedom) < CONFIDENCE else (low, middle)
    return math.tan(low) * math.sqrt(freedom)


def _within(angle: float, freedom: int) -> float:
    """P(|T| < tan(angle)·√freedom)."""
    cos, sin = math.cos(angle), math.sin(angle)
    total, term = 0.0, cos if freedom % 2 else 1.0
    for k in range(freedom % 2 + 1, freedom, 2):
        total += term
        term *= cos * cos * k / (k + 1)
    return 2 / math.pi * (angle + sin * total) if freedom % 2 else sin * total
