"""Trains one architecture with several seeds; finished seeds are kept, so the same command goes on where it stopped.

A folder holds `train.json` (what is trained on what), `seeds/N/` (result, weights and held-out figures of each seed)
and, at the end, `best/`: weights of the seed that is best on validation, spec and model card.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from autopeft.engine.direction import told
from autopeft.engine.pool import Chosen, Finished, Progress, Ready, WorkerPool
from autopeft.engine.trial import Evaluation, TrialJob, TrialResult, read_result
from autopeft.errors import AutopeftError, StudyCorruptError, StudyMismatchError
from autopeft.export.card import model_card
from autopeft.export.folders import whole_folder
from autopeft.export.spec import FORMAT_VERSION, SPEC_FILE, AdapterSpec
from autopeft.export.target import CONFIG_FILE, WEIGHTS_FILE
from autopeft.resources import atomic_write
from autopeft.study.identity import Part
from autopeft.study.lock import RunLock
from autopeft.study.plan import HELD_OUT
from autopeft.study.planning import LIBRARIES, context_of
from autopeft.study.stopping import Stop, signals
from autopeft.transfer.interval import t_interval
from autopeft.transfer.plan import TrainPlan

BEST_FOLDER = "best"
_IDENTITY_FILE, _HELD_OUT_FILE = "train.json", "held_out.json"
_SETTLED_FILE = "settled.json"
"""What was measured before the first seed and holds for all: the precision."""
_TICK_SECONDS = 0.5

Tell = Callable[[str], None]
"""Takes one line about what happens."""


@dataclass(frozen=True)
class TrainedSeed:
    """One training that came to its end, and what it scores on the held-out rows."""

    job: TrialJob
    result: TrialResult
    held_out: Mapping[str, Any]
    """As `HeldOutEvidence`."""

    @property
    def validation(self) -> float:
        """At its best epoch."""
        name, *_ = self.result.epochs[0].metrics[0]
        return told(name, self.result.score or 0.0)[1]

    @property
    def figure(self) -> float:
        return float(next(iter(self.held_out["metrics"].values())))


@dataclass(frozen=True)
class Trained:
    """The end of `train`."""

    out: Path
    seeds: tuple[TrainedSeed, ...]
    failed: tuple[TrialResult, ...]
    spec: AdapterSpec | None
    """None where nothing was written: no seed has finished, or a signal came before the last one did."""
    signal: str | None
    """SIGINT or SIGTERM, where one has ended the run."""


def run_training(plan: TrainPlan, tell: Tell) -> Trained:
    """Train the seeds that are not finished yet and write `best/`.

    Raises:
        StudyBusyError: another process trains in this folder.
        StudyMismatchError: the folder holds trainings of something else; names the difference.
        AutopeftError: no seed has finished; says why.
    """
    with RunLock(plan.out), signals() as stop:
        _check_identity(plan)
        done = {job.seed: seed for job in plan.jobs if (seed := _finished(job)) is not None}
        for line in _opening(plan, len(done)):
            tell(line)
        missing = [job for job in plan.jobs if job.seed not in done]
        failed = _train(plan, missing, done, stop, tell) if missing else ()
        seeds = tuple(done[job.seed] for job in plan.jobs if job.seed in done)
        if stop.signal is not None and len(seeds) < len(plan.jobs):
            return Trained(plan.out, seeds, failed, None, stop.signal)
        if not seeds:
            raise AutopeftError(f"no seed has finished: {failed[0].cause}: {failed[0].error}")
        spec = spec_of_training(plan, seeds)
        best = next(seed for seed in seeds if spec.evidence.seeds and seed.job.seed == spec.evidence.seeds.saved_seed)
        with whole_folder(plan.out / BEST_FOLDER, force=True) as folder:
            for name in (CONFIG_FILE, WEIGHTS_FILE):
                shutil.copyfile(best.job.folder / name, folder / name)
            atomic_write(folder / "README.md", model_card(spec, is_plain_lora=False))
            atomic_write(folder / SPEC_FILE, spec.to_text())
        return Trained(plan.out, seeds, failed, spec, None)


def _train(
    plan: TrainPlan, jobs: list[TrialJob], done: dict[int, TrainedSeed], stop: Stop, tell: Tell
) -> tuple[TrialResult, ...]:
    waiting, failed = list(jobs), list[TrialResult]()
    by_number = {job.number: job for job in jobs}
    settled = plan.out / _SETTLED_FILE
    backend = plan.backend
    if settled.exists():
        backend = backend.settled(_read_settled(settled))
    with WorkerPool(backend, min(plan.settings.workers, len(jobs))) as pool:
        while not stop.now:
            while waiting and pool.n_free and stop.signal is None:
                pool.submit(waiting.pop(0))
            if not pool.running:
                break
            for event in pool.wait(_TICK_SECONDS):
                match event:
                    case Chosen(choices=choices):
                        atomic_write(settled, json.dumps(dict(choices), indent=2, allow_nan=False) + "\n")
                    case Ready(seconds=seconds, facts=facts):
                        said = ", ".join(f"{name} {value}" for name, value in facts.items())
                        tell(f"worker   ready after {seconds:.1f} s: {said}")
                    case Progress(number=number, record=record):
                        name, value = told(*record.metrics[0])
                        tell(f"seed {number:>4}  epoch {record.epoch}: {name} {value:.4f}, {record.seconds:.1f} s")
                    case Finished(result=result) if result.state == "failed":
                        failed.append(result)
                        tell(f"seed {result.number:>4}  failed ({result.cause}): {result.error}")
                    case Finished(result=result):
                        job = by_number[result.number]
                        trained = _score(job, result, pool.evaluate(job, HELD_OUT))
                        done[job.seed] = trained
                        metric = plan.task.recipe.task.metric
                        tell(
                            f"seed {job.seed:>4}  {len(done)}/{plan.settings.seeds}  {metric} {trained.figure:.4f} "
                            f"held out, {trained.validation:.4f} on validation, {result.seconds:.1f} s"
                        )
    return tuple(failed)


def _read_settled(path: Path) -> dict[str, object]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudyCorruptError(f"{path}: cannot be read: {error}") from error
    return data if isinstance(data, dict) else {}


def _score(job: TrialJob, result: TrialResult, evaluation: Evaluation) -> TrainedSeed:
    held_out = {
        "split": evaluation.split,
        "rows": evaluation.n_rows,
        "metrics": dict(evaluation.metrics),
        "interval": list(evaluation.interval),
    }
    atomic_write(job.folder / _HELD_OUT_FILE, json.dumps(held_out, indent=2, allow_nan=False) + "\n")
    return TrainedSeed(job, result, held_out)


def _finished(job: TrialJob) -> TrainedSeed | None:
    """The seed as an earlier run has left it; None where it has to be trained."""
    result = read_result(job.folder)
    files = (_HELD_OUT_FILE, CONFIG_FILE, WEIGHTS_FILE)
    if result is None or result.state == "failed" or not all((job.folder / name).is_file() for name in files):
        return None
    path = job.folder / _HELD_OUT_FILE
    try:
        held_out = json.loads(path.read_text(encoding="utf-8"))
        trained = TrainedSeed(job, result, held_out)
        assert isinstance(trained.figure, float)
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise StudyCorruptError(f"{path}: cannot be read: {error}. Remove {job.folder} to train it again") from error
    return trained


def _check_identity(plan: TrainPlan) -> None:
    path = plan.out / _IDENTITY_FILE
    now = {name: asdict(part) for name, part in plan.identity.items()}
    try:
        was = json.loads(path.read_text(encoding="utf-8"))
        stored = {name: Part(**was[name]) for name in now}
    except FileNotFoundError:
        atomic_write(path, json.dumps(now, indent=2) + "\n")
        return
    except (ValueError, KeyError, TypeError) as error:
        raise StudyCorruptError(f"{path}: cannot be read: {error}") from error
    differences = [
        f"{name}: was {stored[name].value}, now {part.value}"
        for name, part in plan.identity.items()
        if stored[name].hash != part.hash
    ]
    if differences:
        raise StudyMismatchError(
            f"{plan.out} holds trainings of something else:\n  " + "\n  ".join(differences) + "\nGive another --out"
        )


def spec_of_training(plan: TrainPlan, seeds: tuple[TrainedSeed, ...]) -> AdapterSpec:
    """The architecture with what was measured for it here."""
    best = max(seeds, key=lambda seed: (seed.result.score or 0.0, -seed.job.seed))
    figures = [seed.figure for seed in seeds]
    interval = t_interval(figures)
    old = plan.given.spec
    data = {
        "version": FORMAT_VERSION,
        "kind": "autopeft adapter spec",
        "architecture": plan.architecture.to_json(),
        **context_of(plan.task),
        "parameters": {
            "stored": best.result.stored,
            "trained": best.result.trained,
            "head": best.result.head,
            "budget": None,
            "budget_parameters": None,
        },
        "training": dict(plan.training),
        "evidence": {
            "metric": plan.task.recipe.task.metric,
            "validation": best.validation,
            "held_out": dict(best.held_out),
            "trial": old.evidence.trial if old else None,
            "trials": old.evidence.trials if old else None,
            "seed": old.evidence.seed if old else None,
            "seeds": {
                "figures": [{"seed": s.job.seed, "validation": s.validation, "held_out": s.figure} for s in seeds],
                "mean": sum(figures) / len(figures),
                "interval": list(interval) if interval else None,
                "saved_seed": best.job.seed,
            },
        },
        "origin": _origin(plan),
        "provenance": {name: _version(name) for name in LIBRARIES},
    }
    return AdapterSpec.model_validate_json(json.dumps(data, allow_nan=False))


def _origin(plan: TrainPlan) -> dict[str, Any] | None:
    old = plan.given.spec
    if old is None:
        return None
    if old.origin is not None:  # trained elsewhere already: the search is what counts
        return {**old.origin.model_dump(mode="json"), "layers": [*old.origin.layers, *plan.layers]}
    return {
        "base_model": old.base_model.name,
        "task": old.task.name,
        "metric": old.evidence.metric,
        "validation": old.evidence.validation,
        "layers": list(plan.layers),
    }


def _opening(plan: TrainPlan, n_done: int) -> list[str]:
    data, anatomy = plan.task.data, plan.task.anatomy
    splits = ", ".join(f"{split} {len(rows):,}" for split, rows in data.splits.items())
    state = f"resumed with {n_done} finished" if n_done else "new"
    chosen = ", ".join(f"{name} {value:.3g}" for name, value in plan.training if isinstance(value, float))
    return [
        f"folder   {plan.out} ({state}): {plan.settings.seeds} seeds from {plan.settings.seed}",
        f"model    {plan.task.model} ({anatomy.model_type}, {anatomy.n_layers} layers)",
        f"data     {data.name}: {splits} rows",
        f"spec     {plan.given.name}, architecture {plan.architecture.id}" + (f"; {chosen}" if chosen else ""),
        *(f"layers   {note}" for note in plan.layers),
        *(f"note     {note}" for note in data.notes),
    ]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
