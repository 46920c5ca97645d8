"""What a plain scalar means: the core schema of YAML 1.2, minus what readers disagree on.

`1e-4` is a float; `no`, `on`, `12:30` and dates are text (https://yaml.org/spec/1.2.2/#103-core-schema). Refused are
`010`, which readers take for 8, 10 or text, NaN, infinity and integers over 64 bits.
"""

import re

from autopeft.config.tree import Scalar, shortened

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def resolve(text: str) -> Scalar:
    """The value of a plain scalar.

    Raises:
        ValueError: it looks like a number, but is not a usable one; the message says what to write.
    """
    shown = shortened(text, 40)
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"must be a finite number, got {shown}")
    if not _FLOAT.fullmatch(text) and not _INT.fullmatch(text):
        return text
    if _LEADING_ZERO.match(text):
        raise ValueError(f"a number must not start with a zero, got {shown}. For text write '{shown}' in quotes")
    if _INT.fullmatch(text):
        number = int(text, 0) if len(text) <= 30 else 1 << 64
        if not -(1 << 63) <= number < 1 << 63:
            raise ValueError(f"must be a whole number of at most 64 bits, got {shown}")
        return number
    value = float(text)
    if value in {float("inf"), float("-inf")}:
        raise ValueError(f"must be a number up to 1.8e308, got {shown}")
    return value
