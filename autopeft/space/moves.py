"""Changes of one parameter of a point, measured by what they change: local searches look at very many of them."""

from typing import TYPE_CHECKING

from autopeft.space.layout import Cost
from autopeft.space.modules import Scalar
from autopeft.space.parameters import first_on

if TYPE_CHECKING:
    from autopeft.space.search_space import Candidate, SearchSpace


class Moves:
    """The points that differ from `candidate` in one parameter."""

    def __init__(self, space: "SearchSpace", candidate: "Candidate") -> None:
        self._space = space
        self.candidate = candidate
        self.active = dict(candidate.params)
        self._grouping = space.layout.grouping(self.active)
        self._here: dict[int, Cost] = {}
        """What each entry adds to the point, as far as it was asked for."""

    def to(self, name: str, value: Scalar) -> "Candidate":
        """The point with one active parameter changed."""
        params = changed(self._space, self.active, name, value)
        return self._space.bind(params, self._measured(name, params))

    def _measured(self, name: str, params: dict[str, Scalar]) -> Cost | None:
        """What the changed point adds at least; None where that must be added up anew."""
        structure, layout = self._space.structure, self._space.layout
        owner = structure.owners.get(name)
        if owner is None:
            return self.candidate.least if name in structure.uncounted else None
        unit, entry = owner
        before = self._here.get(entry.index)
        if before is None:
            before = self._here[entry.index] = layout.entry_at(unit, entry, self._grouping, self.active)
        after = layout.entry_at(unit, entry, self._grouping, params)
        whole = self.candidate.least
        return Cost(whole[0] + after[0] - before[0], whole[1] + after[1] - before[1], whole[2] + after[2] - before[2])


def changed(space: "SearchSpace", active: dict[str, Scalar], name: str, value: Scalar) -> dict[str, Scalar]:
    """Active params with one of them changed; what becomes active takes its first value that is on."""
    before = active[name]
    for values in space.structure.watched.get(name, ()):
        if (before in values) != (value in values):
            break
    else:
        params = active.copy()
        params[name] = value
        return params
    params = {}
    for parameter in space.parameters:
        if parameter.is_active(params):
            kept = value if parameter.name == name else active.get(parameter.name)
            params[parameter.name] = first_on(parameter) if kept is None else kept
    return params
