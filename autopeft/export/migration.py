"""Adapter specs of older versions, brought to the current one step at a time. A step is never changed once released."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from autopeft.errors import ExportError
from autopeft.export.spec import FORMAT_VERSION

Json = dict[str, Any]


def _from_1(spec: Json) -> Json:
    """Version 2 says how deep the base model is, what was measured over seeds, and where an architecture came from."""
    return {
        **spec,
        "base_model": {**spec.get("base_model", {}), "layers": {}},
        "evidence": {**spec.get("evidence", {}), "seeds": None},
        "origin": None,
    }


STEPS: Mapping[int, Callable[[Json], Json]] = MappingProxyType({1: _from_1})
"""Version → the step to the next one."""


def migrate(spec: Mapping[str, Any]) -> Json:
    """`spec` in the current version; what else is wrong with it is not looked at.

    Raises:
        ExportError: a version that is not known here.
    """
    current = dict(spec)
    while (version := current.get("version")) != FORMAT_VERSION:
        if type(version) is not int or version not in STEPS:
            is_newer = isinstance(version, int) and version > FORMAT_VERSION
            advice = "a newer autopeft made it, update yours" if is_newer else f"known are 1 to {FORMAT_VERSION}"
            raise ExportError(f"version {version!r} of the adapter spec is not known: {advice}")
        current = STEPS[version](current) | {"version": version + 1}
    return current
