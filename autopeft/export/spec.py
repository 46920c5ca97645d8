"""The adapter spec: an architecture with its base model, recipe and evidence, as JSON that outlives this program.

Its JSON Schema is what `autopeft schema spec` prints. Specs hold roles, never module paths: they can be applied to
another model with the same layers.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from autopeft.config import Frozen
from autopeft.errors import ExportError
from autopeft.space.architecture import Architecture
from autopeft.study.record import CONTEXT_SUMMARY, HELD_OUT_SUMMARY, StudyView, TrialRecord

SPEC_FILE = "autopeft_spec.json"


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
    budget: str
    """As it was given."""
    budget_parameters: int
    """What it came to on this model."""


class HeldOutEvidence(Frozen):
    """The final figure: rows that the search never saw."""

    split: str
    rows: int
    metrics: Mapping[str, float]
    """The maximised metric first."""
    interval: tuple[float, float]
    """95 % bootstrap interval of that metric over the rows; the spread over seeds is not in it."""


class Evidence(Frozen):
    """What the study measured for this architecture."""

    metric: str
    """What was maximised."""
    validation: float
    """At the best epoch, on the split that the search selects by: optimistic."""
    held_out: HeldOutEvidence | None
    """Only for the study's best trial."""
    trial: int
    """Number of the trial."""
    trials: int
    """Completed trials of the study."""
    seed: int
    """Of the study."""


class AdapterSpec(Frozen):
    """An adapter that a search has found."""

    version: Literal[1]
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
    held_out = view.summary.get(HELD_OUT_SUMMARY)
    of_this_trial = isinstance(held_out, dict) and held_out.get("trial") == trial.number
    data = {
        "version": 1,
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
            "metric": view.identity.metric.value,
            "validation": trial.score,
            "held_out": {k: v for k, v in held_out.items() if k != "trial"} if of_this_trial and held_out else None,
            "trial": trial.number,
            "trials": sum(t.state == "complete" for t in view.trials),
            "seed": view.identity.seed,
        },
        "provenance": dict(view.identity.facts),
    }
    return AdapterSpec.model_validate_json(json.dumps(data, allow_nan=False))
