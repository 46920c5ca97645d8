"""What a search would take, from a few epochs of one architecture, trained by as many workers as the search has.

Each worker trains twice, since what a first trial does for all that follow (the cache, memory, the allocator) is no
part of a trial: it counts once, with the time that it takes to open. Workers train at the same time, since they slow
one another down.
"""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from autopeft.engine.limits import NO_LIMITS
from autopeft.engine.pool import Finished, Ready, WorkerPool
from autopeft.engine.trial import TrialJob, TrialResult
from autopeft.errors import AutopeftError
from autopeft.samplers.duration import first_adapted
from autopeft.space.modules import Scalar
from autopeft.space.search_space import Candidate
from autopeft.study.plan import Plan

_SAMPLED = 9
_SHORT = 2
"""Epochs of the trial that is timed, at most."""


@dataclass(frozen=True)
class Probe:
    seconds_to_open: float
    """Until the workers train at full speed."""
    seconds_per_trial: float
    """Of one worker, where no trial is stopped early."""
    epochs: int
    """Of a trial, at most."""
    probed_epochs: int
    """That were timed."""
    probed_stored: int
    peak_memory_bytes: int | None
    """Of one worker."""
    bytes_per_trial: int
    """Of the weights on disk."""
    device: Scalar
    micro_batch_size: int | None
    """Rows of a batch that are gone through at a time, where all of them do not fit into the memory."""


def probe(plan: Plan) -> Probe:
    """
    Raises:
        AutopeftError: the backend does not open, or a trial fails.
    """
    # Only TransformerBackend knows of recipes; torch comes with it.
    from autopeft.engine.transformer_backend import TransformerBackend

    backend = plan.backend
    assert isinstance(backend, TransformerBackend)
    epochs = backend.recipe.training.epochs
    point = _typical(plan)
    start = time.monotonic()
    opened: float = 0.0
    device: Scalar = "cpu"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        memory = replace(backend.cache, folder=backend.cache.folder and place / "cache")

        def trained(pool: WorkerPool, n_epochs: int) -> list[TrialResult]:
            nonlocal opened, device
            waiting = [_job(plan, point, number, n_epochs, place / str(number)) for number in range(plan.n_workers)]
            results: list[TrialResult] = []
            while len(results) < plan.n_workers:
                while waiting and pool.n_free:
                    pool.submit(waiting.pop(0))
                for event in pool.wait():
                    if isinstance(event, Ready):
                        opened, device = time.monotonic() - start, event.facts.get("device", "cpu")
                    elif isinstance(event, Finished):
                        results.append(event.result)
            if failed := [result.error for result in results if result.state == "failed"]:
                raise AutopeftError(f"the probe failed: {failed[0]}")
            return results

        with WorkerPool(replace(backend, limits=NO_LIMITS, cache=memory), plan.n_workers) as pool:
            first = trained(pool, 1)
            timed = trained(pool, min(_SHORT, epochs))
        stored_bytes = sum(path.stat().st_size for path in (place / "0").rglob("*") if path.is_file())
    warm_up = max(0.0, _mean([r.seconds for r in first]) - _mean([r.epochs[0].seconds for r in timed]))
    return Probe(
        seconds_to_open=opened + warm_up,
        seconds_per_trial=_mean([_seconds(result, epochs) for result in timed]),
        epochs=epochs,
        probed_epochs=len(timed[0].epochs),
        probed_stored=point.stored,
        peak_memory_bytes=max((r.peak_memory_bytes for r in timed if r.peak_memory_bytes), default=None),
        bytes_per_trial=stored_bytes,
        device=device,
        micro_batch_size=min((r.micro_batch_size for r in timed if r.micro_batch_size), default=None),
    )


def _typical(plan: Plan) -> Candidate:
    """Of a few random architectures the one in the middle: by where it begins, then by its size."""
    sampled = [plan.space.sample(np.random.default_rng(seed)) for seed in range(_SAMPLED)]
    in_order = sorted(sampled, key=lambda candidate: (-first_adapted(plan.space, candidate), candidate.stored))
    return in_order[_SAMPLED // 2]


def _job(plan: Plan, point: Candidate, number: int, epochs: int, folder: Path) -> TrialJob:
    """The trial, that short, screened or stopped by nothing."""
    training = (*((name, value) for name, value in point.training if name != "epochs"), ("epochs", epochs))
    return replace(plan.job(number, point.architecture, training), folder=folder, screen=None)


def _seconds(result: TrialResult, epochs: int) -> float:
    """Of a trial of so many epochs, after one of fewer."""
    ends = [record.seconds for record in result.epochs]
    each = ends[-1] - ends[-2] if len(ends) > 1 else ends[-1]
    return result.seconds + each * (epochs - len(ends))


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)
