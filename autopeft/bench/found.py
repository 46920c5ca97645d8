"""A best point of a surface in a space."""

from collections.abc import Mapping
from dataclasses import dataclass

from autopeft.space.modules import Scalar


@dataclass(frozen=True)
class Found:
    params: Mapping[str, Scalar]
    raw: float
    """Its value before it is scaled to points."""
    method: str
    """How it was found, and how sure it is."""
