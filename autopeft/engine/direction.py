"""Metrics that are better when smaller, in a program that maximises.

Such a metric goes through a search as its negative, under its name with a minus (`-perplexity`): so do scores, learning
curves and journals, and nothing that compares them needs to know. People, JSON and specs get the name and the value as
they are. The minus is in the name, so that what was written says itself which way it goes.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["sought", "told", "told_result"]

_MINUS = "-"


def sought(name: str, value: float) -> tuple[str, float]:
    """A minimised metric as a search maximises it."""
    return _MINUS + name, -value


def told(name: str, value: float) -> tuple[str, float]:
    """A maximised metric, by its name in a study, as it is."""
    return (name.removeprefix(_MINUS), -value) if name.startswith(_MINUS) else (name, value)


def told_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's result as JSON with metrics and score as they are."""
    epochs = [
        {**epoch, "metrics": dict(told(name, value) for name, value in epoch["metrics"].items())}
        for epoch in result["epochs"]
    ]
    name = next(iter(result["epochs"][0]["metrics"]), "") if result["epochs"] else ""
    score = None if result["score"] is None else told(name, result["score"])[1]
    return {**result, "epochs": epochs, "score": score}
