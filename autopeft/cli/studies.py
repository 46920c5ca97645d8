"""Reports on a run folder: status, trials, the best, exports. Reads with sqlite3 alone, so that it is fast."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autopeft.cli.text import duration, share, table
from autopeft.cli.trial_text import pruned_at, score_text, scored
from autopeft.engine.causes import OVER_A_LIMIT, tally
from autopeft.engine.direction import told, told_result
from autopeft.errors import UsageError
from autopeft.space.layer_map import layer_map
from autopeft.study.database import DATABASE_FILE
from autopeft.study.lock import read_owner
from autopeft.study.reader import read_study
from autopeft.study.record import (
    CONTEXT_SUMMARY,
    HELD_OUT_SUMMARY,
    StudyView,
    TrialRecord,
    best_trial,
    n_tried,
    pareto_front,
)

STUDY_VIEWS = ("best", "pareto", "trials", "trial")
RUNS = Path("runs")

Report = tuple[str, Any]
"""Text for people, and the same as JSON."""


def find_run(run: str | None) -> Path:
    """The given run folder, or the one in runs/ that was changed last.

    Raises:
        UsageError: there is none.
    """
    if run is not None:
        if not (Path(run) / DATABASE_FILE).is_file():
            raise UsageError(f"{run}: no study here ({DATABASE_FILE} is missing). Give the folder that search named")
        return Path(run)
    found = [path for path in RUNS.glob(f"*/{DATABASE_FILE}") if path.is_file()]
    if not found:
        raise UsageError(f"no study in {RUNS}/ here. Start one with: autopeft search --budget 0.5%, or give --run DIR")
    return max(found, key=lambda path: path.stat().st_mtime).parent


def study_status(run: str | None) -> Report:
    folder = find_run(run)
    view = read_study(folder)
    owner = read_owner(folder)
    states = {
        state: sum(t.state == state for t in view.trials) for state in ("complete", "pruned", "failed", "running")
    }
    seconds = [t.result.seconds for t in view.trials if t.result]
    missing = max(0, view.identity.trials - n_tried(view.trials))
    left = _seconds_left(view, missing)
    rejected = sum(t.result is not None and t.result.cause == OVER_A_LIMIT for t in view.trials)
    causes = tally(t.result.cause for t in view.trials if t.result)
    of_these = f" ({', '.join(f'{n} {cause}' for cause, n in causes.items())})" if causes else ""
    data = {
        "run": str(folder),
        "trials": view.identity.trials,
        **states,
        "rejected": rejected,
        "causes": causes,
        "searching": {"pid": owner.pid, "host": owner.host, "since": owner.started} if owner else None,
        "seconds_trained": round(sum(seconds), 1),
        "seconds_left": None if left is None else round(left, 1),
        "best": trial_data(view, best_trial(view.trials)),
    }
    who = f"running (pid {owner.pid} on {owner.host})" if owner else "not running"
    if not owner and missing:
        who += f"; go on with: autopeft search --config {folder / 'config.yaml'}"
    done = f"{states['complete']}/{view.identity.trials} trials complete"
    if states["pruned"]:
        done = f"{n_tried(view.trials)}/{view.identity.trials} trials: {states['complete']} complete, "
        done += f"{states['pruned']} pruned"
    lines = [
        f"{folder}: {done}, {states['failed']} failed{of_these}, {who}",
        f"trained {duration(sum(seconds))}" + (f", about {duration(left)} left" if left and missing else ""),
    ]
    return "\n".join([*lines, "", *best_lines(view, folder)]), data


def _seconds_left(view: StudyView, missing: int) -> float | None:
    """By the pace of the last ten trials, whatever the number of workers; None before the first has ended."""
    recent = sorted((t for t in view.trials if t.finished is not None), key=lambda t: t.finished or 0.0)[-10:]
    if not recent:
        return None
    span = max(t.finished or 0.0 for t in recent) - min(t.started for t in recent)
    return max(0.0, missing * span / max(1, n_tried(recent)))


def show_study(what: Sequence[str], run: str | None) -> Report:
    """
    Raises:
        UsageError: no such trial.
    """
    folder = find_run(run)
    view = read_study(folder)
    match list(what):
        case ["best"]:
            return "\n".join(best_lines(view, folder)), trial_data(view, best_trial(view.trials))
        case ["trials"]:
            return _trial_table(view, view.trials), [trial_data(view, trial) for trial in view.trials]
        case ["pareto"]:
            front = pareto_front(view.trials)
            return _trial_table(view, front), [trial_data(view, trial) for trial in front]
        case ["trial", number] if number.isascii() and number.isdigit() and int(number) < len(view.trials):
            trial = view.trials[int(number)]
            return "\n".join(_trial_lines(view, trial)), trial_data(view, trial)
        case ["trial", number]:
            raise UsageError(f"no trial {number[:40]!r}; the study has 0 to {len(view.trials) - 1}")
    raise UsageError("show: give best, pareto, trials or trial N, or the name of a space, recipe or module")


def export_study(run: str | None, target: str, trial: int | None, out: str | None, force: bool) -> Report:
    from autopeft.export import export

    folder = find_run(run)
    place = Path(out) if out else folder / "export" / target
    return _exported(place, export(read_study(folder), folder, place, target, trial, force))


def export_folder(adapter: str, target: str, out: str | None, force: bool) -> Report:
    """
    Raises:
        ExportError: no spec in the folder, or as `export_study`.
    """
    from autopeft.export import export_adapter

    if out is None:
        raise UsageError("export: --adapter needs --out, a folder to write")
    return _exported(Path(out), export_adapter(Path(adapter), Path(out), target, force))


def _exported(place: Path, spec: Any) -> Report:
    from autopeft.export import SPEC_FILE

    files = sorted(path.name for path in place.iterdir())
    lines = [f"{place}: {', '.join(files)}"]
    if "adapter_config.json" in files:
        plain = json.loads((place / "adapter_config.json").read_text(encoding="utf-8"))["peft_type"] == "LORA"
        lines.append(
            "load it with PEFT alone" if plain else "load it with `import autopeft` and PEFT; see its README.md"
        )
    return "\n".join(lines), {"folder": str(place), "files": files, "spec": str(place / SPEC_FILE), "id": spec_id(spec)}


def spec_id(spec: Any) -> str:
    return str(spec.parsed_architecture.id)


def best_lines(view: StudyView, folder: Path) -> list[str]:
    """The best configuration in five lines."""
    best = best_trial(view.trials)
    if best is None:
        return ["no completed trial yet"]
    return _trial_lines(view, best)


def _trial_lines(view: StudyView, trial: TrialRecord) -> list[str]:
    if trial.state == "pruned":
        return [f"trial {trial.number} {pruned_at(trial)}; it has no score", *layer_map(trial.architecture)]
    if trial.result is None or trial.score is None:
        cause = f" ({trial.result.cause}): {trial.result.error}" if trial.result else ""
        return [f"trial {trial.number} {trial.state}{cause}", *layer_map(trial.architecture)]
    place = 1 + sum((t.score or 0) > trial.score for t in view.trials if t.score is not None)
    complete = sum(t.score is not None for t in view.trials)
    context = view.summary.get(CONTEXT_SUMMARY) or {}
    n_model = (context.get("base_model") or {}).get("n_parameters")
    of_model = f" = {share(trial.stored, n_model)} of the model" if n_model else ""
    training = ", ".join(f"{name} {value:.3g}" for name, value in trial.training if isinstance(value, float))
    held_out = view.summary.get(HELD_OUT_SUMMARY)
    unseen = "held out    not scored yet"
    if isinstance(held_out, dict) and held_out.get("trial") == trial.number:
        low, high = held_out["interval"]
        metric, value = next(iter(held_out["metrics"].items()))
        unseen = (
            f"held out    {metric} {value:.4f} on {held_out['rows']:,} rows the search never saw "
            f"(95% interval over rows {low:.4f} to {high:.4f}; one seed)"
        )
    elif place > 1:
        unseen = "held out    only the best trial is scored on the held-out rows"
    measured = []
    if trial.result.latency_overhead is not None:
        measured.append(f"forward pass {trial.result.latency_overhead:.2f} times the base model's")
    if trial.result.training_memory_bytes is not None:
        measured.append(f"{trial.result.training_memory_bytes / 1e6:,.0f} MB in training")
    name = f" ({trial.baseline})" if trial.baseline else ""
    parts = f"; batches in parts of {trial.result.micro_batch_size}" if trial.result.micro_batch_size else ""
    return [
        f"trial {trial.number:<5} {scored(trial)} on validation, place {place} of {complete}{name}",
        unseen,
        f"parameters  {trial.stored:,} stored{of_model}, {share(trial.stored, view.identity.budget_parameters)} of the "
        f"budget; {trial.result.trained:,} trained; head {trial.result.head:,} apart",
        "layers      " + "; ".join(layer_map(trial.architecture)),
        f"training    {training or 'as in the recipe'}; best epoch {trial.result.best_epoch} of "
        f"{len(trial.result.epochs)}; {trial.result.seconds:.1f} s{parts}",
        *([f"measured    {'; '.join(measured)}"] if measured else []),
    ]


def _trial_table(view: StudyView, trials: Sequence[TrialRecord]) -> str:
    rows = []
    named = any(trial.baseline for trial in trials)
    for trial in trials:
        score = score_text(trial)
        seconds = f"{trial.result.seconds:.1f}" if trial.result else ""
        note: str = trial.result.cause or "" if trial.result else ""
        if trial.state == "pruned" and trial.result:
            note = f"at epoch {len(trial.result.epochs)}" if trial.result.epochs else "on a part of the rows"
        if trial.state == "complete" and trial.result and trial.result.micro_batch_size:
            note = f"in parts of {trial.result.micro_batch_size}"
        state = f"{trial.state} {note}".strip()
        layers = "; ".join(layer_map(trial.architecture))
        name = [trial.baseline or ""] if named else []
        rows.append((str(trial.number), state, score, f"{trial.stored:,}", seconds, *name, layers))
    metric = told(view.identity.metric.value, 0.0)[0]
    header = ("trial", "state", metric, "parameters", "seconds", *(["baseline"] if named else []))
    return table((*header, "architecture"), rows)


def trial_data(view: StudyView, trial: TrialRecord | None) -> Any:
    """A trial as JSON; None where there is none."""
    if trial is None:
        return None
    held_out = view.summary.get(HELD_OUT_SUMMARY)
    of_this = isinstance(held_out, dict) and held_out.get("trial") == trial.number
    return {
        "number": trial.number,
        "state": trial.state,
        "metric": told(view.identity.metric.value, 0.0)[0],
        "score": None if trial.score is None else told(view.identity.metric.value, trial.score)[1],
        "stored": trial.stored,
        "params": dict(trial.params),
        "training": dict(trial.training),
        "architecture_id": trial.architecture.id,
        "architecture": trial.architecture.to_json(),
        "layers": list(layer_map(trial.architecture)),
        "retry_of": trial.retry_of,
        "baseline": trial.baseline,
        "rungs": [list(rung) for rung in trial.rungs],
        "result": told_result(trial.result.to_json()) if trial.result else None,
        "held_out": held_out if of_this else None,
    }
