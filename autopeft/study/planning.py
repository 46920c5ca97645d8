"""From settings to a `Plan`: model, data, recipe, space and budget are resolved and checked, and nothing is written."""

import hashlib
import json
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from autopeft.config import to_yaml
from autopeft.engine.data import TaskData, load_data
from autopeft.engine.direction import sought
from autopeft.engine.fingerprint import fingerprint
from autopeft.engine.memory import default_cache_memory, parse_memory
from autopeft.engine.metrics import find_metric
from autopeft.engine.models import check_fits, load_anatomy, load_config
from autopeft.engine.pool import available_cores
from autopeft.engine.recipe import TaskSpec, TrainingSpec, TrialRecipe, load_recipe
from autopeft.errors import ConfigError
from autopeft.samplers import LEARNS_FROM_EARLIER, SAMPLERS, WEIGHS_SECONDS, find_sampler
from autopeft.samplers.named import OptunaSampler
from autopeft.space.anatomy import Anatomy
from autopeft.space.budget import ParameterBudget
from autopeft.space.depth import depth_of
from autopeft.space.search_space import SearchSpace
from autopeft.space.site_map import NO_SITE_MAP, SiteMap, find_site_map
from autopeft.space.spec import SpaceSpec, load_space
from autopeft.study.baselines import Baseline, find_baselines
from autopeft.study.bounds import parse_bounds
from autopeft.study.earlier import find_earlier
from autopeft.study.identity import Identity, Part
from autopeft.study.layout import cache_folder
from autopeft.study.limits import limit_facts, limits_of_identity, parse_limits
from autopeft.study.packs import n_pack_of
from autopeft.study.plan import Plan
from autopeft.study.pruning import halving_of, pruner_facts
from autopeft.study.settings import SearchSettings, parse_duration

RUNS = Path("runs")
SITE_MAP_FILE = "site_map.yaml"
DEMO_RECIPE, LOCAL_RECIPE = "demo", "local"
MOST_WORKERS = 4
WORKER_BYTES = 1 << 30
"""What a worker takes besides its model: libraries, data, activations."""
_SPACE_OPTION = "space."
LIBRARIES = ("autopeft", "torch", "transformers", "peft", "optuna")


@dataclass(frozen=True)
class Task:
    """What is trained: recipe, model and data, resolved."""

    recipe: TrialRecipe
    model: str
    revision: str | None
    anatomy: Anatomy
    data: TaskData
    site_map: SiteMap = NO_SITE_MAP
    site_map_name: str | None = None
    """Its file, or where else it is from; None where sites are as recognised."""

    @property
    def model_part(self) -> Part:
        """Model and site map, as parts of what is searched."""
        name, found = self.model, fingerprint(self.model, self.revision)
        if (quantisation := self.recipe.model.quantisation) != "none":
            name, found = f"{name} in {quantisation}", _hash([found, quantisation])
        if self.site_map == NO_SITE_MAP:
            return Part(name, found)
        return Part(f"{name} with site map {self.site_map_name}", _hash([found, self.site_map.to_json()]))


def make_plan(settings: SearchSettings) -> Plan:
    """Everything a search needs.

    Raises:
        UsageError: whatever is wrong with the settings, the files they name, the data, the model or the budget.
        EnvironmentProblem: a package that is needed is not installed.
    """
    sampler = find_sampler(settings.sampler)
    budget = ParameterBudget.parse(settings.budget)
    seconds = parse_duration("time", settings.time) if settings.time else None
    max_trained, limits = parse_limits(settings)
    bounds = parse_bounds(settings)
    cache = default_cache_memory()
    if settings.cache_memory is not None:
        cache = parse_memory("cache-memory", settings.cache_memory)
    recipe, spec, site_map = load_files(settings)
    task = resolve_task(settings, recipe, site_map)
    recipe = task.recipe
    space = bind_space(spec, task.anatomy, budget, max_trained)
    if isinstance(sampler, OptunaSampler):
        sampler.check(space, settings.objective)
    n_trials = settings.trials or recipe.trials
    halving = halving_of(settings, recipe.training.epochs)
    baselines, notes = first_trials(space, recipe) if settings.baselines else ((), ())
    run = Path(settings.run) if settings.run else RUNS / _run_name(settings, task)
    earlier, told = find_earlier(settings.from_, run, space)
    facts = {name: _version(name) for name in LIBRARIES}
    from autopeft.engine.reuse import CacheMemory  # torch, only after all that can be wrong is checked
    from autopeft.engine.transformer_backend import TransformerBackend

    identity = Identity(
        space=Part(settings.space, _hash(spec.content())),
        model=task.model_part,
        data=Part(task.data.name, task.data.content_hash),
        metric=metric_part(recipe.task),
        training=Part(_protocol(recipe.training), _hash(recipe.training.content())),
        objective=settings.objective,
        seed=settings.seed,
        budget=settings.budget,
        budget_parameters=space.budget or 0,
        trials=n_trials,
        time=seconds,
        earlier=settings.from_,
        limits=limits_of_identity(space, limits),
        facts=facts,
    )
    n_workers = settings.workers or default_workers(task.anatomy.n_parameters, settings.device)
    n_pack = n_pack_of(settings, task.anatomy, recipe.training, task.data)
    memory = CacheMemory(
        cache // n_workers,
        n_workers,
        cache_folder(run) if n_workers > 1 else None,
        settings.cache_dtype == "float16",
        n_pack,
    )
    resolved = settings.model_copy(
        update={"run": str(run), "trials": n_trials, "model": task.model, "recipe": _file(run, "recipe.yaml")}
        | {"space": _file(run, "space.yaml"), "set": ()}
    )
    files = [("recipe.yaml", to_yaml(recipe)), ("space.yaml", to_yaml(spec))]
    if settings.site_map is not None:
        resolved = resolved.model_copy(update={"site_map": _file(run, SITE_MAP_FILE)})
        files.append((SITE_MAP_FILE, to_yaml(site_map)))
    files.append(("config.yaml", f"# autopeft search --config {_file(run, 'config.yaml')}\n{to_yaml(resolved)}"))
    return Plan(
        run=run,
        settings=settings,
        identity=identity,
        space=space,
        sampler=sampler,
        backend=TransformerBackend(
            model=task.model,
            revision=task.revision,
            recipe=recipe,
            data=task.data,
            limits=limits,
            cache=memory,
            site_map=site_map,
            device=settings.device,
        ),
        budget=budget,
        n_trials=n_trials,
        seconds=seconds,
        bounds=bounds,
        n_workers=n_workers,
        n_pack=n_pack,
        files=tuple(files),
        context=context_of(task),
        facts=_facts(task) + limit_facts(space, limits) + pruner_facts(halving, recipe.training.epochs),
        notes=(*task.data.notes, *notes, *told, *_without_effect(settings)),
        baselines=baselines,
        earlier=earlier,
        halving=halving,
    )


def load_files(settings: SearchSettings) -> tuple[TrialRecipe, SpaceSpec, SiteMap]:
    """The recipe and the space, with `--set` laid over them, and the site map; the mistakes of all at once.

    Raises:
        ConfigError: everything that is wrong with the files and the options.
        UnknownNameError: no such recipe or space.
    """
    for_space = [text.removeprefix(_SPACE_OPTION) for text in settings.set if text.startswith(_SPACE_OPTION)]
    for_recipe = [text for text in settings.set if not text.startswith(_SPACE_OPTION)]
    problems: list[str] = []
    recipe = spec = site_map = None
    try:
        recipe = load_recipe(settings.recipe or _default_recipe(settings), for_recipe)
    except ConfigError as error:
        problems += error.problems
    try:
        spec = load_space(settings.space, for_space)
    except ConfigError as error:
        problems += error.problems
    try:
        site_map = find_site_map(settings.site_map)
    except ConfigError as error:
        problems += error.problems
    if recipe is None or spec is None or site_map is None:
        raise ConfigError(problems)
    return recipe, spec, site_map


def resolve_task(settings: SearchSettings, recipe: TrialRecipe, site_map: SiteMap) -> Task:
    """Model and data of the settings, or else of the recipe, or else the embedded ones.

    Raises:
        ModelError: no such model, it cannot be adapted, or the site map does not fit it.
        DataError: no such data, or they cannot be learned from.
        EnvironmentProblem: the embedded model's package is not installed.
    """
    embedded = load_recipe(DEMO_RECIPE)
    model = settings.model or recipe.model.name or embedded.model.name
    assert model is not None
    revision = recipe.model.revision if settings.model in (None, recipe.model.name) else None
    if recipe.model.quantisation != "none":
        from autopeft.engine.quantisation import check_installed

        check_installed(recipe.model.quantisation)
    source = settings.data or recipe.task.dataset or embedded.task.dataset
    data = load_data(recipe.task, None if source == recipe.task.dataset else source, settings.seed)
    anatomy = load_anatomy(model, revision, site_map)
    check_fits(model, load_config(model, revision), data.problem, anatomy)
    recipe = recipe.model_copy(update={"task": recipe.task.resolved(data.problem.name)})
    return Task(recipe, model, revision, anatomy, data, site_map, settings.site_map)


def bind_space(
    spec: SpaceSpec, anatomy: Anatomy, budget: ParameterBudget, max_trained: ParameterBudget | None = None
) -> SearchSpace:
    """
    Raises:
        BudgetError: nothing of the space fits; names the smallest reachable budget.
        ConfigError: nothing of the space can stand in the model.
    """
    n_model = anatomy.n_parameters
    trained = max_trained.resolve(n_model) if max_trained else None
    space = SearchSpace(spec, anatomy, budget.resolve(n_model), trained)
    if not any(space.is_valid(candidate) for candidate in space.smallest_candidates):
        raise space.infeasible()
    return space


def first_trials(space: SearchSpace, recipe: TrialRecipe) -> tuple[tuple[Baseline, ...], tuple[str, ...]]:
    """The published configurations that the space holds, and what to say about them."""
    found, absent = find_baselines(space, recipe.training.model_dump())
    notes = []
    if found:
        notes.append("first trials: " + ", ".join(baseline.name for baseline in found))
    if absent:
        notes.append("not in this space: " + ", ".join(f"{name} ({reason})" for name, reason in absent))
    return found, tuple(notes)


def _without_effect(settings: SearchSettings) -> tuple[str, ...]:
    """What is asked for and the sampler does not do."""
    name = settings.sampler
    notes = []
    if settings.from_ and name not in LEARNS_FROM_EARLIER:
        notes.append(f"sampler {name} does not look at the trials of --from; {_those(LEARNS_FROM_EARLIER)}")
    if settings.cost_aware and name not in WEIGHS_SECONDS:
        notes.append(f"sampler {name} does not weigh seconds as --cost-aware asks; {_those(WEIGHS_SECONDS)}")
    return tuple(notes)


def _those(names: frozenset[str]) -> str:
    able = [name for name in SAMPLERS if name in names]
    return f"{' and '.join(able)} would" if able else "none that is here would"


def default_workers(n_parameters: int, device: str = "auto") -> int:
    """One worker a GPU that is meant; else up to four that share the cores, as far as memory goes.

    Processes with few threads each use a CPU better than one with many: threads of one trial wait for one another,
    trials do not.

    Raises:
        EnvironmentProblem: there is no such device.
    """
    from autopeft.engine.devices import find_devices

    devices = find_devices(device)
    if devices[0].type != "cpu":
        return len(devices)
    per_worker = 4 * 3 * n_parameters + WORKER_BYTES
    fitting = psutil.virtual_memory().available // 2 // per_worker
    return max(1, min(MOST_WORKERS, available_cores(), fitting))


def _default_recipe(settings: SearchSettings) -> str:
    return DEMO_RECIPE if settings.data is None else LOCAL_RECIPE


def _run_name(settings: SearchSettings, task: Task) -> str:
    """`rte-bert-base-uncased-hybrid-0.5pct-seed0`, from what the user named."""
    parts = [name_word(settings.data or task.data.name)]
    if settings.model:
        parts.append(name_word(settings.model))
    if settings.site_map:
        parts.append(name_word(settings.site_map))
    if settings.recipe not in (None, _default_recipe(settings)):
        parts.append(name_word(settings.recipe or ""))
    limits = {
        "trained": settings.max_trained,
        "latency": settings.max_latency_overhead,
        "memory": settings.max_memory,
    }
    budgets = [settings.budget, *(f"{name}{text}" for name, text in limits.items() if text)]
    parts += [name_word(settings.space), *(text.replace("%", "pct") for text in budgets), f"seed{settings.seed}"]
    return "-".join(parts)


def name_word(name: str) -> str:
    """The part of a path or id that tells it from others, safe as a file name."""
    path = Path(name)
    stem = path.stem if path.suffix in {".jsonl", ".json", ".csv", ".tsv", ".parquet", ".yaml", ".yml"} else path.name
    if stem in {"train", "data"} and path.parent.name:
        stem = path.parent.name
    word = re.sub(r"[^A-Za-z0-9._]+", "-", stem).strip("-.")
    return word[:60] or "unnamed"


def _file(run: Path, name: str) -> str:
    return str(run / name)


def metric_part(task: TaskSpec) -> Part:
    """The metric of a resolved task, as a part of what is searched."""
    metric = find_metric(task.metric or "", task.problem or "")
    name = sought(metric.name, 0.0)[0] if metric.is_minimised else metric.name
    return Part(name, _hash([task.metric, task.problem]))


def context_of(task: Task) -> dict[str, Any]:
    """What exports need to know of the study; see `autopeft.export.spec`."""
    return {
        "base_model": {
            "name": task.model,
            "revision": task.revision,
            "model_type": task.anatomy.model_type,
            "anatomy": task.anatomy.fingerprint,
            "n_parameters": task.anatomy.n_parameters,
            "layers": depth_of(task.anatomy),
            "site_map": task.site_map.to_json(),
        },
        "recipe": task.recipe.model_dump(mode="json"),
        "task": {
            "name": task.data.name,
            "hash": task.data.content_hash,
            "rows": {split: len(rows) for split, rows in task.data.splits.items()},
            "labels": list(task.data.label_names),
        },
    }


def _facts(task: Task) -> tuple[tuple[str, str], ...]:
    splits = ", ".join(f"{split} {len(rows):,}" for split, rows in task.data.splits.items())
    return (
        ("model", f"{task.model} ({task.anatomy.model_type}, {task.anatomy.n_layers} layers{_bits(task.recipe)})"),
        *site_facts(task),
        (
            "data",
            f"{task.data.name}: {splits} rows, {task.data.problem.describe()}; {_aim(task)} on validation",
        ),
        ("trial", f"at most {_protocol(task.recipe.training)}"),
    )


def _aim(task: Task) -> str:
    metric = find_metric(task.recipe.task.metric or "", task.data.problem_name)
    return f"{'minimises' if metric.is_minimised else 'maximises'} {metric.name}"


def _bits(recipe: TrialRecipe) -> str:
    quantisation = recipe.model.quantisation
    return "" if quantisation == "none" else f", frozen weights in {quantisation}"


def site_facts(task: Task) -> tuple[tuple[str, str], ...]:
    """What the user is told of a site map; nothing where there is none."""
    if task.site_map == NO_SITE_MAP:
        return ()
    roles = dict.fromkeys(role for _, _, layer in task.anatomy.layers for role in layer.roles)
    return (("sites", f"{', '.join(roles)}; by {task.site_map_name}"),)


def _protocol(training: TrainingSpec) -> str:
    patience = f", patience {training.patience}" if training.patience else ""
    return (
        f"{training.epochs} epochs{patience}, batch {training.batch_size}, {training.max_length} tokens, "
        f"learning rate {training.learning_rate:g} unless searched"
    )


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
