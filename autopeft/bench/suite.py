"""The synthetic suites: surfaces over shipped spaces on BERT-base and RoBERTa-large at 0.5 %, with known optima.

Scores are in points: the optimum has 88, and the median of random architectures within the budget lies `gap` below it.
`optima.json` holds what takes minutes to compute, the best point of every surface and how it was found;
`autopeft bench optima` makes it anew.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import numpy as np

from autopeft.bench.anatomies import ANATOMIES
from autopeft.bench.running import Response
from autopeft.bench.surface import Family, Surface, stream
from autopeft.errors import UnknownNameError
from autopeft.space.budget import ParameterBudget
from autopeft.space.modules import Scalar
from autopeft.space.search_space import Candidate, SearchSpace
from autopeft.space.spec import load_space

OPTIMA = "optima.json"
BUDGET = "0.5%"
BEST_POINTS = 88.0
_MEDIAN_SAMPLES = 400


@dataclass(frozen=True)
class Drawn:
    """A surface of the suite by what it is drawn from."""

    space: str
    model: str
    family: Family
    seed: int


SUITE: Mapping[str, Drawn] = MappingProxyType(
    {
        "hybrid-12-layered": Drawn("hybrid", "bert-base", "layered", 1),
        "hybrid-12-patchy": Drawn("hybrid", "bert-base", "patchy", 2),
        "hybrid-12-pooled": Drawn("hybrid", "bert-base", "pooled", 3),
        "hybrid-24-layered": Drawn("hybrid", "roberta-large", "layered", 4),
        "hybrid-24-patchy": Drawn("hybrid", "roberta-large", "patchy", 5),
        "hybrid-24-pooled": Drawn("hybrid", "roberta-large", "pooled", 6),
        "autopeft-12-pooled": Drawn("autopeft", "bert-base", "pooled", 7),
        "autopeft-24-layered": Drawn("autopeft", "roberta-large", "layered", 8),
        "lora-12-patchy": Drawn("lora", "bert-base", "patchy", 9),
        "lora-24-pooled": Drawn("lora", "roberta-large", "pooled", 10),
    }
)
"""Seeds are counted up, none was chosen for what it draws."""
HELD_OUT: Mapping[str, Drawn] = MappingProxyType(
    {
        "held-hybrid-12-layered": Drawn("hybrid", "bert-base", "layered", 101),
        "held-hybrid-12-patchy": Drawn("hybrid", "bert-base", "patchy", 102),
        "held-hybrid-12-pooled": Drawn("hybrid", "bert-base", "pooled", 103),
        "held-hybrid-24-layered": Drawn("hybrid", "roberta-large", "layered", 104),
        "held-autopeft-12-layered": Drawn("autopeft", "bert-base", "layered", 107),
        "held-autopeft-24-layered": Drawn("autopeft", "roberta-large", "layered", 108),
        "held-lora-12-pooled": Drawn("lora", "bert-base", "pooled", 109),
        "held-lora-24-patchy": Drawn("lora", "roberta-large", "patchy", 110),
    }
)
"""Drawn when the samplers were finished. Who changes one looks at `SUITE` meanwhile, and at these once, at the end."""
SUITES: Mapping[str, Mapping[str, Drawn]] = MappingProxyType({"synthetic": SUITE, "held-out": HELD_OUT})
SURFACES: Mapping[str, Drawn] = MappingProxyType({**SUITE, **HELD_OUT})


@dataclass(frozen=True)
class Optimum:
    """What `optima.json` holds of a surface; `raw` values are before scaling."""

    raw: float
    raw_median: float
    """Of random architectures within the budget."""
    params: Mapping[str, Scalar]
    method: str
    drawn: str
    """What it belongs to: changes with the surface, the space, the model and the budget."""


@dataclass(frozen=True)
class SurfaceProblem:
    """A surface in a space within a budget: what a sampler is run on."""

    name: str
    drawn: Drawn
    space: SearchSpace
    surface: Surface
    optimum: Optimum

    @property
    def best(self) -> float:
        """Points of the best architecture within the budget."""
        return BEST_POINTS

    @property
    def without(self) -> float:
        """Of the model without adapters."""
        return self.points(0.0)

    @cached_property
    def gap(self) -> float:
        """Points between the median of random architectures and the best."""
        return float(stream("gap", self.drawn.seed).uniform(5.0, 10.0))

    @cached_property
    def noise(self) -> float:
        """Standard deviation of the scores of one architecture over training seeds, in points."""
        return float(stream("noise", self.drawn.seed).uniform(0.5, 1.0))

    @property
    def outliers(self) -> float:
        """Share of trainings that end 5 to 15 points lower."""
        return 0.03 if self.drawn.family == "patchy" else 0.0

    @cached_property
    def version(self) -> str:
        return _hash([self.optimum.drawn, self.optimum.raw, self.optimum.raw_median, self.gap, self.noise])

    def score(self, candidate: Candidate) -> float:
        """The noise-free score of an architecture in points, within the budget or not."""
        return self.points(self.surface.raw(candidate.architecture, dict(candidate.training)))

    def points(self, raw: float) -> float:
        return BEST_POINTS - self.gap * (self.optimum.raw - raw) / (self.optimum.raw - self.optimum.raw_median)

    def start(self, seed: int) -> "Trainings":
        return Trainings(self, seed)


@dataclass(frozen=True)
class Trainings:
    """The scores that one run sees."""

    problem: SurfaceProblem
    seed: int

    def respond(self, candidate: Candidate, number: int) -> Response:
        true = self.problem.score(candidate)
        return Response(candidate, true, true + self.noise(number))

    def over_budget(self, candidate: Candidate, number: int) -> float:
        """It is trained like any other, and Optuna is told its score."""
        return self.respond(candidate, number).observed

    def noise(self, number: int) -> float:
        """What the seed of trial `number` adds, in points."""
        rng = stream("training", self.problem.name, self.seed, number)
        noise = rng.normal(0, self.problem.noise)
        if rng.random() < self.problem.outliers:
            noise -= rng.uniform(5.0, 15.0)
        return float(noise)


@lru_cache(maxsize=32)
def load_problem(name: str) -> SurfaceProblem:
    """
    Raises:
        UnknownNameError: no such surface.
    """
    if name not in SURFACES:
        raise UnknownNameError("surface", name, tuple(SURFACES))
    space, surface = bind(SURFACES[name])
    return SurfaceProblem(name, SURFACES[name], space, surface, _stored()[name])


def bind(drawn: Drawn) -> tuple[SearchSpace, Surface]:
    anatomy = ANATOMIES[drawn.model]
    budget = ParameterBudget.parse(BUDGET).resolve(anatomy.n_parameters)
    return SearchSpace(load_space(drawn.space), anatomy, budget), Surface(drawn.family, anatomy, drawn.seed)


def fingerprint(drawn: Drawn) -> str:
    """Changes with anything that the optimum hangs on; by 20 raw values also with the surface's formulas."""
    space, surface = bind(drawn)
    rng = stream("fingerprint", drawn.seed)
    values = []
    for _ in range(20):
        candidate = space.sample(rng)
        values.append(f"{surface.raw(candidate.architecture, dict(candidate.training)):.9f}")
    names = [[p.name, repr(p.domain)] for p in space.parameters]
    return _hash([drawn.space, drawn.model, drawn.family, drawn.seed, space.budget, names, values])


def solved(drawn: Drawn) -> Optimum:
    """The optimum of a surface, computed: seconds to minutes."""
    from autopeft.bench.grouped import best_of_groups
    from autopeft.bench.masked import best_of_masks

    space, surface = bind(drawn)
    found = (best_of_masks if space.structure.mask else best_of_groups)(space, surface)
    candidate = space.candidate(found.params)
    raw = surface.raw(candidate.architecture, dict(candidate.training))
    assert space.is_valid(candidate)
    assert abs(raw - found.raw) < 1e-9, "the programme and the surface must agree"
    return Optimum(raw, median(space, surface, drawn.seed), dict(found.params), found.method, fingerprint(drawn))


def median(space: SearchSpace, surface: Surface, seed: int) -> float:
    """Median raw value of random architectures within the budget."""
    rng = stream("median", seed)
    drawn = (space.sample(rng) for _ in range(_MEDIAN_SAMPLES))
    return float(np.median([surface.raw(c.architecture, dict(c.training)) for c in drawn]))


def to_json(optima: Mapping[str, Optimum]) -> str:
    rows = {name: json.dumps(replace(o, params=dict(o.params)).__dict__) for name, o in optima.items()}
    return "{\n" + ",\n".join(f' "{name}": {row}' for name, row in rows.items()) + "\n}\n"


@lru_cache(maxsize=1)
def _stored() -> dict[str, Optimum]:
    text = (files("autopeft.bench") / OPTIMA).read_text(encoding="utf-8")
    return {name: Optimum(**row) for name, row in json.loads(text).items()}


def names(given: Sequence[str] = (), suite: Mapping[str, Drawn] = SUITE) -> tuple[str, ...]:
    """The surfaces of a suite that are meant: all by default.

    Raises:
        UnknownNameError: no such surface.
    """
    for name in given:
        if name not in suite:
            raise UnknownNameError("surface", name, tuple(suite))
    return tuple(given) or tuple(suite)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
