"""JSON without its traps: no NaN, no infinity, no lone surrogates, no endless nesting."""

import json
import math
from typing import Any, NoReturn


def parse(text: str) -> Any:
    """
    Raises:
        ValueError: not JSON, or JSON that would break whoever works with it.
    """
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if "\\ud" in text or "\\uD" in text:
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # UnicodeEncodeError is a ValueError
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)


def dump(value: Any) -> str:
    """One line of ASCII.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def normal(value: Any) -> Any:
    """`value` as it comes back from a file: tuples as lists, numbers and text unchanged."""
    return parse(dump(value))
