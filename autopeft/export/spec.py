"""The adapter spec: an architecture with its base model, recipe and evidence, as JSON that outlives this program.

Its JSON Schema is what `autopeft schema spec` prints. Specs hold roles, and module paths in a user's site map alone:
they can be applied to another model, see `autopeft.transfer`. Files of older versions are read through `migration`.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from autopeft.config import Frozen
from autopeft.engine.direction import told
from autopeft.errors import ExportError
from autopeft.space.architecture import Architecture
from autopeft.space.site_map import NO_SITE_MAP, SiteMap
from autopeft.study.record import CONTEXT_SUMMARY, HELD_OUT_SUMMARY, StudyView, TrialRecord

SPEC_FILE = "autopeft_spec.json"
FORMAT_VERSION = 2


class BaseModelSpec(Frozen):
    """The model that the adapter was trained on."""

    name: str
    """Hub id, folder, or package:NAME."""
    revision: str | None = None
    """Of a hub model."""
    model_type: str
    """As transformers names it."""
    anatomy: str
    """Fingerprint of its layers, widths and roles."""
    n_parameters: int
    """As AutoModel loads it: task head excluded, tied weights once."""
    layers: Mapping[str, int] = Field(default_factory=dict)
    """Stack → number of layers; empty in specs of version 1, which did not say."""
    site_map: SiteMap | None = None
    """Where its sites are; absent where they are recognised by name."""

    @property
    def sites(self) -> SiteMap:
        """The site map; the empty one where there is none."""
        return self.site_map or NO_SITE_MAP

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = write(self)
        if self.site_map is None:  # so that readers who know none take the spec
            del data["site_map"]
        return data


class TaskEvidence(Frozen):
    """The data that the figures are about."""

    name: str
    """Data set."""
    hash: str
    """Of the rows of all splits."""
    rows: Mapping[str, int]
    """Split → rows."""
    labels: tuple[str, ...]
    """Class names, in the order of the head's outputs; empty for regression."""


class ParameterEvidence(Frozen):
    """Exact numbers of parameters."""

    stored: int
    """In the adapter file, task head apart: what the budget bounds."""
    trained: int
    """By the optimiser, task head apart."""
    head: int
    """Of the task head, which trains with the adapter."""
    budget: str | None
    """As the search was given it; None where the adapter was not searched for on this model."""
    budget_parameters: int | None
    """What it came to on this model."""


class HeldOutEvidence(Frozen):
    """The final figure: rows that the search never saw."""

    split: str
    rows: int
    metrics: Mapping[str, float]
    """The metric of the search first."""
    interval: tuple[float, float]
    """95 % bootstrap interval of that metric over the rows; the spread over seeds is not in it."""


class SeedFigure(Frozen):
    """One training of the architecture."""

    seed: int
    """Of the first weights, the order of batches and dropout."""
    validation: float
    """At its best epoch."""
    held_out: float
    """On rows that no training saw."""


class SeedEvidence(Frozen):
    """The metric on the held-out rows, over trainings that differ in their seed alone."""

    figures: tuple[SeedFigure, ...]
    """In the order of the seeds."""
    mean: float
    """Of the held-out figures."""
    interval: tuple[float, float] | None
    """95 % t-interval of that mean over seeds; None for one seed. The spread over rows is not in it."""
    saved_seed: int
    """Whose weights are in the adapter file: the best on validation."""


class Evidence(Frozen):
    """What was measured for this architecture."""

    metric: str
    """What the search was for."""
    validation: float
    """At the best epoch, on the split that the search selects by: optimistic."""
    held_out: HeldOutEvidence | None
    """Of the saved weights; of a study, only for its best trial."""
    trial: int | None
    """Number of the trial that found the architecture; None where no study did."""
    trials: int | None
    """Completed trials of that study."""
    seed: int | None
    """Of that study."""
    seeds: SeedEvidence | None = None
    """Where the architecture was trained with several seeds."""


class Origin(Frozen):
    """Where an architecture was found that was then trained elsewhere."""

    base_model: str
    """Name of the model that it was found on."""
    task: str
    """Data set that it was found on."""
    metric: str
    """What the search was for."""
    validation: float
    """What it scored there, on the rows that selected it."""
    layers: tuple[str, ...] = ()
    """How its layers were mapped, where the depth differs."""


class AdapterSpec(Frozen):
    """An adapter that a search has found."""

    version: Literal[2]
    """Of this format."""
    kind: Literal["autopeft adapter spec"]
    """Tells the file from other JSON."""
    architecture: Mapping[str, Any]
    """Placements: stack, layer, role, module, size, options."""
    base_model: BaseModelSpec
    """What it was trained on."""
    parameters: ParameterEvidence
    """Its size."""
    training: Mapping[str, bool | int | float | str]
    """Training settings that the search chose over the recipe's."""
    recipe: Mapping[str, Any]
    """The trial recipe."""
    task: TaskEvidence
    """The data."""
    evidence: Evidence
    """What was measured."""
    origin: Origin | None = None
    """Where the architecture was found, if it was transferred from there."""
    provenance: Mapping[str, str] = Field(default_factory=dict)
    """Versions of the libraries that made it."""

    @field_validator("architecture")
    @classmethod
    def _is_an_architecture(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        return Architecture.from_json(value).to_json()

    @property
    def parsed_architecture(self) -> Architecture:
        return Architecture.from_json(self.architecture)

    def to_text(self) -> str:
        """The content of `autopeft_spec.json`."""
        return self.model_dump_json(indent=2) + "\n"


def spec_of(view: StudyView, trial: TrialRecord) -> AdapterSpec:
    """The spec of a completed trial.

    Raises:
        ExportError: the trial is not complete, or the study does not say what it trained.
    """
    if trial.result is None or trial.score is None:
        raise ExportError(f"trial {trial.number} is {trial.state}: only completed trials can be exported")
    context = view.summary.get(CONTEXT_SUMMARY)
    if not isinstance(context, dict):
        raise ExportError("the study does not record its model and data: it was not made by `autopeft search`")
    metric, validation = told(view.identity.metric.value, trial.score)
    held_out = view.summary.get(HELD_OUT_SUMMARY)
    of_this_trial = isinstance(held_out, dict) and held_out.get("trial") == trial.number
    data = {
        "version": FORMAT_VERSION,
        "kind": "autopeft adapter spec",
        "architecture": trial.architecture.to_json(),
        "base_model": context["base_model"],
        "parameters": {
            "stored": trial.result.stored,
            "trained": trial.result.trained,
            "head": trial.result.head,
            "budget": view.identity.budget,
            "budget_parameters": view.identity.budget_parameters,
        },
        "training": dict(trial.training),
        "recipe": context["recipe"],
        "task": context["task"],
        "evidence": {
            "metric": metric,
            "validation": validation,
            "held_out": {k: v for k, v in held_out.items() if k != "trial"} if of_this_trial and held_out else None,
            "trial": trial.number,
            "trials": sum(t.state == "complete" for t in view.trials),
            "seed": view.identity.seed,
        },
        "provenance": dict(view.identity.facts),
    }
    return AdapterSpec.model_validate_json(json.dumps(data, allow_nan=False))
