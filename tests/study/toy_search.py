"""A whole search with the toy backend: the study, the store and the pool are real, only training is not.

Run as a program it is what the tests kill: python -m tests.study.toy_search RUN TRIALS [seconds per epoch [halving]]
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from autopeft.engine.toy import ToyBackend
from autopeft.engine.watch import DEFAULT_BOUNDS, Bounds
from autopeft.samplers import SAMPLERS
from autopeft.space.budget import ParameterBudget
from autopeft.space.search_space import SearchSpace
from autopeft.space.spec import load_space
from autopeft.study.halving import Halving
from autopeft.study.identity import Identity, Part
from autopeft.study.plan import Plan
from autopeft.study.search import search
from autopeft.study.settings import resolve_settings
from tests.anatomies import bert_like

ANATOMY = bert_like(6, 384, 22_713_216)


def toy_plan(
    run: Path,
    n_trials: int,
    backend: ToyBackend | None = None,
    environ: Mapping[str, str] | None = None,
    bounds: Bounds = DEFAULT_BOUNDS,
    **given: object,
) -> Plan:
    settings = resolve_settings({"budget": "0.5%", "space": "lora", "run": str(run), **given}, environ=environ or {})
    budget = ParameterBudget.parse(settings.budget)
    space = SearchSpace(load_space(settings.space), ANATOMY, budget.resolve(ANATOMY.n_parameters))
    identity = Identity(
        space=Part(settings.space, settings.space),
        model=Part("toy", ANATOMY.fingerprint),
        data=Part("toy", "0"),
        metric=Part("accuracy", "accuracy"),
        training=Part("toy", "0"),
        objective=settings.objective,
        seed=settings.seed,
        budget=settings.budget,
        budget_parameters=space.budget or 0,
        trials=n_trials,
    )
    return Plan(
        run=run,
        settings=settings,
        identity=identity,
        space=space,
        sampler=SAMPLERS[settings.sampler],
        backend=backend or ToyBackend(),
        budget=budget,
        n_trials=n_trials,
        seconds=None,
        bounds=bounds,
        n_workers=settings.workers or 1,
        n_pack=1 if settings.pack == "auto" else settings.pack,
    )


def halved_plan(run: Path, n_trials: int = 14, seconds: float = 0.0, **given: object) -> Plan:
    """With trials of four epochs, of which halving stops some after the first or second."""
    backend = ToyBackend(seconds_per_epoch=seconds, epochs=4, anatomy=ANATOMY)
    plan = toy_plan(run, n_trials, backend, pruner="halving", **given)
    return replace(plan, halving=Halving.over(4, 0.25, 2))


if __name__ == "__main__":
    folder, trials = Path(sys.argv[1]), int(sys.argv[2])
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    plan = toy_plan(folder, trials, ToyBackend(seconds_per_epoch=seconds))
    if "halving" in sys.argv:
        plan = halved_plan(folder, trials, seconds)
    outcome = search(plan)
    print(outcome.reason, len(outcome.view.trials))
