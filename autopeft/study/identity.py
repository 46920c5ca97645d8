"""What makes two runs of a search the same study, and what may differ between them.

The space, model, data and metric are compared by content, so that one changed byte is found; they are shown by name.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from autopeft.errors import StudyCorruptError, StudyMismatchError

FORMAT = 1
"""Of the run folder: study.db and events.jsonl. A newer one is refused, never guessed at."""


@dataclass(frozen=True)
class Part:
    """One thing that a study hangs on."""

    value: str
    """As a person names it: `glue/rte`, `hybrid`."""
    hash: str
    """Of its content, in hex digits."""


@dataclass(frozen=True)
class Identity:
    """What a study searches, with what, and how far."""

    space: Part
    model: Part
    data: Part
    metric: Part
    training: Part
    """The protocol of a trial: epochs, batch size and so on."""
    objective: str
    seed: int
    budget: str
    """As the user wrote it."""
    budget_parameters: int
    trials: int
    """In all, not in addition to those that have run."""
    time: float | None = None
    """Seconds of search in all; None where only the trials are limited."""
    earlier: tuple[str, ...] = ()
    """Run folders of the studies whose trials it started from, as the user named them."""
    limits: Mapping[str, int | float] = field(default_factory=dict, hash=False)
    """Second budgets by option: `max_trained` (parameters), `max_latency_overhead` (ratio), `max_memory` (bytes)."""
    facts: Mapping[str, str] = field(default_factory=dict, hash=False)
    """What may differ with a warning: versions of libraries."""

    def to_json(self) -> dict[str, Any]:
        data = {**asdict(self), "facts": dict(self.facts), "limits": dict(self.limits), "earlier": list(self.earlier)}
        return {name: value for name, value in data.items() if value or name not in _OPTIONAL}

    @classmethod
    def from_json(cls, data: Any) -> "Identity":
        """Inverse of `to_json`.

        Raises:
            StudyCorruptError: a key is missing, unknown or of another type.
        """
        if not isinstance(data, dict) or {*data, *_OPTIONAL} != {*_PARTS, *_SCALARS, "facts", *_OPTIONAL}:
            raise StudyCorruptError("the study's identity is incomplete or has unknown keys")
        wrong = [name for name in _PARTS if not _is_part(data[name])]
        wrong += [name for name, kinds in _SCALARS.items() if type(data[name]) not in kinds]
        if not (isinstance(data["facts"], dict) and all(isinstance(v, str) for v in data["facts"].values())):
            wrong.append("facts")
        earlier = data.get("earlier", [])
        if not (isinstance(earlier, list) and all(isinstance(name, str) for name in earlier)):
            wrong.append("earlier")
        limits = data.get("limits", {})
        if not (isinstance(limits, dict) and all(type(v) in (int, float) for v in limits.values())):
            wrong.append("limits")
        if wrong:
            raise StudyCorruptError(f"the study's identity cannot be read: {', '.join(wrong)}")
        return cls(**{**data, "earlier": tuple(earlier), **{name: Part(**data[name]) for name in _PARTS}})


_OPTIONAL = ("limits", "earlier")
"""Written only where there are any, so that studies of before have them not."""
_PARTS = ("space", "model", "data", "metric", "training")
_SCALARS: Mapping[str, tuple[type, ...]] = {
    "objective": (str,),
    "seed": (int,),
    "budget": (str,),
    "budget_parameters": (int,),
    "trials": (int,),
    "time": (int, float, type(None)),
}


def _is_part(data: Any) -> bool:
    return isinstance(data, dict) and set(data) == {"value", "hash"} and all(isinstance(v, str) for v in data.values())


def check(stored: Identity, current: Identity) -> tuple[str, ...]:
    """Warnings about what has changed since the study was made but does not forbid to go on with it.

    Trials and time are totals of the present run: any value goes. Budgets may grow, second ones may be dropped too.

    Raises:
        StudyMismatchError: it is another study; names every difference.
    """
    differences = [
        _difference(name, getattr(stored, name), getattr(current, name))
        for name in _PARTS
        if getattr(stored, name).hash != getattr(current, name).hash
    ]
    for name in ("objective", "seed"):
        if getattr(stored, name) != getattr(current, name):
            differences.append(f"{name}: was {getattr(stored, name)}, now {getattr(current, name)}")
    if stored.earlier != current.earlier:
        start, other = (", ".join(names) or "nothing" for names in (stored.earlier, current.earlier))
        differences.append(f"from: was {start}, now {other}")
    if current.budget_parameters < stored.budget_parameters:
        differences.append(
            f"budget: was {stored.budget} ({stored.budget_parameters:,} parameters), "
            f"now {current.budget} ({current.budget_parameters:,}); it may only grow"
        )
    for name, limit in current.limits.items():
        was = stored.limits.get(name)
        if was is None or limit < was:
            option, before = name.replace("_", "-"), "no limit" if was is None else f"{was:,}"
            differences.append(f"{option}: was {before}, now {limit:,}; it may only grow")
    if differences:
        raise StudyMismatchError(
            "the run folder holds a study with other settings:\n  "
            + "\n  ".join(differences)
            + "\nGo on with the earlier settings, or give another folder with --run."
        )
    names = sorted({*stored.facts, *current.facts})
    return tuple(
        f"{name}: was {stored.facts.get(name, 'absent')}, now {current.facts.get(name, 'absent')}"
        for name in names
        if stored.facts.get(name) != current.facts.get(name)
    )


def _difference(name: str, was: Part, now: Part) -> str:
    if was.value == now.value:
        return f"{name}: {now.value} has another content (was {was.hash[:12]}, now {now.hash[:12]})"
    return f"{name}: was {was.value}, now {now.value}"
