"""A small deterministic study, and child processes in which it can be killed."""

import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from autopeft.engine.trial import EpochRecord, TrialResult, read_result, trial_seed, write_result
from autopeft.space.architecture import Architecture, place
from autopeft.space.modules import Scalar
from autopeft.study.lock import RunLock
from autopeft.study.store import Identity, Part, Store, TrialStart

FORK = multiprocessing.get_context("fork")
"""Children that have everything imported already: a kill test needs many of them."""

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "lora.size": CategoricalDistribution([0, 4, 8]),
    "gate": CategoricalDistribution(["none", "mean"]),
    "bias": CategoricalDistribution([False, True]),
    "depth": IntDistribution(1, 6),
    "learning_rate": FloatDistribution(1e-5, 1e-1, log=True),
}
PARTS = ("space", "model", "data", "metric", "training")
N_PLANNED = 24


def identity(**changes: Any) -> Identity:
    parts = {name: Part(f"my {name}", f"{name}-hash") for name in PARTS}
    rest = {"objective": "score", "seed": 0, "budget": "0.5%", "budget_parameters": 500, "trials": N_PLANNED}
    return Identity(**{**parts, **rest, "facts": {"torch": "2.13"}, **changes})


def params(number: int) -> dict[str, Scalar]:
    rng = random.Random(trial_seed(0, number))
    return {
        "lora.size": rng.choice([0, 4, 8]),
        "gate": rng.choice(["none", "mean"]),
        "bias": rng.choice([False, True]),
        "depth": rng.randint(1, 6),
        "learning_rate": rng.uniform(1e-4, 1e-2),
    }


def start(number: int) -> TrialStart:
    placements = [place("encoder", layer, "attn.q", "lora", 1 + number) for layer in range(3)]
    return TrialStart(Architecture.of(placements), 100 + number, (("learning_rate", 0.001 * (1 + number)),))


def result(number: int) -> TrialResult:
    """Every fifth trial fails."""
    score = random.Random(number).random()
    epochs = tuple(EpochRecord(n, 10 * n, 1 / n, (("accuracy", score / n),), 0.5 * n) for n in (1, 2))
    if number % 5 == 4:
        return TrialResult.failed(number, "NaN", "the loss is nan", seconds=0.5, epochs=epochs[:1])
    return TrialResult(number, "complete", score, 2, epochs, 100 + number, 120, 2, 1.25, None)


def advance(store: Store, n_trials: int) -> None:
    """Search until the study has `n_trials`; trials are trained by writing their results."""
    for record in store.unfinished():
        _train(store, record.number)
    while len(store.trials) < n_trials:
        number = len(store.trials)
        _train(store, store.begin(params(number), DISTRIBUTIONS, start(number)))


def _train(store: Store, number: int) -> None:
    folder = store.run / "trials" / str(number)
    done = read_result(folder)
    if done is None:
        done = result(number)
        write_result(folder, done)
    store.finish(number, done)


def search(run: Path, n_trials: int = N_PLANNED) -> None:
    """What `autopeft search` does to a run folder, and does again to resume it."""
    with RunLock(run):
        exists = (run / "study.db").exists()
        with Store.open(run) if exists else Store.create(run, identity()) as store:
            advance(store, n_trials)


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns in a process of its own: its value, or the exception that it raises."""
    receiver, sender = FORK.Pipe(duplex=False)

    def run() -> None:
        try:
            sender.send(function(*arguments))
        except Exception as error:
            sender.send(error)

    child = FORK.Process(target=run)
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None  # the child was killed
    finally:
        child.join()


def kill_oneself(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
