"""One run of one sampler on one problem: what was the best so far after every trial, and how long did proposals take.

*Regret* after n trials is the best score of the problem less the best true, noise-free score among the n architectures
that were tried; before the first one within the budget it is that of no adapter. The sampler sees only noisy scores.
Proposals over the budget are trials without a usable score; only Optuna's own samplers make such, since ours are asked
through `propose`, as a search does.
"""

import ast
import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from autopeft.bench.users import USERS, OptunaStudy, violation
from autopeft.engine.trial import trial_seed
from autopeft.errors import UnknownNameError
from autopeft.samplers import SAMPLERS, Ask, Observation, propose
from autopeft.space.search_space import Candidate, SearchSpace

OWN = "autopeft.samplers"


class Problem(Protocol):
    """What samplers are run on."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str:
        """Changes with anything that scores hang on."""
        ...

    @property
    def space(self) -> SearchSpace: ...

    @property
    def best(self) -> float:
        """The true score of the best architecture within the budget."""
        ...

    @property
    def without(self) -> float:
        """The score that stands while nothing within the budget was tried."""
        ...

    def start(self, seed: int) -> "Responses":
        """The answers to one run's proposals."""
        ...


@dataclass(frozen=True)
class Response:
    """What became of one proposal."""

    candidate: Candidate
    """What was trained: the proposal, or what stands for it in a table."""
    true: float
    observed: float
    """With the noise of one training."""
    seconds: float | None = None
    """That the training took, where there was one."""


class Responses(Protocol):
    def respond(self, candidate: Candidate, number: int) -> Response:
        """The response to a proposal within the budget."""
        ...

    def over_budget(self, candidate: Candidate, number: int) -> float:
        """The score that a user of Optuna tells it for an architecture over the budget."""
        ...


@dataclass(frozen=True)
class Run:
    """One sampler on one problem with one seed."""

    sampler: str
    sampler_version: str
    problem: str
    problem_version: str
    seed: int
    regrets: tuple[float, ...]
    """After each trial."""
    proposal_seconds: tuple[float, ...]
    over_budget: int
    """Trials without a usable score."""
    seconds: float

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        return self.sampler, self.sampler_version, self.problem, self.problem_version, self.seed

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        data["proposal_seconds"] = [float(f"{s:.3g}") for s in self.proposal_seconds]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Run":
        lists = {name: tuple(data[name]) for name in ("regrets", "proposal_seconds")}
        return cls(**{**data, **lists})


def run_sampler(name: str, problem: Problem, seed: int, n_trials: int) -> Run:
    """
    Raises:
        UnknownNameError: no such sampler.
    """
    start = time.perf_counter()
    responses = problem.start(seed)
    if name in USERS:
        regrets, seconds, over = _of_user(name, problem, responses, seed, n_trials)
    elif name in SAMPLERS:
        regrets, seconds, over = _of_ours(name, problem, responses, seed, n_trials)
    else:
        raise UnknownNameError("sampler", name, sampler_names())
    whole = time.perf_counter() - start
    version_ = sampler_version(name)
    return Run(
        name, version_, problem.name, problem.version, seed, tuple(regrets), tuple(seconds), over, round(whole, 2)
    )


Figures = tuple[list[float], list[float], int]


def _of_ours(name: str, problem: Problem, responses: Responses, seed: int, n_trials: int) -> Figures:
    past: list[Observation] = []
    regrets = [problem.best - problem.without]
    seconds: list[float] = []
    for number in range(n_trials):
        start = time.perf_counter()
        candidate = propose(SAMPLERS[name], Ask(problem.space, past, trial_seed(seed, number)))
        seconds.append(time.perf_counter() - start)
        response = responses.respond(candidate, number)
        regrets.append(min(regrets[-1], problem.best - response.true))
        trained = response.candidate
        past.append(
            Observation(
                params=trained.params,
                architecture_id=trained.architecture.id,
                state="complete",
                score=response.observed,
                stored=trained.stored,
                seconds=response.seconds,
            )
        )
    return [round(r, 5) for r in regrets[1:]], seconds, 0


def _of_user(name: str, problem: Problem, responses: Responses, seed: int, n_trials: int) -> Figures:
    study = OptunaStudy(USERS[name], problem.space, seed)
    regrets = [problem.best - problem.without]
    seconds: list[float] = []
    over = 0
    for number in range(n_trials):
        start = time.perf_counter()
        candidate = study.ask()
        elapsed = time.perf_counter() - start
        if violation(problem.space, candidate) > 0:
            over += 1
            score = responses.over_budget(candidate, number)
            regrets.append(regrets[-1])
        else:
            response = responses.respond(candidate, number)
            candidate, score = response.candidate, response.observed
            regrets.append(min(regrets[-1], problem.best - response.true))
        start = time.perf_counter()
        study.tell(candidate, score)
        seconds.append(elapsed + time.perf_counter() - start)
    return [round(r, 5) for r in regrets[1:]], seconds, over


def sampler_names() -> tuple[str, ...]:
    return (*SAMPLERS, *USERS)


@lru_cache(maxsize=64)
def sampler_version(name: str) -> str:
    """Twelve hex digits that change with the code of the sampler: its module, what it imports of `autopeft.samplers`.

    For Optuna's own, and for ours that import it, Optuna's version is part of it.

    Raises:
        UnknownNameError: no such sampler.
    """
    if name in USERS:
        return _digest([Path(OptunaStudy.__init__.__code__.co_filename).read_text(encoding="utf-8"), version("optuna")])
    if name not in SAMPLERS:
        raise UnknownNameError("sampler", name, sampler_names())
    sampler: Any = SAMPLERS[name]
    module = getattr(sampler, "__module__", type(sampler).__module__)
    sources: dict[str, str] = {}
    libraries: set[str] = set()
    waiting = [module, f"{OWN}.proposal"]
    while waiting:
        module = waiting.pop()
        spec = find_spec(module)
        if module in sources or spec is None or spec.origin is None or module == OWN:
            continue
        sources[module] = Path(spec.origin).read_text(encoding="utf-8")
        for imported in _imports(sources[module]):
            if imported.startswith(OWN):
                waiting.append(imported)
            elif imported.split(".")[0] in {"optuna", "botorch", "torch"}:
                libraries.add(imported.split(".")[0])
    return _digest([*(sources[m] for m in sorted(sources)), *(f"{lib} {version(lib)}" for lib in sorted(libraries))])


def _imports(source: str) -> set[str]:
    """Modules that a source imports, at its top or within functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
