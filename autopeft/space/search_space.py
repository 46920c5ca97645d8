"""A search space bound to a model and a budget: named parameters on one side, architectures on the other.

Sampling is uniform over the values of each active parameter, and by rejection uniform over the points within the
budget; where the budget is so tight that rejection finds nothing, the last draw is repaired (shrunk to fit), which
prefers architectures at the budget's edge.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product

import numpy as np

from autopeft.errors import BudgetError, ConfigError
from autopeft.space.anatomy import Anatomy
from autopeft.space.architecture import Architecture, Placement, place
from autopeft.space.compile import Entry, Structure, Unit, compile_space
from autopeft.space.counting import count_placement
from autopeft.space.fill import fill_budget
from autopeft.space.groups import group_of_layers, layer_weights
from autopeft.space.modules import Scalar
from autopeft.space.parameters import Choices, Parameter, Params
from autopeft.space.spec import FILL, SpaceSpec, as_tuple

_REJECTIONS = 100
"""Draws before a sample is repaired instead."""


@dataclass(frozen=True)
class Candidate:
    """One point of a space: what a trial would train."""

    params: tuple[tuple[str, Scalar], ...]
    """The active parameters, in the order of the space."""
    architecture: Architecture
    training: tuple[tuple[str, Scalar], ...]
    """Training settings that the point decides, overriding the recipe's."""
    stored: int
    """Stored adapter parameters."""


class SearchSpace:
    """A `SpaceSpec` on one model. `budget` is the most stored parameters an architecture may have; None: no bound."""

    def __init__(self, spec: SpaceSpec, anatomy: Anatomy, budget: int | None = None) -> None:
        """
        Raises:
            ConfigError: nothing of the space can stand in the model; or it fills a budget and none is given.
        """
        self.spec, self.anatomy, self.budget = spec, anatomy, budget
        self.structure: Structure = compile_space(spec, anatomy)
        patterns = map(str, as_tuple(spec.layers.pattern))
        self._groups_by_pattern = {name: group_of_layers(anatomy, spec.layers.groups, name) for name in patterns}
        self._costs: dict[Placement, int] = {}
        if budget is None and self.structure.fills:
            raise ConfigError([f"search space '{spec.title}' fills a budget: give one with --budget"])

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """All dimensions; parents come before the parameters that hang on them."""
        return self.structure.parameters

    @property
    def notes(self) -> tuple[str, ...]:
        """What of the space the model cannot hold, in words."""
        return self.structure.notes

    # ---- params <-> candidates

    def canonical(self, params: Params) -> dict[str, Scalar]:
        """Only the active parameters, in order.

        Raises:
            ValueError: an active parameter is missing or has a value outside its domain.
        """
        active: dict[str, Scalar] = {}
        for parameter in self.parameters:
            if not parameter.is_active(active):
                continue
            if parameter.name not in params:
                raise ValueError(f"parameter '{parameter.name}' is missing")
            value = params[parameter.name]
            if not parameter.domain.contains(value):
                raise ValueError(f"parameter '{parameter.name}' cannot be {value!r}")
            active[parameter.name] = value
        return active

    def candidate(self, params: Params) -> Candidate:
        """The point that these params stand for; ValueError as in `canonical`."""
        active = self.canonical(params)
        architecture = self._build(active)
        stored = self._stored(architecture)
        training = tuple((p.name, active[p.name]) for p in self.parameters if p.is_training)
        return Candidate(tuple(active.items()), architecture, training, stored)

    def decode(self, params: Params) -> Architecture:
        """The architecture of these params; ValueError as in `canonical`."""
        return self._build(self.canonical(params))

    def encode(self, architecture: Architecture, training: Mapping[str, Scalar] | None = None) -> dict[str, Scalar]:
        """Canonical params that `decode` turns into the architecture; training settings not given take their middle.

        Raises:
            ValueError: the architecture is not in the space.
        """
        structural = [p for p in self.parameters if p.name in ("pattern", "allocation")]
        for values in product(*(p.domain.values for p in structural if isinstance(p.domain, Choices))):
            params: dict[str, Scalar] = dict(zip((p.name for p in structural), values, strict=True))
            try:
                params |= self._read(architecture, params)
                for parameter in self.parameters:
                    if parameter.is_training:
                        params[parameter.name] = (training or {}).get(parameter.name, _middle(parameter))
                if self.decode(params) == architecture:
                    return self.canonical(params)
            except ValueError:
                continue
        raise ValueError(f"architecture {architecture.id} is not in the search space")

    def contains(self, architecture: Architecture) -> bool:
        """Whether some params decode to it and it is within the budget."""
        try:
            return self.is_valid(self.candidate(self.encode(architecture)))
        except ValueError:
            return False

    def is_valid(self, candidate: Candidate) -> bool:
        """Not empty, keeps the space's constraints, and is within the budget."""
        within = self.budget is None or candidate.stored <= self.budget
        return bool(candidate.architecture) and within and self._keeps_constraints(dict(candidate.params))

    def complete(self, params: Params, choose: Callable[[Parameter], Scalar]) -> dict[str, Scalar]:
        """The active params, those that are missing (or no longer valid) chosen by `choose(parameter)`."""
        active: dict[str, Scalar] = {}
        for parameter in self.parameters:
            if parameter.is_active(active):
                given = params.get(parameter.name)
                known = given is not None and parameter.domain.contains(given)
                active[parameter.name] = given if known and given is not None else choose(parameter)
        return active

    # ---- feasible points

    def sample(self, rng: np.random.Generator) -> Candidate:
        """A valid point at random.

        Raises:
            BudgetError: no architecture fits; names the smallest reachable budget.
        """
        for _ in range(_REJECTIONS):
            candidate = self.candidate(self.draw(rng))
            if self.is_valid(candidate):
                return candidate
        return self.repair(dict(candidate.params), rng)

    def points(self) -> Iterator[Candidate]:
        """Every point with at least one module, within the budget or not, training settings at their middle."""

        def extend(active: dict[str, Scalar], rest: tuple[Parameter, ...]) -> Iterator[dict[str, Scalar]]:
            if not rest:
                yield active
            elif not rest[0].is_active(active):
                yield from extend(active, rest[1:])
            else:
                domain = rest[0].domain
                searched = isinstance(domain, Choices) and not rest[0].is_training
                for value in domain.values if searched and isinstance(domain, Choices) else (_middle(rest[0]),):
                    yield from extend({**active, rest[0].name: value}, rest[1:])

        for params in extend({}, self.parameters):
            candidate = self.candidate(params)
            if candidate.architecture and self._keeps_constraints(params):
                yield candidate

    def draw(self, rng: np.random.Generator) -> dict[str, Scalar]:
        """Params at random, within the budget or not."""
        return self.complete({}, lambda parameter: parameter.domain.sample(rng))

    def repair(self, params: Params, rng: np.random.Generator) -> Candidate:
        """The point itself if it is valid, else one near it, shrunk by random steps until it fits.

        Raises:
            BudgetError: no architecture fits; names the smallest reachable budget.
        """
        candidate = self.candidate(self._restored(params, rng))
        while self.budget is not None and candidate.stored > self.budget:
            smaller = self._shrink(candidate, rng)
            if smaller is None:
                break
            candidate = smaller
        if self.is_valid(candidate):
            return candidate
        smallest = [c for c in self.smallest_candidates if self.is_valid(c)]
        if smallest:
            start = smallest[int(rng.integers(len(smallest)))]
            training = {n: v for n, v in candidate.params if n in {name for name, _ in start.training}}
            return self.candidate(dict(start.params) | training)
        raise self.infeasible()

    def neighbours(self, params: Params) -> Iterator[Candidate]:
        """Valid points that differ in one parameter; parameters that become active take their first value."""
        active = self.canonical(params)
        seen = {tuple(active.items())}
        for parameter in self.parameters:
            if parameter.name not in active:
                continue
            for value in parameter.domain.near(active[parameter.name]):
                changed = self.complete({**active, parameter.name: value}, _first)
                candidate = self.candidate(changed)
                if candidate.params not in seen and self.is_valid(candidate):
                    seen.add(candidate.params)
                    yield candidate

    def infeasible(self) -> BudgetError:
        """The error that names the smallest reachable budget and what forces it."""
        best = min(self.smallest_candidates, key=lambda c: c.stored)
        share = 100 * best.stored / self.anatomy.n_parameters
        parts = ", ".join(sorted({f"{p.module} {p.size} at {p.role}" for p in best.architecture.placements})[:4])
        return BudgetError(
            f"--budget: no architecture of the search space fits into {self.budget:,} parameters. The smallest has "
            f"{best.stored:,} ({share:.4f}%): {parts}. Give at least --budget {best.stored}"
        )

    @cached_property
    def smallest_candidates(self) -> tuple[Candidate, ...]:
        """For each way to hold just one module (or as few as the space allows): its cheapest point."""
        found: dict[str, Candidate] = {}
        spaces = self if self.budget is not None else SearchSpace(self.spec, self.anatomy, 0)
        patterns = next((p.domain for p in self.parameters if p.name == "pattern"), Choices((None,)))  # type: ignore[arg-type]
        assert isinstance(patterns, Choices)
        for pattern in patterns.values:
            start = {} if pattern is None else {"pattern": pattern}
            off = spaces.complete(start, spaces._cheapest)
            for unit in (None, *spaces.structure.units):
                for point in spaces._switched_on(off, unit):
                    candidate = spaces.candidate(point)
                    if candidate.architecture and spaces._keeps_constraints(point):
                        known = found.get(candidate.architecture.id)
                        found[candidate.architecture.id] = known or candidate
        if not found:
            raise ConfigError([f"search space '{self.spec.title}' holds no architecture for {self.anatomy.model_type}"])
        return tuple(found.values())

    @cached_property
    def largest_candidate(self) -> Candidate:
        """The point with every module on at its largest, shrunk until it is within the budget."""
        largest = self.complete({}, _largest)
        return self.repair(largest, np.random.default_rng(0))

    # ---- facts

    @cached_property
    def cardinality(self) -> int:
        """Points with at least one module, training settings apart, inactive parameters counted once."""
        return self.structure.cardinality

    # ---- inside

    def _restored(self, params: Params, rng: np.random.Generator) -> dict[str, Scalar]:
        """Complete params that keep the constraints which do not hang on the budget."""
        active = self.complete(dict(params), lambda parameter: parameter.domain.sample(rng))
        for unit in self.structure.units_to_hold(active):
            entries = [entry for entry in unit.entries if entry.size_parameter]
            if entries:
                entry = entries[int(rng.integers(len(entries)))]
                on = [size for size in entry.sizes if size != 0]
                active = self.complete({**active, entry.size_name: on[0]}, lambda p: p.domain.sample(rng))
        return active

    def _shrink(self, candidate: Candidate, rng: np.random.Generator) -> Candidate | None:
        """A cheaper valid-but-for-the-budget point one step away, at random; None where there is none."""
        active = dict(candidate.params)
        steps = [
            (parameter, value)
            for parameter in self.parameters
            if parameter.name in active and isinstance(parameter.domain, Choices) and not parameter.is_training
            for value in parameter.domain.near(active[parameter.name])
        ]
        for i in rng.permutation(len(steps)):
            parameter, value = steps[int(i)]
            changed = self.complete({**active, parameter.name: value}, _first)
            if not self._keeps_constraints(changed):
                continue
            smaller = self.candidate(changed)
            if smaller.architecture and smaller.stored < candidate.stored:
                return smaller
        return None

    def _keeps_constraints(self, active: Params) -> bool:
        return not any(True for _ in self.structure.units_to_hold(active))

    def _cheapest(self, parameter: Parameter) -> Scalar:
        """Off where it can be, else the smallest value."""
        if not isinstance(parameter.domain, Choices):
            return _middle(parameter)
        values = parameter.domain.values
        if values[0] is False:
            return False
        if "none" in values:
            return "none"
        return values[0] if not parameter.domain.ordered else min(values, key=lambda v: 1 if v == FILL else float(v))

    def _switched_on(self, off: dict[str, Scalar], unit: Unit | None) -> Iterator[dict[str, Scalar]]:
        """`off` with one module of the unit (or nothing, for None) at its smallest size and each of its sites."""
        layers = [p.name for p in self.parameters if p.name.startswith("layer.")]
        switches: list[dict[str, Scalar]] = [{name: True} for name in layers] or [{}]
        for switch in switches:
            if unit is None:
                yield self.complete(off | switch, self._cheapest)
                continue
            on = off | switch | ({unit.tuned_name: True} if unit.tuned_name else {})
            for entry in unit.entries:
                size = min((s for s in entry.sizes if s != 0), key=lambda s: 1 if s == FILL else float(s), default=None)
                if size is None:
                    continue
                sized = on | ({entry.size_name: size} if entry.size_parameter else {})
                roles = entry.role_values if len(entry.role_values) > 1 else (None,)
                for role in roles:
                    at = {} if role is None else {entry.option_name("roles"): role}
                    yield self.complete(sized | at, self._cheapest)

    def _build(self, active: Params) -> Architecture:
        placements: list[Placement] = []
        filled: list[Placement] = []
        for entry, positions in self._entries(active):
            size = entry.value("size", active)
            if size == 0:
                continue
            options = tuple((name, entry.value(name, active)) for name in entry.options)
            for stack, layer in positions:
                for role in entry.roles_at(self.anatomy, stack, layer, entry.value("roles", active)):
                    if size == FILL:
                        filled.append(_place(stack, layer, role, entry.kind, 1, options))
                    else:
                        placements.append(_place(stack, layer, role, entry.kind, int(size), options))
        if filled:
            assert self.budget is not None
            allocation = str(self.structure.value("allocation", active))
            weights = layer_weights(self.anatomy, allocation)
            placements += fill_budget(filled, placements, weights, self.anatomy, self.budget)
        return Architecture.of(placements)

    def _entries(self, active: Params) -> Iterator[tuple[Entry, list[tuple[str, int]]]]:
        """Every module setting that is in force, with the layers it is for."""
        groups = self._groups(active)
        on = [(s, i) for s, i, _ in self.anatomy.layers if self.structure.is_layer_on(s, i, active)]
        for unit in self.structure.units:
            if unit.tuned_name and not active.get(unit.tuned_name, False):
                continue
            positions = [at for at in on if unit.holds(at, groups)]
            for entry in unit.entries:
                yield entry, positions

    def _groups(self, active: Params) -> dict[tuple[str, int], int]:
        return self._groups_by_pattern[str(self.structure.value("pattern", active))]

    def _stored(self, architecture: Architecture) -> int:
        """Stored parameters; the cost of every placement is computed once."""
        total = 0
        for placement in architecture.placements:
            cost = self._costs.get(placement)
            if cost is None:
                cost = self._costs[placement] = count_placement(placement, self.anatomy)
            total += cost
        return total

    def _read(self, architecture: Architecture, structural: Params) -> dict[str, Scalar]:
        """Params read off an architecture, given its grouping."""
        groups = self._groups(structural)
        layers_on = {(p.stack, p.layer) for p in architecture.placements}
        params: dict[str, Scalar] = {}
        for parameter in self.parameters:
            if parameter.name.startswith("layer."):
                _, stack, index = parameter.name.split(".")
                params[parameter.name] = (stack, int(index)) in layers_on
        for unit in self.structure.units:
            inside = [p for p in architecture.placements if unit.holds((p.stack, p.layer), groups)]
            if unit.tuned_name:
                params[unit.tuned_name] = bool(inside)
            for entry in unit.entries:
                params |= entry.read([p for p in inside if entry.owns(p)], self.anatomy)
        return params


@lru_cache(maxsize=100_000)
def _place(
    stack: str, layer: int, role: str, module: str, size: int, options: tuple[tuple[str, Scalar], ...]
) -> Placement:
    return place(stack, layer, role, module, size, dict(options))


def _first(parameter: Parameter) -> Scalar:
    """The first value that is not `off`, the middle of an interval."""
    if isinstance(parameter.domain, Choices):
        return next((v for v in parameter.domain.values if v not in (0, False)), parameter.domain.values[0])
    return _middle(parameter)


def _largest(parameter: Parameter) -> Scalar:
    """The last value: the largest size, the switch that is on."""
    return parameter.domain.values[-1] if isinstance(parameter.domain, Choices) else _middle(parameter)


def _middle(parameter: Parameter) -> Scalar:
    domain = parameter.domain
    if isinstance(domain, Choices):
        return domain.values[len(domain.values) // 2]
    middle = (domain.low * domain.high) ** 0.5 if domain.log else (domain.low + domain.high) / 2
    return float(f"{middle:.4g}")
