"""A training of a found architecture, resolved and checked before anything is written."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autopeft.config import to_yaml
from autopeft.engine.models import load_anatomy
from autopeft.engine.recipe import TaskSpec, TrialRecipe, load_recipe
from autopeft.engine.trial import Backend, TrialJob
from autopeft.errors import ModelError, UsageError
from autopeft.export.reading import Given, read_spec
from autopeft.resources import atomic_write
from autopeft.space.architecture import Architecture
from autopeft.space.modules import Scalar
from autopeft.space.site_map import load_site_map
from autopeft.study.identity import Part
from autopeft.study.planning import LOCAL_RECIPE, RUNS, Task, metric_part, name_word, resolve_task
from autopeft.study.settings import SearchSettings
from autopeft.transfer.placing import place_in, site_map_for
from autopeft.transfer.settings import TrainSettings

_SEEDS = "seeds"
_SET_TRAINING = "training."


@dataclass(frozen=True)
class TrainPlan:
    """Everything that trainings of one architecture need."""

    out: Path
    settings: TrainSettings
    given: Given
    architecture: Architecture
    """For the model that is trained, layers mapped."""
    layers: tuple[str, ...]
    """How they were mapped, in words."""
    task: Task
    training: tuple[tuple[str, Scalar], ...]
    """What the search chose over the recipe's training."""
    backend: Backend
    identity: Mapping[str, Part]
    """What makes two runs the same: by it, finished seeds are recognised."""

    @property
    def jobs(self) -> tuple[TrialJob, ...]:
        """One a seed; the seed is the job's number."""
        seeds = range(self.settings.seed, self.settings.seed + self.settings.seeds)
        return tuple(
            TrialJob(seed, self.architecture, self.training, seed, self.out / _SEEDS / str(seed)) for seed in seeds
        )


def make_train_plan(settings: TrainSettings) -> TrainPlan:
    """
    Raises:
        UsageError: whatever is wrong with the settings, the spec, the files they name, the data or the model.
        EnvironmentProblem: a package that is needed is not installed.
    """
    given = read_spec(settings.spec)
    recipe = _recipe(settings, given)
    model = settings.model or (given.spec.base_model.name if given.spec else None) or recipe.model.name
    if model is None:
        raise ModelError(f"{given.name}: an architecture without a base model. Give one with --model")
    if settings.data is None and recipe.task.dataset is None:
        raise UsageError(f"no data: {given.name} does not say where its data are. Give them with --data")
    search = SearchSettings(budget="100%", model=model, data=settings.data, seed=settings.seed)
    if settings.site_map is not None:
        site_map, origin = load_site_map(settings.site_map), settings.site_map
    else:
        revision = recipe.model.revision if model == recipe.model.name else None
        site_map = site_map_for(given, lambda sites: load_anatomy(model, revision, sites))
        origin = given.name
    task = replace(resolve_task(search, recipe, site_map), site_map_name=origin)
    recipe = task.recipe
    architecture, layers = place_in(given, task.anatomy, may_map=True)
    training = _searched_training(settings, given)
    from autopeft.engine.transformer_backend import (
        TransformerBackend,  # torch, only after all that can be wrong is checked
    )

    protocol = recipe.training.with_changes(dict(training))
    return TrainPlan(
        out=Path(settings.out) if settings.out else RUNS / _name(settings, task, architecture),
        settings=settings,
        given=given,
        architecture=architecture,
        layers=layers,
        task=task,
        training=training,
        backend=TransformerBackend(
            model=task.model,
            revision=task.revision,
            recipe=recipe,
            data=task.data,
            site_map=site_map,
            device=settings.device,
        ),
        identity={
            "architecture": Part(architecture.id, architecture.id),
            "model": task.model_part,
            "data": Part(task.data.name, task.data.content_hash),
            "metric": metric_part(recipe.task),
            "training": Part(json.dumps(protocol, sort_keys=True), _hash(protocol)),
        },
    )


def _recipe(settings: TrainSettings, given: Given) -> TrialRecipe:
    """The one that is named; else the spec's, on a task of its own where other data are given; else `local`."""
    if settings.recipe is not None or given.spec is None:
        return load_recipe(settings.recipe or LOCAL_RECIPE, settings.set)
    found = TrialRecipe.model_validate_json(json.dumps(dict(given.spec.recipe)))
    if settings.data not in (None, found.task.dataset, given.spec.task.name):
        found = found.model_copy(update={"task": TaskSpec()})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        atomic_write(file, to_yaml(found))
        return load_recipe(str(file), settings.set)


def _searched_training(settings: TrainSettings, given: Given) -> tuple[tuple[str, Scalar], ...]:
    """What the search chose, but for what `--set` says."""
    said = {text.partition("=")[0].strip() for text in settings.set}
    chosen: Mapping[str, Any] = given.spec.training if given.spec else {}
    return tuple((name, value) for name, value in chosen.items() if f"{_SET_TRAINING}{name}" not in said)


def _name(settings: TrainSettings, task: Task, architecture: Architecture) -> str:
    return "-".join(["train", name_word(settings.data or task.data.name), name_word(task.model), architecture.id])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
