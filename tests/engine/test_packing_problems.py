"""Trials of every kind of problem that train together end as each does alone."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from autopeft.engine.batches import Batch
from autopeft.engine.data import load_data
from autopeft.engine.recipe import TrialRecipe
from autopeft.engine.reuse import CacheMemory
from autopeft.engine.training import TransformerTrainer
from autopeft.engine.transformer_backend import TransformerBackend
from autopeft.hybrid import anatomy_of
from autopeft.space.architecture import Architecture, place
from tests.engine.checkpoints import checkpoint
from tests.engine.tasks import TASKS, image_folder, write
from tests.engine.test_packing import assert_same_ends
from tests.hybrid.adapted import mixed
from tests.models import tiny

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("garbage_found_fast")

PROBLEMS = (*TASKS, "image_classification")


class Opened:
    """Trainers by problem, precision and size of the cache, each made once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.trainer = cache(self._trainer)

    def _trainer(self, name: str, dtype: torch.dtype, cache: int, metric: str | None = None) -> TransformerTrainer:
        rows, family = TASKS.get(name, (None, "vit"))
        model, data = self._folder / family, self._folder / name
        if not model.exists():
            tiny("vit").save_pretrained(model) if family == "vit" else checkpoint(model, family)
        if not data.exists():
            image_folder(data, 40) if rows is None else write(data.with_suffix(".jsonl"), rows(40))
        training = {"batch_size": 8, "max_length": 16}
        recipe = TrialRecipe.model_validate({"version": 1, "task": {"metric": metric}, "training": training})
        read = load_data(recipe.task, data if rows is None else data.with_suffix(".jsonl"))
        trainer = TransformerBackend(str(model), None, recipe, read, cache=CacheMemory(cache)).open()
        if dtype is torch.float64:
            make_double(trainer)
        return trainer


def make_double(trainer: TransformerTrainer) -> None:
    """Compute in 64 bits, in which rounding hides nothing."""
    trainer._base.model.double()

    def forward(adapted: Any, batch: Batch) -> torch.Tensor:
        inputs = trainer._problem.inputs(batch)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].double()
        return trainer._problem.read(adapted(**inputs).logits, batch)

    trainer._forward = forward  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return Opened(tmp_path_factory.mktemp("problems"))


def architectures(trainer: TransformerTrainer) -> list[Architecture]:
    """Kinds that are computed together and kinds that are not, which begin in several layers of every stack."""
    anatomy = anatomy_of(trainer._base.model.config)
    stacks = sorted({stack for stack, _, _ in anatomy.layers})
    query = {stack: layer.sites[0].role for stack, _, layer in anatomy.layers}
    first, last = stacks[0], stacks[-1]
    found = [
        Architecture.of(place(stack, 1, "ffn", "parallel", 4) for stack in stacks),
        Architecture.of([place(first, 0, query[first], "lora", 2), place(last, 1, "ffn", "serial", 3)]),
        Architecture.of([place(last, 1, query[last], "lora", 3, {"gate": "token"})]),
        Architecture.of([place(last, 1, "attn", "prefix", 2), place(last, 0, query[last], "lora", 1)]),
    ]
    if trainer._problem.has_head:
        found.append(Architecture.of([]))
    if "attn.q" in query.values() and len(stacks) == 1:
        found.append(mixed(anatomy, "token"))
    return found


CASES = [*((name, 10**8) for name in PROBLEMS), ("multiple_choice", 0), ("seq2seq", 0)]


@pytest.mark.parametrize(("name", "cache"), CASES)
def test_trials_of_a_problem_end_as_each_does_alone(
    name: str, cache: int, opened: Opened, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = opened.trainer(name, torch.float64, cache)
    todo = architectures(trainer)
    seen = assert_same_ends(trainer, tmp_path, todo, 4, 1e-9, epochs=2)
    assert max(len(numbers) for numbers, _ in seen) == 4
    assert not caplog.records, "they went on one by one"


MADE = {"causal_lm": "exact_match", "seq2seq": "rougeL"}
"""Metrics for which texts are made after every epoch, with each trial's adapters alone in the model."""


@pytest.mark.parametrize("name", PROBLEMS)
def test_in_32_bits_they_end_within_a_millionth(
    name: str, opened: Opened, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = opened.trainer(name, torch.float32, 10**8, MADE.get(name))
    assert_same_ends(trainer, tmp_path, architectures(trainer), 3, 1e-6, epochs=2, learning_rate=1e-4)
    assert not caplog.records, "they went on one by one"
