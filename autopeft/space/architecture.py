"""An architecture: the canonical set of adapter modules that one trial puts into a model.

Two descriptions of the same adapters are one value: placements are sorted, options at their default are left out,
modules of size 0 leave no trace.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from autopeft.errors import ConfigError, did_you_mean
from autopeft.space.modules import MODULES, WITHOUT_GATE, Scalar

FORMAT_VERSION = 1


@dataclass(frozen=True, order=True)
class Placement:
    """One module at one site. Make it with `place`, which checks and canonicalises."""

    stack: str
    layer: int
    role: str
    module: str
    size: int
    """Rank r, bottleneck b or length l, by the module's kind; at least 1."""
    options: tuple[tuple[str, Scalar], ...] = ()
    """Only what differs from the kind's defaults, sorted by name."""

    def option(self, name: str) -> Scalar:
        """The option's value, the kind's default where it is not set."""
        return dict(self.options).get(name, MODULES[self.module].options[name].default)

    @property
    def all_options(self) -> dict[str, Scalar]:
        return {name: self.option(name) for name in MODULES[self.module].options}

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "stack": self.stack,
            "layer": self.layer,
            "role": self.role,
            "module": self.module,
            "size": self.size,
        }
        return data | ({"options": dict(self.options)} if self.options else {})


def place(
    stack: str, layer: int, role: str, module: str, size: int, options: Mapping[str, Scalar] | None = None
) -> Placement:
    """A checked, canonical placement.

    Raises:
        ConfigError: an unknown module, role or option, or a value that is not allowed; names all of them.
    """
    where = f"{stack} layer {layer}, {module} at {role}"
    kind = MODULES.get(module)
    if kind is None:
        raise ConfigError([f"{where}: unknown module '{module}'.{did_you_mean(module, MODULES)}"])
    problems = []
    if role not in kind.roles:
        problems.append(f"{where}: role must be one of {', '.join(kind.roles)}")
    if size < 1 or (kind.max_size is not None and size > kind.max_size):
        bound = f" and <= {kind.max_size}" if kind.max_size is not None else ""
        problems.append(f"{where}: size must be >= 1{bound}, got {size}")
    if layer < 0:
        problems.append(f"{where}: layer must be >= 0")
    kept: dict[str, Scalar] = {}
    for name, value in (options or {}).items():
        option = kind.options.get(name)
        if option is None:
            problems.append(f"{where}: unknown option '{name}'.{did_you_mean(name, kind.options)}")
            continue
        try:
            canonical = option.canonical(value)
        except ValueError as error:
            problems.append(f"{where}: {name} {error}")
            continue
        if canonical != option.default:
            kept[name] = canonical
    if problems:
        raise ConfigError(problems)
    if kept.get("gate", "none") != "none":
        for name in WITHOUT_GATE:
            kept.pop(name, None)
    return Placement(stack, layer, role, module, size, tuple(sorted(kept.items())))


@dataclass(frozen=True)
class Architecture:
    """A hybrid of adapter modules; sorted, without duplicates, at most one module of a kind per site."""

    placements: tuple[Placement, ...] = ()

    @classmethod
    def of(cls, placements: Iterable[Placement]) -> "Architecture":
        """The canonical architecture of these placements.

        Raises:
            ConfigError: two different modules of one kind stand at the same site.
        """
        ordered = tuple(sorted(set(placements), key=_order))
        seen: set[tuple[str, int, str, str]] = set()
        for p in ordered:
            site = (p.stack, p.layer, p.role, p.module)
            if site in seen:
                raise ConfigError([f"{p.stack} layer {p.layer}: two {p.module} modules at {p.role}"])
            seen.add(site)
        return cls(ordered)

    def __bool__(self) -> bool:
        return bool(self.placements)

    def __len__(self) -> int:
        return len(self.placements)

    @property
    def modules(self) -> frozenset[str]:
        """The kinds of modules it holds."""
        return frozenset(p.module for p in self.placements)

    @cached_property
    def id(self) -> str:
        """Twelve hex digits of the SHA-256 of its canonical JSON."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        return {"version": FORMAT_VERSION, "placements": [p.to_json() for p in self.placements]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Architecture":
        """Inverse of `to_json`; everything is checked, nothing is trusted.

        Raises:
            ConfigError: not an architecture of a version that is known here.
        """
        if not isinstance(data, Mapping) or data.get("version") != FORMAT_VERSION:
            version = data.get("version") if isinstance(data, Mapping) else None
            raise ConfigError([f"architecture: version must be {FORMAT_VERSION}, got {version!r}"])
        rows = data.get("placements")
        if not isinstance(rows, list):
            raise ConfigError(["architecture: 'placements' must be a list"])
        placements, problems = [], []
        for number, row in enumerate(rows):
            try:
                placements.append(_placement_from_json(row))
            except ConfigError as error:
                problems += [f"architecture.placements[{number}]: {problem}" for problem in error.problems]
        if problems:
            raise ConfigError(problems)
        return cls.of(placements)


_FIELDS: Mapping[str, type] = {"stack": str, "layer": int, "role": str, "module": str, "size": int}


def _placement_from_json(row: Any) -> Placement:
    if not isinstance(row, dict):
        raise ConfigError(["must be a mapping"])
    problems = [f"unknown key '{key}'" for key in row if key not in {*_FIELDS, "options"}]
    for name, kind in _FIELDS.items():
        if type(row.get(name)) is not kind:
            problems.append(f"'{name}' must be {'text' if kind is str else 'a whole number'}")
    options = row.get("options", {})
    if not isinstance(options, dict) or not all(isinstance(v, bool | int | float | str) for v in options.values()):
        problems.append("'options' must map names to numbers or words")
    if problems:
        raise ConfigError(problems)
    return place(row["stack"], row["layer"], row["role"], row["module"], row["size"], options)


def _order(p: Placement) -> tuple[str, int, str, str, int, str]:
    return (p.stack, p.layer, p.role, p.module, p.size, repr(p.options))
