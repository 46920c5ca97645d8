"""A search space bound to a model and a budget: named parameters on one side, architectures on the other.

A sample has every active parameter uniform over its values, on condition that the point is valid and within the budget;
exactly so at every budget, tight or loose (see `autopeft.space.feasible`). Only spaces with very many masks or depths
(thousands of states) are sampled by rejection, and repaired where that finds nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import product

import numpy as np

from autopeft.errors import BudgetError, ConfigError
from autopeft.space.anatomy import Anatomy
from autopeft.space.architecture import Architecture, Placement, place
from autopeft.space.cheapest import cheapest_points
from autopeft.space.choices import FILL
from autopeft.space.compile import compile_space
from autopeft.space.counting import count_placement
from autopeft.space.feasible import FeasibleSet
from autopeft.space.fill import fill_budget
from autopeft.space.groups import layer_weights
from autopeft.space.layout import Layout
from autopeft.space.modules import Scalar
from autopeft.space.named import forced_by, named_point
from autopeft.space.parameters import Choices, Parameter, Params, first_on, middle
from autopeft.space.reading import read_params
from autopeft.space.repair import grown, shrunk
from autopeft.space.rows import Tables, TooManyError
from autopeft.space.share import Share, share_of_space
from autopeft.space.spec import SpaceSpec
from autopeft.space.units import Structure

_DRAWS = 500
"""Draws before a sample is taken from the smallest points instead."""
_DOUBTFUL = 20
"""Draws after which it is looked up whether anything fits at all."""


@dataclass(frozen=True)
class Candidate:
    """One point of a space: what a trial would train."""

    params: tuple[tuple[str, Scalar], ...]
    """The active parameters, in the order of the space."""
    training: tuple[tuple[str, Scalar], ...]
    """Training settings that the point decides, overriding the recipe's."""
    space: "SearchSpace" = field(repr=False, compare=False)

    @cached_property
    def architecture(self) -> Architecture:
        return self.space.build(dict(self.params))

    @cached_property
    def measured(self) -> tuple[int, int]:
        """(least stored parameters, placements), without building the architecture."""
        return self.space.layout.measure(dict(self.params))

    @cached_property
    def stored(self) -> int:
        """Stored adapter parameters."""
        return self.space.count(self)


class SearchSpace:
    """A `SpaceSpec` on one model. `budget` is the most stored parameters an architecture may have; None: no bound."""

    def __init__(self, spec: SpaceSpec, anatomy: Anatomy, budget: int | None = None) -> None:
        """
        Raises:
            ConfigError: nothing of the space can stand in the model; or it fills a budget and none is given.
        """
        self.spec, self.anatomy, self.budget = spec, anatomy, budget
        self.structure: Structure = compile_space(spec, anatomy)
        self.layout = Layout(spec, self.structure, anatomy, budget)
        self.tables = Tables(self.structure, self.layout)
        self._training = tuple(p.name for p in self.structure.parameters if p.is_training)
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
        return self._candidate(self.canonical(params))

    def decode(self, params: Params) -> Architecture:
        """The architecture of these params; ValueError as in `canonical`."""
        return self.build(self.canonical(params))

    def encode(self, architecture: Architecture, training: Mapping[str, Scalar] | None = None) -> dict[str, Scalar]:
        """Canonical params that `decode` turns into the architecture; training settings not given take their middle.

        Raises:
            ValueError: the architecture is not in the space.
        """
        structural = [p for p in self.parameters if p.name in ("groups", "pattern", "allocation")]
        given = {p.name: (training or {}).get(p.name, middle(p)) for p in self.parameters if p.is_training}
        ways = (True, False) if self.structure.fills else (False,)
        for *values, prefer_fill in product(
            *(p.domain.values for p in structural if isinstance(p.domain, Choices)), ways
        ):
            params: dict[str, Scalar] = dict(zip((p.name for p in structural), values, strict=True)) | given
            try:
                params |= read_params(architecture, params, self.layout, bool(prefer_fill))
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
        stored, n_placements = candidate.measured
        within = self.budget is None or stored <= self.budget
        return n_placements > 0 and within and self.keeps_constraints(dict(candidate.params))

    def keeps_constraints(self, active: Params) -> bool:
        """Every unit holds a module where it must, and no combination that is excluded."""
        return not self.structure.is_constrained or not any(True for _ in self.structure.breaches(active))

    def complete(self, params: Params, choose: Callable[[Parameter], Scalar]) -> dict[str, Scalar]:
        """The active params, those that are missing (or no longer valid) chosen by `choose(parameter)`."""
        active: dict[str, Scalar] = {}
        for parameter in self.parameters:
            if parameter.is_active(active):
                given = params.get(parameter.name)
                known = given is not None and parameter.domain.contains(given)
                active[parameter.name] = given if known and given is not None else choose(parameter)
        return active

    def changed(self, active: Params, name: str, value: Scalar) -> Candidate:
        """The point with one parameter changed; parameters that become active take their first value that is on."""
        params: dict[str, Scalar] = {}
        for parameter in self.parameters:
            if parameter.is_active(params):
                kept = value if parameter.name == name else active.get(parameter.name)
                params[parameter.name] = first_on(parameter) if kept is None else kept
        return self._candidate(params)

    # ---- feasible points

    def sample(self, rng: np.random.Generator) -> Candidate:
        """A valid point at random; the module's docstring says with what probability.

        Raises:
            BudgetError: no architecture fits; names the smallest reachable budget.
        """
        feasible = self.feasible
        if feasible is not None and not feasible.weights.any():
            raise self.infeasible()
        for number in range(_DRAWS):
            if number == _DOUBTFUL and not self._is_reachable:
                raise self.infeasible()
            active = self._completed(feasible.draw(rng) if feasible else {}, rng)
            candidate = self._candidate(active)
            if self.is_valid(candidate):
                return candidate
        return self.repair(self.draw(rng), rng) if feasible is None else self._smallest_at_random(rng)

    @cached_property
    def feasible(self) -> FeasibleSet | None:
        """The set that samples are drawn from; None without a budget and for spaces that cannot be tabulated."""
        if self.budget is None:
            return None
        try:
            return FeasibleSet(self.tables, self.budget, "prior")
        except TooManyError:
            return None

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
                for value in domain.values if searched and isinstance(domain, Choices) else (middle(rest[0]),):
                    yield from extend({**active, rest[0].name: value}, rest[1:])

        for params in extend({}, self.parameters):
            candidate = self._candidate(params)
            if candidate.measured[1] and self.keeps_constraints(params):
                yield candidate

    def draw(self, rng: np.random.Generator) -> dict[str, Scalar]:
        """Params at random, every active parameter uniform over its values; within the budget or not."""
        return self._completed({}, rng)

    def repair(self, params: Params, rng: np.random.Generator) -> Candidate:
        """The point itself if it is valid, else one near it: constraints restored, then shrunk until it fits.

        Raises:
            BudgetError: no architecture fits; names the smallest reachable budget.
        """
        active = self._restored(self.complete(params, lambda p: p.domain.sample(rng)), rng)
        candidate = shrunk(self, self._candidate(active), rng)
        return candidate if self.is_valid(candidate) else self._nearest_valid(candidate, rng)

    def grow(self, params: Params, rng: np.random.Generator) -> Candidate:
        """A valid point enlarged by random steps until no single step fits into the budget."""
        return grown(self, self.candidate(params), rng)

    def neighbours(self, params: Params) -> Iterator[Candidate]:
        """Valid points that differ in one parameter; parameters that become active take their first value."""
        active = self.canonical(params)
        seen = {tuple(active.items())}
        for parameter in self.parameters:
            if parameter.name not in active:
                continue
            for value in parameter.domain.near(active[parameter.name]):
                candidate = self.changed(active, parameter.name, value)
                if candidate.params not in seen and self.is_valid(candidate):
                    seen.add(candidate.params)
                    yield candidate

    def infeasible(self) -> BudgetError:
        """The error that names the smallest reachable budget and the dimension that forces it."""
        best = min(self.smallest_candidates, key=lambda c: c.measured[0])
        least = best.measured[0]
        share = 100 * least / self.anatomy.n_parameters
        return BudgetError(
            f"--budget: no architecture of the search space fits into {self.budget:,} parameters. The smallest has "
            f"{least:,} ({share:.4f}%); {forced_by(self, best)}. Give at least --budget {least}"
        )

    @cached_property
    def smallest_candidates(self) -> tuple[Candidate, ...]:
        """For each way to hold just one module (or as few as the space allows): its cheapest point, cheapest first.

        Raises:
            ConfigError: the space holds no architecture.
        """
        found = [self._candidate(self.complete(params, first_on)) for params in cheapest_points(self.tables)]
        valid = [c for c in found if c.measured[1] and self.keeps_constraints(dict(c.params))]
        if not valid:
            raise ConfigError([f"search space '{self.spec.title}' holds no architecture for {self.anatomy.model_type}"])
        return tuple(valid)

    @cached_property
    def largest_candidate(self) -> Candidate:
        """The point with every module on at its largest, shrunk until it is within the budget."""
        largest = self.complete({}, lambda p: p.domain.values[-1] if isinstance(p.domain, Choices) else middle(p))
        return self.repair(largest, np.random.default_rng(0))

    # ---- facts

    def share(self, seed: int = 0) -> Share:
        """How much of the space is within the budget: added up where that is possible, else sampled."""
        return share_of_space(self, seed)

    @property
    def cardinality(self) -> int:
        """Points with at least one module, training settings apart, inactive parameters counted once."""
        return self.tables.cardinality

    def count(self, candidate: Candidate) -> int:
        """Stored parameters, exactly."""
        if not self.structure.fills or candidate.measured[1] == 0:
            return candidate.measured[0]
        return sum(self._cost(placement) for placement in candidate.architecture.placements)

    def count_many(self, points: list[Params]) -> list[int]:
        """Stored parameters of many points (active params); no architecture is built where nothing is filled."""
        if self.structure.fills:
            return [self._candidate(dict(active)).stored for active in points]
        measure = self.layout.measure
        return [measure(active)[0] for active in points]

    def named_points(self) -> dict[str, Candidate | str]:
        """The space's named points; in place of one that does not exist on this model, the reason."""
        found: dict[str, Candidate | str] = {}
        for name, given in self.spec.points.items():
            try:
                found[name] = named_point(self, given)
            except ValueError as error:
                found[name] = str(error)
        return found

    # ---- inside

    def _candidate(self, active: dict[str, Scalar]) -> Candidate:
        return Candidate(tuple(active.items()), tuple((name, active[name]) for name in self._training), self)

    def _completed(self, given: Params, rng: np.random.Generator) -> dict[str, Scalar]:
        """Active params: those given, which are known to be valid, the others at random."""
        active: dict[str, Scalar] = {}
        for parameter in self.parameters:
            if parameter.is_active(active):
                value = given.get(parameter.name)
                active[parameter.name] = parameter.domain.sample(rng) if value is None else value
        return active

    @cached_property
    def _is_reachable(self) -> bool:
        return self.budget is None or self.smallest_candidates[0].measured[0] <= self.budget

    def _smallest_at_random(self, rng: np.random.Generator) -> Candidate:
        smallest = [c for c in self.smallest_candidates if self.is_valid(c)]
        if not smallest:
            raise self.infeasible()
        kept = dict(smallest[int(rng.integers(len(smallest)))].params)
        return self._candidate(self._completed({n: v for n, v in kept.items() if n not in self._training}, rng))

    def _nearest_valid(self, candidate: Candidate, rng: np.random.Generator) -> Candidate:
        """Another valid point, with the training settings of the one that could not be mended."""
        other = self._smallest_at_random(rng) if self.feasible is None else self.sample(rng)
        return self._candidate(dict(other.params) | dict(candidate.training))

    def _restored(self, active: dict[str, Scalar], rng: np.random.Generator) -> dict[str, Scalar]:
        """Params that keep the constraints which do not hang on the budget, if a few tries find such."""
        for _ in range(_DRAWS):
            broken = next(self.structure.breaches(active), None)
            if broken is None:
                break
            entry = broken.entries[int(rng.integers(len(broken.entries)))]
            others = [p for p in entry.parameters if p.name in active or not active]
            if not others:
                continue
            parameter = others[int(rng.integers(len(others)))]
            changed = {**active, parameter.name: parameter.domain.sample(rng)}
            active = self.complete(changed, lambda p: p.domain.sample(rng))
        return active

    def build(self, active: Params) -> Architecture:
        """The architecture of params that are canonical."""
        placements: list[Placement] = []
        filled: list[Placement] = []
        for unit in self.structure.in_force(active):
            for entry in unit.entries:
                size = entry.value("size", active)
                if size == 0:
                    continue
                positions = self.layout.positions(unit, entry, active)
                if isinstance(size, str) and size != FILL:
                    values = tuple(active.get(name) for name in entry.counted_names)
                    settings = self.layout.settings(entry, values)
                    size = self.layout.share_size(entry, self.layout.tally(positions), settings)
                options = tuple((name, entry.value(name, active)) for name in entry.options)
                for stack, index in positions:
                    layer = self.anatomy.layer(stack, index)
                    assert layer is not None
                    for role in entry.roles_at(layer, entry.value("roles", active)):
                        whole = 1 if size == FILL else int(size)
                        made = _place(stack, index, role, entry.kind, whole, options)
                        (filled if size == FILL else placements).append(made)
        if filled:
            assert self.budget is not None
            allocation = str(self.structure.value("allocation", active))
            target = int(self.spec.fill * self.budget + 1e-6)
            weights = layer_weights(self.anatomy, allocation)
            placements += fill_budget(filled, placements, weights, self.anatomy, target)
        return Architecture.of(placements)

    def _cost(self, placement: Placement) -> int:
        cost = self._costs.get(placement)
        if cost is None:
            cost = self._costs[placement] = count_placement(placement, self.anatomy)
        return cost

    @cached_property
    def _costs(self) -> dict[Placement, int]:
        return {}


@lru_cache(maxsize=100_000)
def _place(
    stack: str, layer: int, role: str, module: str, size: int, options: tuple[tuple[str, Scalar], ...]
) -> Placement:
    return place(stack, layer, role, module, size, dict(options))
