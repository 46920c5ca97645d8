"""Every kind of problem: found, trained, scored and saved by the same code, and exactly so in parts."""

import math
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

import autopeft
from autopeft.engine.data import load_data
from autopeft.engine.generating import generate
from autopeft.engine.images import ImageReader
from autopeft.engine.problem_names import METRICS_OF, ProblemName
from autopeft.engine.problems import PROBLEMS
from autopeft.engine.recipe import TrialRecipe
from autopeft.engine.reuse import CacheMemory
from autopeft.engine.scoring import judge
from autopeft.engine.training import TransformerTrainer
from autopeft.engine.transformer_backend import TransformerBackend
from autopeft.engine.trial import TrialJob, TrialResult
from autopeft.space.architecture import Architecture, place
from tests.engine.checkpoints import checkpoint
from tests.engine.tasks import TASKS, image_folder, write
from tests.models import tiny

torch.set_num_threads(1)


@dataclass
class Trained:
    """A trainer, the trial that it has trained, the losses of its steps and how it ended."""

    trainer: TransformerTrainer
    job: TrialJob
    losses: list[float]
    result: TrialResult


class Workshop:
    """Opens and trains each task once for all tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trained = cache(self._trained)
        self.opened = cache(self._opened)
        for family in {family for _, family in TASKS.values()}:
            checkpoint(folder / family, family)
        for name, (rows, _) in TASKS.items():
            write(self.file(name), rows(40))

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def _opened(self, name: str, metric: str | None = None, cache: int = 10**8) -> TransformerTrainer:
        made = recipe(metric)
        data = load_data(made.task, self.file(name))
        model = str(self.folder / TASKS[name][1])
        return TransformerBackend(model, None, made, data, cache=CacheMemory(cache)).open()

    def _trained(self, name: str, metric: str | None = None, cache: int = 10**8) -> Trained:
        trainer, losses = self.opened(name, metric, cache), list[float]()
        job = TrialJob(0, upper_layers(trainer), (), 5, self.folder / f"{name}-{metric}-{cache}")
        job.folder.mkdir()
        result = trainer.train(job, lambda epoch: None, on_step=lambda loss: losses.append(float(loss)))
        return Trained(trainer, job, losses, result)


def recipe(metric: str | None = None) -> TrialRecipe:
    training = {"epochs": 2, "batch_size": 8, "learning_rate": 1e-2, "max_length": 16}
    return TrialRecipe.model_validate({"version": 1, "task": {"metric": metric}, "training": training})


def upper_layers(trainer: TransformerTrainer) -> Architecture:
    """An adapter beside the FFN in the upper layer of every stack."""
    stacks = sorted({stack for stack, _, _ in trainer._base.anatomy.layers})
    return Architecture.of(place(stack, 1, "ffn", "parallel", 4) for stack in stacks)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("problems"))


def test_the_names_of_problems_are_those_of_the_recipe():
    assert set(PROBLEMS) == set(METRICS_OF) == set(get_args(ProblemName))
    assert all(make(()).name == name for name, make in PROBLEMS.items())


@pytest.mark.parametrize("name", TASKS)
def test_a_problem_is_found_from_the_data_and_learned(workshop, name):
    trained = workshop.trained(name)
    trainer, result = trained.trainer, trained.result
    assert trainer._problem.name == ("causal_lm" if name == "plain_text" else name)
    assert result.state == "complete"
    assert result.epochs[-1].train_loss < result.epochs[0].train_loss
    evaluation = trainer.evaluate(trained.job, "test")
    low, high = evaluation.interval
    metric, value = evaluation.metrics[0]
    assert metric == METRICS_OF[trainer._problem.name][0]
    assert low <= value <= high
    assert evaluation.n_rows == len(trainer._splits["test"])
    assert (result.head == 0) == (name in {"causal_lm", "plain_text", "seq2seq"})


@pytest.mark.parametrize("name", TASKS)
def test_training_with_the_cache_is_training_without(workshop, name, caplog):
    with_cache, without = workshop.trained(name), workshop.trained(name, None, 0)
    assert with_cache.losses == pytest.approx(without.losses, abs=1e-6)
    assert with_cache.trainer._reuse._cache._entries
    assert not without.trainer._reuse._cache._entries
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("name", TASKS)
def test_a_batch_in_parts_has_the_loss_and_the_gradient_of_the_whole(workshop, name):
    trainer = workshop.opened(name)
    split, problem = trainer._splits["train"], trainer._problem
    with trainer._base.adapted(upper_layers(trainer), dropout=0.0, seed=1) as adapted:
        trained = [p for p in adapted.parameters() if p.requires_grad]

        def losses(rows):
            batch = split.batch(torch.tensor(rows))
            outputs = trainer._forward(adapted, batch)
            return problem.losses(outputs, batch.labels), problem.weights(batch.labels)

        whole, n = losses(range(8))
        loss = whole.sum() / n.sum()
        expected = torch.autograd.grad(loss, trained)
        parts = [losses(rows)[0].sum() / n.sum() for rows in ([0, 1, 2], [3], [4, 5, 6, 7])]
        assert float(sum(parts)) == pytest.approx(float(loss), abs=1e-6)
        for a, b in zip(torch.autograd.grad(sum(parts), trained), expected, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_the_loss_is_that_of_transformers(workshop, name):
    trainer = workshop.opened(name)
    batch = trainer._splits["train"].batch(torch.arange(6))
    if name == "plain_text":
        trainer._base.model.config.pad_token_id = None
    inputs = trainer._problem.inputs(batch)
    inputs.pop("decoder_input_ids", None)
    with torch.no_grad():
        expected = trainer._base.model(**inputs, labels=batch.labels).loss
        sums = trainer._losses(trainer._forward(trainer._base.model, batch), batch)
        found = sums / trainer._problem.weights(batch.labels).sum()
    assert float(found) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_scores_do_not_depend_on_the_size_of_the_batches(workshop, name):
    trained = workshop.trained(name)
    trainer = trained.trainer
    split = trainer._splits["test"]
    with trainer._base.loaded(trained.job.folder) as adapted:
        whole, parts = (judge(trainer._problem, split, n, partial(trainer._forward, adapted)) for n in (100, 3))
    assert dict(parts.scores(trainer._metrics)) == pytest.approx(dict(whole.scores(trainer._metrics)), rel=1e-5)
    assert torch.allclose(whole.losses, parts.losses, atol=1e-5)


@pytest.mark.parametrize(("name", "metric"), [("causal_lm", "exact_match"), ("seq2seq", "rougeL")])
def test_made_texts_are_those_of_the_model_and_training_goes_on_as_before(workshop, name, metric):
    plain, made = workshop.trained(name), workshop.trained(name, metric)
    assert plain.losses == made.losses
    assert made.result.epochs[0].metrics[0][0] == metric
    base, problem, split = made.trainer._base, made.trainer._problem, made.trainer._splits["test"]
    with base.loaded(made.job.folder) as adapted:
        texts = generate(base, adapted, split, 4)
        for row in range(3):
            prompt, longest = problem.prompts(split)[row].long()[None], int(split.n_labels.max())
            out = adapted.generate(input_ids=prompt, do_sample=False, use_cache=False, max_new_tokens=longest)
            new = out[0] if name == "seq2seq" else out[0, prompt.shape[1] :]
            assert texts[row] == base.tokenizer.decode(new, skip_special_tokens=True)


def test_a_minimised_metric_goes_through_a_search_as_its_negative(workshop):
    trained = workshop.trained("causal_lm")
    metrics = dict(trained.result.epochs[-1].metrics)
    assert next(iter(metrics)) == "-loss"
    assert metrics["-loss"] == -metrics["loss"]
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    assert trained.result.score == max(epoch.metrics[0][1] for epoch in trained.result.epochs)
    name, value = trained.trainer.evaluate(trained.job, "validation").metrics[0]
    assert (name, value) == ("loss", pytest.approx(-trained.result.score, rel=1e-6))


def test_a_plain_text_is_read_whole(workshop):
    trainer = workshop.opened("plain_text")
    data = load_data(recipe().task, workshop.file("plain_text"))
    words = sum(len(text.split()) for (text,) in data.splits["train"].texts)
    split = trainer._splits["train"]
    assert len(split.tokens) == words
    assert split.lengths.max() == 16
    assert len(split) > len(data.splits["train"])


def test_only_the_completion_is_learned(workshop):
    split = workshop.opened("causal_lm")._splits["train"]
    batch = split.batch(torch.arange(4))
    for row in range(4):
        n = split.truths[row][0]
        assert (batch.labels[row, :n] == -100).all()
        length = int(batch.attention_mask[row].sum())
        assert torch.equal(batch.labels[row, n:length], batch.input_ids[row, n:length])
        assert (batch.labels[row, length:] == -100).all()


def test_a_long_prompt_loses_its_beginning_and_not_the_completion(workshop):
    trainer = workshop.opened("causal_lm")
    split = replace(
        load_data(recipe().task, workshop.file("causal_lm")).splits["train"].take([0]), texts=(("w1 " * 40,),)
    )
    encoded = trainer._base.encode(split, 16)
    assert encoded.lengths.tolist() == [16]
    assert int(encoded.n_labels) == 3  # two words and the end


@pytest.fixture(scope="module")
def images(workshop) -> Trained:
    folder = image_folder(workshop.folder / "images", 40)
    tiny("vit").save_pretrained(workshop.folder / "vit")
    made = recipe()
    backend = TransformerBackend(str(workshop.folder / "vit"), None, made, load_data(made.task, folder))
    trainer, losses = backend.open(), list[float]()
    job = TrialJob(0, upper_layers(trainer), (), 5, workshop.folder / "vit-job")
    job.folder.mkdir()
    result = trainer.train(job, lambda epoch: None, on_step=lambda loss: losses.append(float(loss)))
    return Trained(trainer, job, losses, result)


def test_a_folder_of_images_is_learned_from_the_frozen_part_of_a_vit(images):
    trainer = images.trainer
    assert trainer._problem.label_names == ("dark", "light")
    assert images.result.epochs[-1].train_loss < images.result.epochs[0].train_loss
    assert images.result.head == 32 * 2 + 2
    assert {kept.key.per for kept in trainer._reuse._cache._entries} == {"row"}
    without = TransformerTrainer(trainer._base, trainer._recipe, trainer._splits, cache=CacheMemory(0))
    losses: list[float] = []
    without.train(replace(images.job), lambda epoch: None, on_step=lambda loss: losses.append(float(loss)))
    assert losses == pytest.approx(images.losses, abs=1e-6)
    assert trainer.evaluate(images.job, "test").n_rows == len(trainer._splits["test"])


def test_pixels_are_those_of_the_image_processor(workshop):
    image = pytest.importorskip("PIL.Image")
    path = image_folder(workshop.folder / "one", 1) / "light" / "0.png"
    reader = ImageReader(16, 16, mean=(0.1, 0.2, 0.3), deviation=(0.4, 0.5, 0.6))
    found = reader.pixels((str(path),)).of(torch.tensor([0]))
    resized = np.asarray(image.open(path).resize((16, 16), 2), dtype=np.float32) / 255
    expected = (resized - (0.1, 0.2, 0.3)) / (0.4, 0.5, 0.6)
    assert np.allclose(found[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)
    cropped = ImageReader(8, 8, shortest_edge=16).pixels((str(path),))
    assert cropped.values.shape == (1, 3, 8, 8)


@pytest.mark.parametrize("name", ["multiple_choice", "seq2seq", "token_classification"])
def test_a_saved_adapter_finds_its_own_base_model(workshop, name):
    trained = workshop.trained(name)
    adapted = autopeft.load(trained.job.folder)
    batch = trained.trainer._splits["test"].batch(torch.arange(4))
    with torch.no_grad(), trained.trainer._base.loaded(trained.job.folder) as expected:
        inputs = trained.trainer._problem.inputs(batch)
        assert torch.allclose(adapted(**inputs).logits, expected(**inputs).logits, atol=1e-5)
