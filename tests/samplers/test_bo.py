"""The parts of the Bayesian sampler: each against a definition of its own."""

from dataclasses import replace

import numpy as np
import pytest

from autopeft.samplers import SAMPLERS, Ask, Earlier, Observation, propose
from autopeft.samplers.acquisition import Staircase, log_expected_improvement
from autopeft.samplers.duration import expected_seconds, first_adapted
from autopeft.samplers.encoding import Encoding
from autopeft.samplers.moves import several, single
from autopeft.samplers.outcomes import expected_ends, tamed
from autopeft.samplers.surrogate import Hyperparameters, Part, Posterior, fit
from autopeft.samplers.transferred import forecast
from autopeft.space.search_space import SearchSpace
from autopeft.space.spec import load_space
from tests.samplers.test_contract import ANATOMY, observed, score

RNG = np.random.default_rng
BUDGET = 113_566


def space_of(name: str = "lora") -> SearchSpace:
    return SearchSpace(load_space(name), ANATOMY, BUDGET)


@pytest.mark.parametrize("name", ["hybrid", "s4", "autopeft", "noah"])
def test_points_with_the_same_settings_have_the_same_vector_and_others_do_not(name):
    space = space_of(name)
    candidates = [space.sample(RNG(seed)) for seed in range(30)]
    X = Encoding(space).encode(candidates)
    assert np.array_equal(X, Encoding(space).encode(candidates[::-1])[::-1])
    assert np.isfinite(X).all()
    assert len(np.unique(X.round(9), axis=0)) == len({candidate.params for candidate in candidates})


def test_amounts_tell_where_and_how_much():
    space = space_of()
    params = {"pattern": "uniform", "learning_rate": 1e-3, "g1.lora.size": 0, "g2.lora.size": 0, "g3.lora.size": 0}
    top = space.candidate({**params, "g4.lora.size": 8, "g4.lora.roles": "q,v"})
    encoding = Encoding(space)
    x = encoding.encode([top])[0]
    depth = [x[encoding.n_settings + encoding._amounts["lora", f"depth {part}"]] for part in range(4)]
    assert depth[0] == depth[1] == 0 < depth[3]
    assert x[-1] == pytest.approx(top.stored / BUDGET)


def test_the_posterior_is_botorchs():
    import torch
    from botorch.models import SingleTaskGP
    from gpytorch.kernels import RBFKernel, ScaleKernel

    rng = RNG(0)
    X, Z, y = rng.random((12, 3)), rng.random((5, 3)), rng.normal(size=12)
    kernel = ScaleKernel(RBFKernel(ard_num_dims=3))
    model = SingleTaskGP(torch.tensor(X), torch.tensor(y)[:, None], covar_module=kernel, outcome_transform=None)
    kernel.outputscale, kernel.base_kernel.lengthscale = 0.7, torch.tensor([[0.3, 0.5, 2.0]])
    model.likelihood.noise, model.mean_module.constant = 0.05, torch.tensor(0.2)
    theirs = model.posterior(torch.tensor(Z))
    own = Posterior(Hyperparameters((Part(0.7, 1 / np.array([0.3, 0.5, 2.0])),), 0.05, 0.2), X, y)
    mean, deviation = own.predict(Z)
    assert np.allclose(mean, theirs.mean.detach().numpy().ravel(), atol=1e-6)
    assert np.allclose(deviation**2, theirs.variance.detach().numpy().ravel(), atol=1e-5)


def test_what_is_believed_of_running_trials_keeps_the_means_and_lowers_the_doubt():
    rng = RNG(1)
    X, Z = rng.random((10, 2)), rng.random((3, 2))
    posterior = Posterior(Hyperparameters((Part(1.0, np.ones(2)),), 0.01, 0.0), X, rng.normal(size=10))
    believing = posterior.believing(Z)
    assert np.allclose(believing.predict(Z)[0], posterior.predict(Z)[0], atol=1e-3)
    assert (believing.predict(Z)[1] < posterior.predict(Z)[1]).all()


def test_a_fit_finds_the_column_that_matters():
    rng = RNG(2)
    X = rng.random((40, 6))
    y = np.sin(6 * X[:, 2])
    part, _ = fit(X, (y - y.mean()) / y.std(), [range(6), (0,)]).parts
    assert part.inverse_lengthscales.argmax() == 2


def test_the_gain_in_volume_is_what_sampling_says():
    rng = RNG(3)
    stored, mean = np.array([100.0, 400.0, 900.0]), np.array([0.1, 0.5, 0.4])
    stairs = Staircase.of(stored, mean, smallest=50, budget=1000)
    mu, sd, cost = np.array([0.6, 0.2]), np.array([0.3, 0.5]), np.array([200.0, 60.0])
    edges, heights = stairs.edges, stairs.heights
    for at in range(2):
        scores = rng.normal(mu[at], sd[at], 200_000)
        lengths = np.maximum(0, edges[1:] - np.maximum(edges[:-1], np.log(cost[at])))
        gain = sum(length * np.maximum(scores - height, 0) for length, height in zip(lengths, heights, strict=True))
        assert np.exp(stairs.log_expected_improvement(mu, sd, cost)[at]) == pytest.approx(gain.mean(), rel=0.02)


def test_log_expected_improvement_stays_finite_far_below_the_best():
    values = log_expected_improvement(np.array([-50.0, 0.0]), np.array([1.0, 1.0]), 0.0)
    assert np.isfinite(values).all()
    assert np.exp(values[1]) == pytest.approx(1 / np.sqrt(2 * np.pi), rel=1e-6)


def test_very_bad_scores_are_drawn_in_and_keep_their_order():
    scores = np.array([0.1, 0.5, *np.linspace(0.74, 0.85, 20)])
    drawn = tamed(scores)
    assert (np.diff(drawn) > 0).all()
    assert drawn[0] > 0.6
    assert np.array_equal(drawn[2:], scores[2:])


def test_a_pruned_trial_counts_as_what_its_curve_foretells_but_never_as_the_best():
    def trial(state, score, curve):
        return Observation((), "", state, score, curve=curve)

    complete = [trial("complete", 0.5 + 0.1 * n, (0.1 * n, 0.5 + 0.1 * n)) for n in range(6)]
    pruned = [trial("pruned", None, (0.25,)), trial("pruned", None, (0.9,)), trial("pruned", None, ())]
    told = {t.curve: value for t, value in expected_ends(pruned, complete)}
    assert told == {(0.25,): pytest.approx(0.75), (0.9,): pytest.approx(1.0)}
    assert expected_ends(pruned, complete[:3]) == []


def test_a_trial_stopped_by_screening_counts_as_what_the_screening_foretells():
    complete = [Observation((), "", "complete", 0.5 + 0.1 * n, curve=(0.9,), screened=0.2 * n) for n in range(6)]
    stopped = Observation((), "", "pruned", None, screened=0.3)
    assert expected_ends([stopped], complete) == [(stopped, pytest.approx(0.65))]
    assert expected_ends([stopped], [replace(trial, screened=None) for trial in complete]) == []


def earlier_of(space, sign: float) -> Earlier:
    candidates = [space.sample(RNG(100 + seed)) for seed in range(24)]
    return Earlier("earlier", tuple(
        Observation(c.params, c.architecture.id, "complete", sign * score(c), c.stored) for c in candidates
    ))  # fmt: skip


def test_an_earlier_study_is_believed_as_far_as_it_foretells():
    space = space_of()
    encoding = Encoding(space)
    parts = (range(encoding.n_settings), range(encoding.n_settings, encoding.n_columns))
    candidates = [space.sample(RNG(seed)) for seed in range(15)]
    X, y = encoding.encode(candidates), np.array([score(c) for c in candidates])
    y = (y - y.mean()) / y.std()
    good = forecast([earlier_of(space, 1.0)], encoding, parts, X, y)
    bad = forecast([earlier_of(space, -1.0)], encoding, parts, X, y)
    assert good.weights[0] > 0.5 > bad.weights[0] == 0.0
    assert np.corrcoef(good(X), y)[0, 1] > 0.5


def best_of(space: SearchSpace, n_trials: int, earlier=()) -> float:
    past: list[Observation] = []
    for number in range(n_trials):
        past.append(observed(propose(SAMPLERS["bo"], Ask(space, past, number, earlier=earlier))))
    return max(o.score for o in past if o.score is not None)


def test_it_finds_more_than_random_and_a_misleading_earlier_study_does_not_hurt_much():
    space = space_of()
    random = max(score(space.sample(RNG(seed))) for seed in range(14))
    assert best_of(space, 14) > random
    assert best_of(space, 14, (earlier_of(space, -1.0),)) > random
    assert best_of(space, 5, (earlier_of(space, 1.0),)) > random


def test_moves_are_valid_points_near_by():
    space = space_of("hybrid")
    start = space.grow(dict(space.sample(RNG(0)).params), RNG(0))
    near = [*single(space, start), *several(space, start, RNG(1), 50)]
    assert len(near) > 30
    assert all(space.is_valid(candidate) and candidate.params != start.params for candidate in near)
    assert any(candidate.stored > start.stored * 0.97 for candidate in several(space, start, RNG(1), 50))


def test_seconds_are_told_by_the_first_adapted_layer():
    space = space_of()
    base = {"pattern": "uniform", "learning_rate": 1e-3} | {f"g{group}.lora.size": 0 for group in (1, 2, 3, 4)}

    def with_group(group: int, size: int = 4):
        return space.candidate({**base, f"g{group}.lora.size": size, f"g{group}.lora.roles": "q,v"})

    assert first_adapted(space, with_group(1)) == 0
    assert first_adapted(space, with_group(4)) > 0.5
    past = [
        Observation(c.params, c.architecture.id, "complete", 0.5, c.stored, 10.0 * (1 - first_adapted(space, c)) + 0.1)
        for c in (with_group(group, size) for group in (1, 2, 3, 4) for size in (2, 4))
    ]
    below, above = expected_seconds(space, past, [with_group(1, 8), with_group(4, 8)])
    assert below > 2 * above
    assert expected_seconds(space, past[:4], [with_group(1)]).tolist() == [1.0]
