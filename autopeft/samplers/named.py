"""A sampler by its name: one of ours, `optuna:CmaEsSampler`, or `optunahub:samplers/auto_sampler`.

OptunaHub downloads a sampler's code when it is asked for and runs it here.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from autopeft.errors import EnvironmentProblem, UnknownNameError, UsageError
from autopeft.samplers.nsga2 import POPULATION, generations
from autopeft.samplers.proposal import Ask, Objective, Observation, Sampler
from autopeft.samplers.random import suggest_random
from autopeft.samplers.replay import quiet_optuna, suggest_conditional, suggest_flat, suggest_stepwise
from autopeft.space.parameters import Params
from autopeft.space.search_space import SearchSpace

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

OPTUNA, OPTUNAHUB = "optuna:", "optunahub:"

_STATELESS = ("GPSampler", "RandomSampler")
"""Samplers of Optuna that need nothing but the trials; of the others the past is replayed step by step."""


@dataclass(frozen=True)
class OptunaSampler:
    """A sampler of Optuna or OptunaHub, made anew for each proposal, which is then repaired to the budget."""

    name: str
    kind: "type[BaseSampler]"

    def __call__(self, ask: Ask) -> Params:
        """
        Raises:
            UsageError: the sampler does not take this space or objective; says why in its own words.
            EnvironmentProblem: it needs a package that is not installed.
        """
        import optuna

        try:
            with quiet_optuna():
                sampler = self._made(ask.seed)
            if isinstance(sampler, optuna.samplers.TPESampler):
                return suggest_conditional(ask, sampler)
            if isinstance(sampler, optuna.samplers.BaseGASampler):
                if not ask.past:
                    return suggest_random(ask)
                kind, population = type(sampler), sampler.population_size or POPULATION
                return suggest_flat(ask, sampler, lambda past: generations(past, kind, population))
            if self.kind.__name__ in _STATELESS and self.kind.__module__.startswith("optuna."):
                return suggest_flat(ask, sampler)
            return suggest_stepwise(ask, sampler)
        except ImportError as error:
            raise EnvironmentProblem(f"--sampler {self.name}: {_one_line(error)}") from error
        except (ValueError, TypeError, NotImplementedError, RuntimeError) as error:
            raise UsageError(f"--sampler {self.name} cannot search here: {_one_line(error)}") from error

    def check(self, space: SearchSpace, objective: Objective) -> None:
        """Raise what a call would raise, from one proposal after two trials with made-up scores."""
        rng, past = np.random.default_rng(0), []
        for score in (0.0, 1.0):
            c = space.sample(rng)
            past.append(Observation(c.params, c.architecture.id, "complete", score, c.stored))
        self(Ask(space, past, 0, objective))

    def _made(self, seed: int) -> "BaseSampler":
        parameters = inspect.signature(self.kind).parameters
        given: dict[str, Any] = {"seed": seed} if "seed" in parameters else {}
        if "population_size" in parameters and parameters["population_size"].default is not inspect.Parameter.empty:
            given["population_size"] = POPULATION
        return self.kind(**given)


def named_sampler(name: str, known: Mapping[str, Sampler]) -> Sampler:
    """The sampler of this name, of those `known` or from Optuna or OptunaHub.

    Raises:
        UnknownNameError: there is none.
        UsageError: a module of OptunaHub that holds no sampler, or several.
        EnvironmentProblem: OptunaHub is not installed, or cannot be reached.
    """
    if name in known:
        return known[name]
    if name.startswith(OPTUNA):
        return _of_optuna(name)
    if name.startswith(OPTUNAHUB):
        return _of_optunahub(name)
    raise UnknownNameError("sampler", name, (*known, "optuna:NAME", "optunahub:PACKAGE"))


def _of_optuna(name: str) -> OptunaSampler:
    import optuna

    found = _samplers_of(optuna.samplers)
    wanted = name.removeprefix(OPTUNA)
    if wanted not in found:
        raise UnknownNameError("sampler of Optuna", wanted, tuple(found))
    return OptunaSampler(name, found[wanted])


def _of_optunahub(name: str) -> OptunaSampler:
    """`optunahub:PACKAGE`, or `optunahub:PACKAGE:CLASS` where the package holds several samplers."""
    try:
        import optunahub
    except ImportError as error:
        raise EnvironmentProblem(
            f"--sampler {name} needs the package optunahub: pip install 'autopeft[samplers]'"
        ) from error
    package, _, wanted = name.removeprefix(OPTUNAHUB).partition(":")
    try:
        with quiet_optuna():
            module = optunahub.load_module(package)
    except ImportError as error:
        raise EnvironmentProblem(f"--sampler {name}: {_one_line(error)}") from error
    except Exception as error:  # the network, the registry and the module's own code can each say anything
        raise EnvironmentProblem(f"--sampler {name}: OptunaHub cannot load it: {_one_line(error)}") from error
    found = _samplers_of(module)
    if wanted and wanted not in found:
        raise UnknownNameError(f"sampler of {package}", wanted, tuple(found))
    if not wanted and len(found) != 1:
        told = f"holds several samplers; give one, {OPTUNAHUB}{package}:NAME, of {', '.join(found)}"
        raise UsageError(f"--sampler {name}: the package {told if found else 'holds no sampler'}")
    return OptunaSampler(name, found[wanted] if wanted else next(iter(found.values())))


def _samplers_of(module: Any) -> "dict[str, type[BaseSampler]]":
    """The concrete samplers that a module exports, by name."""
    from optuna.samplers import BaseSampler

    names = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    found = {n: getattr(module, n, None) for n in names}
    return {
        n: kind
        for n, kind in found.items()
        if isinstance(kind, type) and issubclass(kind, BaseSampler) and not inspect.isabstract(kind)
    }


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
