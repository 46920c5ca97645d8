"""The tabular suite: samplers on tables of real trainings that `autopeft bench table` made.

A problem is one task of one table in one space. A sampler proposes any architecture of the space; the nearest row of
the table that the run has not used yet is trained in its place, and the sampler is told that row: its params and its
score. All samplers are treated so. What is over the budget has no row: Optuna is told the worst score so far.

*Near* is the distance between what stands in the layers: for every layer and every kind at a sub-layer log(1 + 50 n),
where n is its number of parameters relative to the largest in the table; beside it the logarithm of the learning
rate, which spreads as widely over the table as all of the structure does. It knows of no sampler's encoding and means
the same in every space. Both constants were chosen by how well the nearest other row foretells the score of a row of
the shipped table, then of one seed: the correlation was 0.58 on average over its six problems (0.28 with
log(1 + parameters) and next to no weight for the learning rate, with which the rows of `hybrid` answer at random); with
three seeds on SST-2 it is 0.63.

Limits: a sampler that proposes precisely is served with the precision of the table, so that differences between good
samplers come out smaller than they are; regret is against the best row of the table, whose score is that of one or few
trainings and so optimistic; the rows are half random, half grown to the budget, and the best of the space is in none.
"""

import gzip
import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from autopeft.bench.running import Response
from autopeft.bench.surface import Array, slot_of
from autopeft.errors import UnknownNameError, UsageError
from autopeft.samplers import SpaceExhaustedError
from autopeft.space.anatomy import Anatomy
from autopeft.space.counting import count_placement
from autopeft.space.modules import Scalar
from autopeft.space.search_space import Candidate, SearchSpace
from autopeft.space.spec import load_space

TABLE = "minilm.jsonl.gz"
_LEAST_ROWS = 20
_BEND = 50
"""Below a fiftieth of the largest number of parameters distances are as numbers, above it as their logarithms."""


@dataclass(frozen=True)
class Row:
    """An architecture of a table on one task."""

    candidate: Candidate
    scores: tuple[float, ...]
    """Of its trainings, one a seed, in points."""
    seconds: float

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores)


@dataclass(frozen=True)
class TableProblem:
    """One task of a table in one space."""

    name: str
    space: SearchSpace
    rows: tuple[Row, ...]

    @property
    def best(self) -> float:
        return max(row.mean for row in self.rows)

    @property
    def without(self) -> float:
        """Of the worst row."""
        return min(row.mean for row in self.rows)

    @cached_property
    def version(self) -> str:
        values = [[row.candidate.architecture.id, row.candidate.training, row.scores] for row in self.rows]
        how = Path(__file__).read_text(encoding="utf-8")  # which row answers hangs on this module
        return hashlib.sha256((json.dumps(values) + how).encode()).hexdigest()[:12]

    @cached_property
    def features(self) -> Array:
        """(rows, features): structure and learning rate, each with a mean square distance of 1 from its mean."""
        return np.stack([self.describe(row.candidate) for row in self.rows])

    def describe(self, candidate: Candidate) -> Array:
        """(features,): per layer and slot the scaled logarithm of its parameters, then that of the learning rate."""
        largest, structure, rate = self._scale
        counts, log_rate = self._measure(candidate)
        return np.append(np.log1p(_BEND * counts.ravel() / largest) * structure, log_rate * rate)

    @cached_property
    def _scale(self) -> tuple[float, float, float]:
        """The largest number of parameters; factors of the logarithms of structure and learning rate."""
        measured = [self._measure(row.candidate) for row in self.rows]
        counts = np.stack([counts.ravel() for counts, _ in measured])
        rates = np.array([log_rate for _, log_rate in measured])
        largest = max(1.0, float(counts.max()))
        logarithms = np.log1p(_BEND * counts / largest)
        widths = float(np.sqrt(logarithms.var(axis=0).sum())), float(rates.std())
        structure, rate = (1 / width if width > 1e-9 else 0.0 for width in widths)
        return largest, structure, rate

    def _measure(self, candidate: Candidate) -> tuple[Array, float]:
        """(layers, slots) numbers of parameters, and the logarithm of the learning rate."""
        anatomy = self.space.anatomy
        position = {(stack, index): at for at, (stack, index, _) in enumerate(anatomy.layers)}
        slots = {slot: number for number, slot in enumerate(self._slots)}
        counts = np.zeros((anatomy.n_layers, len(slots)))
        for p in candidate.architecture.placements:
            slot = slots.get(slot_of(p.module, p.role))
            if slot is not None:
                counts[position[p.stack, p.layer], slot] += count_placement(p, anatomy)
        return counts, math.log(float(dict(candidate.training).get("learning_rate", 1.0)))

    @cached_property
    def _slots(self) -> tuple[tuple[str, str], ...]:
        placements = (p for row in self.rows for p in row.candidate.architecture.placements)
        return tuple(sorted({slot_of(p.module, p.role) for p in placements}))

    def start(self, seed: int) -> "Lookups":
        return Lookups(self, seed)


class Lookups:
    """The answers that one run gets from a table."""

    def __init__(self, problem: TableProblem, seed: int) -> None:
        self._problem, self._seed = problem, seed
        self._is_used = np.zeros(len(problem.rows), dtype=bool)
        self._worst = math.inf

    def respond(self, candidate: Candidate, number: int) -> Response:
        """
        Raises:
            SpaceExhaustedError: every row of the table has been used.
        """
        if self._is_used.all():
            raise SpaceExhaustedError(f"all {len(self._is_used)} rows of {self._problem.name} have been used")
        problem = self._problem
        here = problem.describe(candidate)
        distances = np.where(self._is_used, np.inf, np.linalg.norm(problem.features - here, axis=1))
        at = int(np.argmin(distances))
        self._is_used[at] = True
        row = problem.rows[at]
        seen = row.scores[(self._seed + number) % len(row.scores)]
        self._worst = min(self._worst, seen)
        return Response(row.candidate, row.mean, seen, row.seconds)

    def over_budget(self, candidate: Candidate, number: int) -> float:
        return self._worst if math.isfinite(self._worst) else self._problem.without


def names(given: Sequence[str] = (), table: Path | None = None) -> tuple[str, ...]:
    """The problems of a table that are meant, all by default; without a `table` those of the shipped one.

    Raises:
        UnknownNameError: no such problem.
        UsageError: no such table.
    """
    known = tuple(_problems(table))
    for name in given:
        if name not in known:
            raise UnknownNameError("problem", name, known)
    return tuple(given) or known


def load_problem(name: str, table: Path | None = None) -> TableProblem:
    names([name], table)
    return _problems(table)[name]


@lru_cache(maxsize=4)
def _problems(table: Path | None) -> Mapping[str, TableProblem]:
    file = table or files("autopeft.bench") / TABLE
    if not file.is_file():
        lacking = f"{table}: no such table" if table else f"this installation ships no {TABLE}"
        raise UsageError(f"{lacking}. Make one with `autopeft bench table --out FILE`, and name it with --suite FILE")
    content = file.read_bytes()
    try:
        return problems_of((gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8"))
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file}: not a table of `autopeft bench table`: {error}") from error


def problems_of(text: str) -> dict[str, TableProblem]:
    """`hybrid-trec` → the problem, of every space and task with at least 20 trained rows.

    Raises:
        ValueError: no table.
    """
    header, *lines = (json.loads(line) for line in text.splitlines())
    if header.get("kind") != "header":
        raise ValueError("a table starts with its header")
    anatomy = Anatomy.from_json(header["model"]["anatomy"])
    points = {line["point"]: line for line in lines if line["kind"] == "point"}
    trainings: dict[tuple[str, int], list[Mapping[str, Any]]] = defaultdict(list)
    for line in lines:
        if line["kind"] == "training" and line["score"] is not None:
            trainings[line["task"], line["point"]].append(line)
    found: dict[str, TableProblem] = {}
    for name in header["points"]:
        space = SearchSpace(load_space(name), anatomy, header["budget"]["parameters"])
        candidates = {n: _candidate(space, line["params"]) for n, line in points.items() if line["space"] == name}
        for task in header["tasks"]:
            rows = tuple(
                Row(
                    candidate, tuple(100 * line["score"] for line in mine), float(np.mean([m["seconds"] for m in mine]))
                )
                for number, candidate in candidates.items()
                if (mine := trainings.get((task, number)))
            )
            if len(rows) >= _LEAST_ROWS:
                found[f"{name}-{task}"] = TableProblem(f"{name}-{task}", space, rows)
    return found


def _candidate(space: SearchSpace, params: Mapping[str, Scalar]) -> Candidate:
    return space.candidate(params)
