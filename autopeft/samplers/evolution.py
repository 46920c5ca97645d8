"""Evolution by mutation alone: a good trial, changed a little, the budget kept.

A parent is the winner of a small tournament among the youngest trials (regularised evolution), or any member of the
Pareto front where both objectives count. Every step of a mutation is to a feasible point: one parameter changed, a size
swapped for another within the budget, or the rest of the budget filled. Sources: Real et al. 2019; SMS-free form of
"mutate a Pareto member" in Zhou et al. 2024.
"""

import numpy as np

from autopeft.samplers.proposal import Ask, Observation
from autopeft.samplers.random import suggest_random
from autopeft.space.parameters import Params
from autopeft.space.search_space import Candidate, SearchSpace

_STARTUP_TRIALS = 10
_POPULATION = 40
"""Youngest completed trials that may become parents."""
_TOURNAMENT = 5
_ANOTHER_STEP = 0.4
"""Chance of a further step after each."""


def suggest_evolution(ask: Ask) -> Params:
    """A good trial mutated within the budget; the first ten are random, or mutated from the best of earlier studies."""
    rng = np.random.default_rng(ask.seed)
    complete = [o for o in ask.past if o.state == "complete"]
    if len(complete) >= _STARTUP_TRIALS:
        parent = _member_of_front(ask, complete, rng) if ask.objective == "pareto" else _winner(complete, rng)
    elif ask.earlier:
        study = ask.earlier[int(rng.integers(len(ask.earlier)))]
        parent = _winner(list(study.trials), rng)
    else:
        return suggest_random(ask)
    return dict(_mutated(ask, ask.space.repair(dict(parent.params), rng), rng).params)


def front(observations: list[Observation], space: SearchSpace) -> list[Observation]:
    """Those that no other beats in score with as few stored parameters, smallest first."""
    found: list[Observation] = []
    for observation in sorted(observations, key=lambda o: (_stored(o, space), -(o.score or 0.0))):
        if not found or (observation.score or 0.0) > (found[-1].score or 0.0):
            found.append(observation)
    return found


def _stored(observation: Observation, space: SearchSpace) -> int:
    known = observation.stored
    return space.candidate(dict(observation.params)).stored if known is None else known


def _member_of_front(ask: Ask, complete: list[Observation], rng: np.random.Generator) -> Observation:
    members = front(complete, ask.space)
    return members[int(rng.integers(len(members)))]


def _winner(complete: list[Observation], rng: np.random.Generator) -> Observation:
    youngest = complete[-_POPULATION:]
    chosen = rng.choice(len(youngest), size=min(_TOURNAMENT, len(youngest)), replace=False)
    return max((youngest[int(i)] for i in chosen), key=lambda o: o.score or 0.0)


def _mutated(ask: Ask, parent: Candidate, rng: np.random.Generator) -> Candidate:
    steps = [_changed, _swapped] if ask.objective == "pareto" else [_changed, _swapped, _grown]
    candidate = parent
    while candidate is parent or rng.random() < _ANOTHER_STEP:
        step = steps[int(rng.integers(len(steps)))]
        other = step(ask.space, candidate, rng)
        if other is candidate and candidate is parent:  # a point without feasible neighbours of this kind
            return ask.space.sample(rng)
        candidate = other
    return candidate


def _changed(space: SearchSpace, candidate: Candidate, rng: np.random.Generator) -> Candidate:
    """One parameter at another of its values; what then is too large is shrunk elsewhere."""
    active = dict(candidate.params)
    free = [p for p in space.parameters if p.name in active]
    for _ in range(len(free)):
        parameter = free[int(rng.integers(len(free)))]
        near = list(parameter.domain.near(active[parameter.name]))
        value = near[int(rng.integers(len(near)))] if near and rng.random() < 0.7 else parameter.domain.sample(rng)
        if value != active[parameter.name]:
            return space.repair(dict(space.changed(active, parameter.name, value).params), rng)
    return candidate


def _swapped(space: SearchSpace, candidate: Candidate, rng: np.random.Generator) -> Candidate:
    """A step to a smaller neighbour, then one to a neighbour of that which is larger and fits."""
    for less in _in_any_order(space, candidate, rng):
        if less.stored < candidate.stored:
            larger = (c for c in _in_any_order(space, less, rng) if c.stored > less.stored and c != candidate)
            return next(larger, less)
    return _changed(space, candidate, rng)


def _grown(space: SearchSpace, candidate: Candidate, rng: np.random.Generator) -> Candidate:
    """One parameter changed, and the rest of the budget filled."""
    return space.grow(dict(_changed(space, candidate, rng).params), rng)


def _in_any_order(space: SearchSpace, candidate: Candidate, rng: np.random.Generator) -> list[Candidate]:
    near = list(space.neighbours(dict(candidate.params)))
    return [near[int(i)] for i in rng.permutation(len(near))]
