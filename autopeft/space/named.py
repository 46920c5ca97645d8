"""Points of a space in words: those that its YAML names, and what forces the smallest one."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from autopeft.errors import did_you_mean
from autopeft.space.choices import FILL
from autopeft.space.modules import Scalar
from autopeft.space.parameters import Choices, Parameter, middle

if TYPE_CHECKING:
    from autopeft.space.search_space import Candidate, SearchSpace


def named_point(space: "SearchSpace", given: Mapping[str, Scalar]) -> "Candidate":
    """The point that a space's YAML names.

    Raises:
        ValueError: it does not exist on this model; says why.
    """
    used: set[str] = set()

    def choose(parameter: Parameter) -> Scalar:
        names = [name for name in given if fnmatchcase(parameter.name, name)]
        used.update(names)
        if not names:
            return _off_or_first(parameter)
        exact = parameter.name if parameter.name in given else names[-1]
        value = given[exact]
        value = float(value) if not isinstance(parameter.domain, Choices) and type(value) is int else value
        if not parameter.domain.contains(value):
            raise ValueError(f"{parameter.name} cannot be {value!r} here")
        return value

    candidate = space.candidate(space.complete({}, choose))
    known = {p.name for p in space.parameters}
    for name in given:
        if name not in used and not any(fnmatchcase(other, name) for other in known):
            raise ValueError(f"there is no '{name}' here{did_you_mean(name, known)}")
    return candidate


def forced_by(space: "SearchSpace", smallest: "Candidate") -> str:
    """The dimension with the most parameters in the smallest architecture."""
    active = dict(smallest.params)
    costs = []
    for unit in space.structure.in_force(active):
        for entry in unit.entries:
            positions = space.layout.positions(unit, entry, active)
            values = tuple(active.get(name) for name in entry.counted_names)
            cost = space.layout.entry_cost(entry, space.layout.tally(positions), values)
            costs.append((cost.stored, len(positions) if cost.n_placements else 0, unit, entry))
    stored, n_layers, unit, entry = max(costs, key=lambda item: item[0])
    size = entry.value("size", active)
    why = "is at least" if entry.size_parameter else "is fixed at"
    layers = "1 layer" if n_layers == 1 else f"{n_layers} layers"
    forced = f"{entry.size_name} forces it: it {why} {1 if size == FILL else size}, in {layers}"
    if unit.group is not None and (entry.depth is None):
        forced += f" (group {unit.group} of {space.layout.grouping(active)[0]})"
    return f"{forced}, {stored:,} parameters"


def _off_or_first(parameter: Parameter) -> Scalar:
    return parameter.domain.values[0] if isinstance(parameter.domain, Choices) else middle(parameter)
