"""Bayesian optimisation that knows the budget: the number of parameters is computed exactly, never modelled.

Only points are looked at that are in the space, within the budget and untrained. A Gaussian process over encoded points
(`encoding`, `surrogate`) says how good each may be; a local search over feasible neighbours finds the one that promises
most (`acquisition`). Running trials count as if they ended as expected, failed ones as bad, pruned ones by their curve.
The proposal follows from the ask alone: nothing is kept between calls that changes a result.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from autopeft.samplers.acquisition import Staircase, log_expected_improvement
from autopeft.samplers.duration import expected_seconds
from autopeft.samplers.encoding import Encoding
from autopeft.samplers.moves import several, single
from autopeft.samplers.outcomes import expected_ends, tamed, value_of_failed
from autopeft.samplers.plain import crossed, filled, plain, together
from autopeft.samplers.proposal import Ask, Observation
from autopeft.samplers.surrogate import Hyperparameters, Posterior, fit
from autopeft.samplers.transferred import Forecast, forecast
from autopeft.space.parameters import Params
from autopeft.space.search_space import Candidate, SearchSpace

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

_STARTUP_TRIALS = 8
"""Complete trials before the surrogate takes over."""
_MOST_FITTED = 160
"""Trials that hyper-parameters are fitted to; more cost time and change little."""
_FITTED_EVERY = ((100, 20), (40, 10), (20, 5), (10, 2))
"""(from so many complete trials on, fitted anew whenever so many have come)."""
_RANDOM, _GROWN, _NEAR = 30, 10, 10
"""Points that a search begins with: drawn, drawn and grown to the budget, around each of the best (two sorts)."""
_PLAIN, _CROSSED, _TOGETHER = 30, 10, 12
"""Plain points and crosses of the best that a search begins with; and steps of all groups at once, where the local
search finds no other (see `plain`)."""
_PLAIN_STARTS = 0.25
"""Share of the first trials: plain ones tell most of each kind, and are good or bad; drawn ones are neither."""
_INCUMBENTS, _STARTS, _STEPS = 5, 3, 10
_PAIRS = 24
"""Double changes looked at in each step of the local search."""
_EAGER = 0.1
"""Every second proposal takes deviations as this much smaller, and so goes for what is expected to be good: in dozens
of dimensions nearly everything is uncertain, and improvement alone would explore for ever."""
_CURIOUS_AFTER, _CURIOUS_EVERY, _MOST_CURIOUS = 15, 5, 6.0
"""The others take them as larger, from 20 trials on: by one for every five trials more, up to six times. Improvement
looks at one point after the other and finds none far from the known ones worth a trial; but of the myriad points there
the best is several deviations above its mean, and the longer a search lasts the less is left to find near by."""
_LEAST_GAIN = 1e-3
"""In log acquisition, below which a local search ends."""

_ENCODINGS: "WeakKeyDictionary[SearchSpace, Encoding]" = WeakKeyDictionary()
_FITTED: dict[str, Hyperparameters] = {}
"""The latest fits, by a hash of what they were fitted to."""

Acquisition = Callable[[Sequence[Candidate]], Vector]


def suggest_bo(ask: Ask) -> Params:
    """Bayesian optimisation over what fits the budget; the first eight trials are baselines, random or plain points."""
    space, rng = ask.space, np.random.default_rng(ask.seed)
    complete = [trial for trial in ask.past if trial.state == "complete"]
    encoding = _ENCODINGS.setdefault(space, Encoding(space))
    if len(complete) < _STARTUP_TRIALS:
        if ask.earlier and len(ask.past) % 2 == 0:
            return _told_by_earlier(ask, encoding, complete, rng)
        return dict(_at_random(space, rng).params)
    beliefs = _Beliefs.of(ask, encoding, complete)
    return dict(_search(ask, beliefs.acquisition(ask), beliefs.incumbents(ask), rng).params)


@dataclass(frozen=True)
class _Beliefs:
    """What is believed of every point of the space."""

    encoding: Encoding
    complete: tuple[Candidate, ...]
    means: Vector
    """(n,) posterior means of the complete trials: a lucky score does not make a trial good."""
    posterior: Posterior
    forecast: Forecast

    @classmethod
    def of(cls, ask: Ask, encoding: Encoding, complete: Sequence[Observation]) -> "_Beliefs":
        space, parts = ask.space, _parts(encoding)
        candidates = [space.candidate(dict(trial.params)) for trial in complete]
        scores = tamed(np.array([trial.score for trial in complete], dtype=float))
        centre, scale = float(scores.mean()), float(scores.std()) or 1.0
        X, y = encoding.encode(candidates), (scores - centre) / scale
        told = forecast(ask.earlier, encoding, parts, X, y)
        rest = y - told(X)
        others = [(trial, value_of_failed(scores)) for trial in ask.past if trial.state == "failed"]
        others += expected_ends([trial for trial in ask.past if trial.state == "pruned"], complete)
        hyperparameters = _fitted(X, np.array([trial.score for trial in complete], dtype=float), parts)
        if others:
            X_others = encoding.encode([space.candidate(dict(trial.params)) for trial, _ in others])
            y_others = (np.array([value for _, value in others]) - centre) / scale - told(X_others)
            X, rest = np.vstack([X, X_others]), np.concatenate([rest, y_others])
        posterior = Posterior(hyperparameters, X, rest)
        X_complete = X[: len(candidates)]
        means = posterior.predict(X_complete)[0] + told(X_complete)
        running = [space.candidate(dict(trial.params)) for trial in ask.past if trial.state == "running"]
        return cls(encoding, tuple(candidates), means, posterior.believing(encoding.encode(running)), told)

    def predict(self, candidates: Sequence[Candidate]) -> tuple[Vector, Vector]:
        Z = self.encoding.encode(candidates)
        mean, deviation = self.posterior.predict(Z)
        return mean + self.forecast(Z), deviation

    def acquisition(self, ask: Ask) -> Acquisition:
        """The logarithm of what a point promises, by the ask's objective."""
        curiosity = _curiosity(len(ask.past))
        if ask.objective == "pareto":
            stored = np.array([candidate.stored for candidate in self.complete], dtype=float)
            smallest = ask.space.smallest_candidates[0].measured[0]
            budget = ask.space.budget or ask.space.largest_candidate.measured[0]
            stairs = Staircase.of(stored, self.means, smallest, budget)

        def promise(candidates: Sequence[Candidate]) -> Vector:
            mean, deviation = self.predict(candidates)
            deviation = curiosity * deviation
            if ask.objective == "pareto":
                costs = np.array([candidate.stored for candidate in candidates], dtype=float)
                promised = stairs.log_expected_improvement(mean, deviation, costs)
            else:
                promised = log_expected_improvement(mean, deviation, float(self.means.max()))
            if ask.per_second:
                promised = promised - np.log(expected_seconds(ask.space, ask.past, candidates))
            return promised

        return promise

    def incumbents(self, ask: Ask) -> list[Candidate]:
        """The complete trials that are worth to look around: the best, or the best for their number of parameters."""
        order = np.argsort(-self.means, kind="stable")
        if ask.objective == "score":
            return [self.complete[int(at)] for at in order[:_INCUMBENTS]]
        front: list[Candidate] = []
        for at in order:
            if not front or self.complete[int(at)].stored < front[-1].stored:
                front.append(self.complete[int(at)])
        return front[: 2 * _INCUMBENTS]


def _curiosity(n_past: int) -> float:
    """How many times as large as they are deviations are taken."""
    if n_past % 2:
        return _EAGER
    return min(_MOST_CURIOUS, max(1.0, (n_past - _CURIOUS_AFTER) / _CURIOUS_EVERY))


def _search(ask: Ask, promise: Acquisition, incumbents: Sequence[Candidate], rng: np.random.Generator) -> Candidate:
    """The untrained point that promises most, as far as climbing from the best of a few hundred finds it."""
    space = ask.space
    trained = {trial.params for trial in ask.past}
    pool = [space.sample(rng) for _ in range(_RANDOM)]
    pool += [filled(space, candidate, rng) for candidate in pool[:_GROWN]]
    pool += [plain(space, rng) for _ in range(_PLAIN)]
    pool += crossed(space, incumbents, rng, _CROSSED)
    for incumbent in incumbents:
        pool += several(space, incumbent, rng, _NEAR)
        pool += several(space, incumbent, rng, _NEAR, n_changes=4)
        pool += together(space, incumbent, rng, _NEAR // 2)
    pool = [candidate for candidate in pool if candidate.params not in trained] or pool
    values = promise(pool)
    best = [int(at) for at in np.argsort(-values, kind="stable")[:_STARTS]]
    starts = [(pool[at], float(values[at])) for at in best] + [(incumbents[0], -np.inf)]
    ends = [_climb(space, promise, start, value, trained, rng) for start, value in starts]
    return max(ends, key=lambda end: end[1])[0]


def _at_random(space: SearchSpace, rng: np.random.Generator) -> Candidate:
    """Drawn, drawn and grown to the budget, or plain."""
    which = rng.random()
    if which < _PLAIN_STARTS:
        return plain(space, rng)
    candidate = space.sample(rng)
    return candidate if which < (1 + _PLAIN_STARTS) / 2 else space.grow(dict(candidate.params), rng)


def _climb(
    space: SearchSpace,
    promise: Acquisition,
    at: Candidate,
    value: float,
    trained: set[tuple[tuple[str, str | int | float | bool], ...]],
    rng: np.random.Generator,
) -> tuple[Candidate, float]:
    steps: list[Callable[[], Iterable[Candidate]]] = [
        lambda: (*single(space, at), *several(space, at, rng, _PAIRS)),
        lambda: together(space, at, rng, _TOGETHER),
    ]
    for _ in range(_STEPS):
        for step in steps:  # the second, which costs more, where the first leads no further
            near = [candidate for candidate in step() if candidate.params not in trained]
            values = promise(near) if near else np.array([-np.inf])
            top = int(np.argmax(values))
            if values[top] > value + _LEAST_GAIN:
                at, value = near[top], float(values[top])
                break
        else:
            break
    return at, value


def _told_by_earlier(ask: Ask, encoding: Encoding, complete: Sequence[Observation], rng: np.random.Generator) -> Params:
    """The untrained point that earlier studies expect most of."""
    space = ask.space
    candidates = [space.candidate(dict(trial.params)) for trial in complete]
    X = encoding.encode(candidates)
    scores = np.array([trial.score for trial in complete], dtype=float)
    y = (scores - scores.mean()) / (scores.std() or 1.0) if len(scores) else scores
    told = forecast(ask.earlier, encoding, _parts(encoding), X, y)
    trials = sorted((t for study in ask.earlier for t in study.trials), key=lambda t: -(t.score or 0.0))
    known = [space.repair(dict(trial.params), rng) for trial in trials[:_INCUMBENTS]] or [space.sample(rng)]
    return dict(_search(ask, lambda points: told(encoding.encode(points)), known, rng).params)


def _parts(encoding: Encoding) -> tuple[Sequence[int], ...]:
    """Columns of the parts of the kernel: settings, amounts with training settings, training settings."""
    training = encoding.training_columns
    amounts = range(encoding.n_settings, encoding.n_columns)
    return tuple(range(encoding.n_settings)), (*training, *amounts), training


def _fitted(X: Matrix, scores: Vector, parts: Sequence[Sequence[int]]) -> Hyperparameters:
    """Fitted to all complete trials but the latest few, so that not every proposal waits for a fit."""
    n = len(scores)
    n -= n % next((every for least, every in _FITTED_EVERY if n >= least), 1)
    X, y = X[:n], tamed(scores[:n])
    y = (y - y.mean()) / (y.std() or 1.0)
    if n > _MOST_FITTED:  # the best, where precision matters, and others evenly over the study
        order = np.argsort(-y, kind="stable")
        rest = np.sort(order[_MOST_FITTED // 2 :])
        spread = rest[np.linspace(0, len(rest) - 1, _MOST_FITTED // 2).astype(int)]
        chosen = np.sort(np.concatenate([order[: _MOST_FITTED // 2], spread]))
        X, y = X[chosen], y[chosen]
    key = hashlib.sha256(X.tobytes() + y.tobytes()).hexdigest()
    found = _FITTED.get(key)
    if found is None:
        if len(_FITTED) >= 8:
            del _FITTED[next(iter(_FITTED))]
        found = _FITTED[key] = fit(X, y, parts)
    return found
