"""Before any ratio is told: does our engine train what the HF Trainer trains?

One configuration is trained by both from the same first weights, on the same rows in the same order, without dropout,
and the losses of all steps are compared. LoRA meets PEFT's own LoRA; other kinds meet the same modules in a model that
is computed from its first layer to its last token, at every step.
"""

import math
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autopeft.bench.laws import Configuration
from autopeft.bench.stock_trials import Course, StockTask, StockTrials, Way
from autopeft.engine.batches import TokenisedSplit, training_order
from autopeft.engine.recipe import TrialRecipe
from autopeft.engine.shared_model import SharedModel
from autopeft.engine.training import TransformerTrainer
from autopeft.engine.trial import TrialJob
from autopeft.errors import AutopeftError

TOLERANCE = 1e-5
"""Largest difference of the losses of one step."""
BATCH = 8
"""Rows of a step: fewer than in the measurement, since the check is of numbers and not of seconds."""

_PLAIN = Way("without dropout", dropout=False)


@dataclass(frozen=True)
class Agreement:
    """How far the losses of two trainings are apart."""

    configuration: str
    steps: int
    largest: float
    first_loss: float
    last_loss: float


class LossesDifferError(AutopeftError):
    """Our engine does not train what the HF Trainer trains: its speed means nothing."""


def check_losses(
    base: SharedModel,
    splits: dict[str, TokenisedSplit],
    task: StockTask,
    configurations: Sequence[Configuration],
    steps: int,
    seed: int,
) -> list[Agreement]:
    """
    Raises:
        LossesDifferError: at some step the losses are further apart than `TOLERANCE`.
    """
    recipe = _recipe(task.recipe, len(splits["train"]), steps)
    task = StockTask(task.model, task.revision, recipe, task.data, task.head, task.device)
    ours = TransformerTrainer(base, recipe, splits)
    stock = StockTrials(task, _PLAIN)
    return [_checked(base, ours, stock, splits["train"], recipe, one, steps, seed) for one in configurations]


def _recipe(recipe: TrialRecipe, n_rows: int, steps: int) -> TrialRecipe:
    epochs = math.ceil(steps / math.ceil(n_rows / BATCH))
    changes = {"batch_size": BATCH, "epochs": epochs, "dropout": 0.0, "gradient_clip": recipe.training.gradient_clip}
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=changes)})


def _checked(
    base: SharedModel,
    ours: TransformerTrainer,
    stock: StockTrials,
    split: TokenisedSplit,
    recipe: TrialRecipe,
    configuration: Configuration,
    steps: int,
    seed: int,
) -> Agreement:
    with tempfile.TemporaryDirectory() as folder:
        found = _our_losses(ours, TrialJob(0, configuration.architecture, (), seed, Path(folder)), steps)
    spec = recipe.training
    order = [
        rows
        for epoch in range(1, spec.epochs + 1)
        for rows in training_order(split.lengths, spec.batch_size, seed, epoch)
    ]
    expected: list[float] = []
    weights = _first_weights(base, configuration, seed)
    stock.train(configuration, seed, Course(weights, order[:steps], len(order), expected.append))
    apart = [abs(a - b) for a, b in zip(found, expected, strict=True)]
    if not all(difference <= TOLERANCE for difference in apart):
        step = next(i for i, difference in enumerate(apart) if not difference <= TOLERANCE)
        raise LossesDifferError(
            f"bench: {configuration.name}: at step {step + 1} the loss is {found[step]:.7f}, the HF Trainer's "
            f"{expected[step]:.7f} (allowed: {TOLERANCE:g} apart). No ratio is told for an engine that trains "
            "something else"
        )
    return Agreement(configuration.name, len(apart), max(apart), expected[0], expected[-1])


class _EnoughError(Exception):
    """All steps that were wanted are done."""


def _our_losses(ours: TransformerTrainer, job: TrialJob, steps: int) -> list[float]:
    losses: list[float] = []

    def keep(loss: Tensor) -> None:
        losses.append(float(loss))
        if len(losses) == steps:
            raise _EnoughError

    with suppress(_EnoughError):
        ours.train(job, lambda record: None, on_step=keep)
    return losses


def _first_weights(base: SharedModel, configuration: Configuration, seed: int) -> dict[str, Any]:
    with base.adapted(configuration.architecture, dropout=0.0, seed=seed) as adapted, torch.no_grad():
        return {name: p.detach().clone().cpu() for name, p in adapted.named_parameters() if p.requires_grad}
