"""A search space bound to a model and a budget: named parameters on one side, architectures on the other.

How its points are drawn and mended is in `autopeft.space.sampling`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import numpy as np

from autopeft.errors import BudgetError, ConfigError
from autopeft.space import sampling
from autopeft.space.anatomy import Anatomy
from autopeft.space.architecture import Architecture
from autopeft.space.building import Builder
from autopeft.space.cheapest import cheapest_points
from autopeft.space.compile import compile_space
from autopeft.space.feasible import Bounds, FeasibleSet, tightest
from autopeft.space.layout import Cost, Layout
from autopeft.space.modules import Scalar
from autopeft.space.moves import Moves, changed
from autopeft.space.named import forced_by, named_point
from autopeft.space.parameters import Choices, Parameter, Params, first_on, middle
from autopeft.space.reading import read_params
from autopeft.space.repair import grown
from autopeft.space.rows import Tables, TooManyError
from autopeft.space.share import Share, share_of_space
from autopeft.space.spec import SpaceSpec
from autopeft.space.units import Structure


@dataclass(frozen=True)
class Candidate:
    """One point of a space: what a trial would train."""

    params: tuple[tuple[str, Scalar], ...]
    """The active parameters, in the order of the space."""
    training: tuple[tuple[str, Scalar], ...]
    """Training settings that the point decides, overriding the recipe's; of one kind: `modules.lora.learning_rate`."""
    space: "SearchSpace" = field(repr=False, compare=False)

    @cached_property
    def architecture(self) -> Architecture:
        return self.space.build(dict(self.params))

    @cached_property
    def least(self) -> Cost:
        """What it adds to the model, sizes that fill the budget taken as 1; without building the architecture."""
        return self.space.layout.measure(dict(self.params))

    @property
    def measured(self) -> tuple[int, int]:
        """(least stored parameters, placements)."""
        return self.least[:2]

    @cached_property
    def counts(self) -> tuple[int, int]:
        """(stored, trained) adapter parameters, exactly."""
        if self.space.structure.fills:
            return self.space.builder.count(dict(self.params))
        return self.least.stored, self.least.trained

    @property
    def stored(self) -> int:
        """Stored adapter parameters."""
        return self.counts[0]

    @property
    def trained(self) -> int:
        """Trained adapter parameters."""
        return self.counts[1]


class SearchSpace:
    """A `SpaceSpec` on one model.

    `budget` is the most stored parameters that an architecture may have, `max_trained` the most trained ones; None: no
    bound.
    """

    def __init__(
        self, spec: SpaceSpec, anatomy: Anatomy, budget: int | None = None, max_trained: int | None = None
    ) -> None:
        """
        Raises:
            ConfigError: nothing of the space can stand in the model; or it fills a budget and none is given.
        """
        self.spec, self.anatomy, self.budget, self.max_trained = spec, anatomy, budget, max_trained
        self.structure: Structure = compile_space(spec, anatomy)
        self.layout = Layout(spec, self.structure, anatomy, budget)
        self.builder = Builder(self.layout, spec.fill, max_trained)
        self.tables = Tables(self.structure, self.layout)
        training = (p for p in self.structure.parameters if p.is_training)
        self._training = tuple((p.name, p.setting or p.name) for p in training)
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
        return self.bind(self.canonical(params))

    def decode(self, params: Params) -> Architecture:
        """The architecture of these params; ValueError as in `canonical`."""
        return self.build(self.canonical(params))

    def build(self, active: Params) -> Architecture:
        """The architecture of params that are canonical."""
        return self.builder.build(active)

    def bind(self, active: dict[str, Scalar], least: Cost | None = None) -> Candidate:
        """The point of params that are canonical, with its least cost where that is known."""
        candidate = Candidate(
            tuple(active.items()),
            tuple([(setting, active[name]) for name, setting in self._training if name in active]),
            self,
        )
        if least is not None:
            candidate.__dict__["least"] = least  # where `cached_property` looks
        return candidate

    def encode(self, architecture: Architecture, training: Mapping[str, Scalar] | None = None) -> dict[str, Scalar]:
        """Canonical params that `decode` turns into the architecture; training settings not given take their middle.

        Raises:
            ValueError: the architecture is not in the space.
        """
        structural = [p for p in self.parameters if p.name in ("groups", "pattern", "allocation")]
        given = {p.name: (training or {}).get(p.setting or p.name, middle(p)) for p in self.parameters if p.is_training}
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
        """Not empty, keeps the space's constraints, and is within the budget (and trains no more than is allowed)."""
        stored, n_placements, trained = candidate.least
        if not n_placements or (self.budget is not None and stored > self.budget):
            return False
        if self.max_trained is not None and trained > self.max_trained:
            return False
        return not self.structure.is_constrained or self.keeps_constraints(dict(candidate.params))

    def excess(self, candidate: Candidate) -> float:
        """How many times over its budgets the point is at least: above 1 it does not fit; 0 without a budget."""
        stored, _, trained = candidate.least
        of_budget = 0.0 if self.budget is None else stored / self.budget
        return of_budget if self.max_trained is None else max(of_budget, trained / self.max_trained)

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
        """The point with one active parameter changed; what becomes active takes its first value that is on."""
        return self.bind(changed(self, dict(active), name, value))

    # ---- feasible points

    def sample(self, rng: np.random.Generator) -> Candidate:
        """A valid point at random; `autopeft.space.sampling` says with what probability.

        Raises:
            BudgetError: no architecture fits; names the smallest reachable budget.
        """
        return sampling.sample(self, rng)

    @cached_property
    def feasible(self) -> FeasibleSet | None:
        """The set that samples are drawn from; None without a budget and for spaces that cannot be tabulated."""
        if self.budget is None:
            return None
        try:
            return tightest(self.tables, Bounds(self.budget, self.max_trained), "prior")
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
            candidate = self.bind(params)
            if candidate.least.n_placements and self.keeps_constraints(params):
                yield candidate

    def draw(self, rng: np.random.Generator) -> dict[str, Scalar]:
        """Params at random, every active parameter uniform over its values; within the budget or not."""
        return self.completed({}, rng)

    def completed(self, given: Params, rng: np.random.Generator) -> dict[str, Scalar]:
        """Active params: those given, which are known to be valid, the others at random."""
        active: dict[str, Scalar] = {}
        for parameter in self.parameters:
            if parameter.is_active(active):
                value = given.get(parameter.name)
                active[parameter.name] = parameter.domain.sample(rng) if value is None else value
        return active

    def repair(self, params: Params, rng: np.random.Generator) -> Candidate:
        """The point itself if it is valid, else one near it: constraints restored, then shrunk until it fits.

        Raises:
            BudgetError: no architecture fits; names the smallest reachable budget.
        """
        return sampling.repair(self, params, rng)

    def grow(self, params: Params, rng: np.random.Generator) -> Candidate:
        """A valid point enlarged by random steps until no single step fits into the budget."""
        return grown(self, self.candidate(params), rng)

    def neighbours(self, params: Params) -> Iterator[Candidate]:
        """Valid points that differ in one parameter; what becomes active takes its first value that is on."""
        moves = Moves(self, self.candidate(params))
        for parameter in self.parameters:
            if parameter.name not in moves.active:
                continue
            for value in parameter.domain.near(moves.active[parameter.name]):
                candidate = moves.to(parameter.name, value)
                if self.is_valid(candidate):
                    yield candidate

    def infeasible(self) -> BudgetError:
        """The error that names the smallest reachable budget and the dimension that forces it."""
        candidates, n_model = self.smallest_candidates, self.anatomy.n_parameters
        best = min(candidates, key=lambda c: c.least.stored)
        if self.budget is None or best.least.stored > self.budget:
            option, limit, least = "budget", self.budget, best.least.stored
        else:
            fitting = [c for c in candidates if c.least.stored <= self.budget]
            best = min(fitting, key=lambda c: c.least.trained)
            option, limit, least = "max-trained", self.max_trained, best.least.trained
        what = "parameters" if option == "budget" else "trained parameters"
        return BudgetError(
            f"--{option}: no architecture of the search space fits into {limit:,} {what}. The smallest has "
            f"{least:,} ({100 * least / n_model:.4f}%); {forced_by(self, best)}. Give at least --{option} {least}"
        )

    @cached_property
    def smallest_candidates(self) -> tuple[Candidate, ...]:
        """For each way to hold just one module (or as few as the space allows): its cheapest point, cheapest first.

        Raises:
            ConfigError: the space holds no architecture.
        """
        found = [self.bind(self.complete(params, first_on)) for params in cheapest_points(self.tables)]
        valid = [c for c in found if c.least.n_placements and self.keeps_constraints(dict(c.params))]
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
        return candidate.stored

    def count_many(self, points: list[Params]) -> list[int]:
        """Stored parameters of many points (active params), exactly; no architecture is built."""
        count = self.builder.count
        return [count(active)[0] for active in points]

    def named_points(self) -> dict[str, Candidate | str]:
        """The space's named points; in place of one that does not exist on this model, the reason."""
        found: dict[str, Candidate | str] = {}
        for name, given in self.spec.points.items():
            try:
                found[name] = named_point(self, given)
            except ValueError as error:
                found[name] = str(error)
        return found
