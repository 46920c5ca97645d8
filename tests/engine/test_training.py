import gc
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from autopeft.engine.optimising import parameter_groups, rate_at, training_of
from autopeft.engine.pool import Finished, WorkerPool
from autopeft.engine.rungs import SCREENING, Rung
from autopeft.engine.shared_model import ADAPTER_FILES, SharedModel
from autopeft.engine.training import TransformerTrainer
from autopeft.engine.trial import EpochRecord, TrialJob, TrialResult, read_result
from autopeft.engine.worker import TrialDone, run_trial
from autopeft.errors import ConfigError, ModelError
from autopeft.hybrid.layers import HybridLayer
from autopeft.space.architecture import Architecture, place
from autopeft.space.modules import Scalar
from tests.engine.checkpoints import backend, checkpoint, recipe

torch.set_num_threads(1)

HYBRID = Architecture.of(
    [
        place("encoder", 0, "attn.q", "lora", 4),
        place("encoder", 0, "attn", "prefix", 2),
        place("encoder", 1, "ffn", "parallel", 4, {"gate": "mean"}),
        place("encoder", 1, "attn", "serial", 3),
        place("encoder", 1, "layer", "bitfit", 1),
    ]
)
CAUSAL = Architecture.of(
    [place("decoder", 0, "attn.qkv", "lora", 4), place("decoder", 1, "ffn", "parallel", 4, {"gate": "token"})]
)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def opened(bert: Path) -> TransformerTrainer:
    return backend(bert).open()


@pytest.fixture
def trainer(opened: TransformerTrainer) -> Iterator[TransformerTrainer]:
    """One for all tests: each must leave the model as it was."""
    before = state(opened)
    yield opened
    assert_same(before, state(opened))


def shared(trainer: TransformerTrainer) -> SharedModel:
    return trainer._base


def state(trainer: TransformerTrainer) -> dict[str, Any]:
    model = shared(trainer).model
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "modules": {name: type(module) for name, module in model.named_modules()},
        "hooks": sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()),
        "training": {name for name, module in model.named_modules() if module.training},
        "trainable": {name for name, parameter in model.named_parameters() if parameter.requires_grad},
        "gradients": {name for name, parameter in model.named_parameters() if parameter.grad is not None},
        "peft": hasattr(model, "peft_config"),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    weights = before.pop("weights"), after.pop("weights")
    assert before == after
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def job(
    folder: Path, architecture: Architecture = HYBRID, seed: int = 1, number: int = 0, **training: Scalar
) -> TrialJob:
    return TrialJob(number, architecture, tuple(training.items()), seed, folder)


def run(trainer: TransformerTrainer, what: TrialJob) -> TrialDone:
    return run_trial(trainer, what, lambda _: None)


def without_time(result: TrialResult) -> TrialResult:
    epochs = tuple(replace(epoch, seconds=0.0) for epoch in result.epochs)
    return replace(result, seconds=0.0, peak_memory_bytes=None, epochs=epochs)


def test_a_hybrid_learns_the_task_and_leaves_its_weights(trainer: TransformerTrainer, tmp_path: Path) -> None:
    told: list[EpochRecord] = []
    result = run_trial(trainer, job(tmp_path / "new", epochs=8), told.append).result
    assert result.state == "complete", result.error
    assert result.score is not None and result.score > 0.9
    assert result.epochs == tuple(told) and [epoch.epoch for epoch in told] == list(range(1, 9))
    assert told[-1].steps == 8 * 6 and told[-1].train_loss < told[0].train_loss
    assert [name for name, _ in told[0].metrics] == ["accuracy", "f1", "macro_f1", "mcc", "loss"]
    assert result.score == max(dict(epoch.metrics)["accuracy"] for epoch in told)
    assert read_result(tmp_path / "new") == result
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [*ADAPTER_FILES, "result.json"]
    saved = load_file(tmp_path / "new" / "adapter_model.safetensors")
    head = sum(tensor.numel() for name, tensor in saved.items() if "classifier" in name)
    assert (head, sum(t.numel() for t in saved.values()) - head) == (result.head, result.stored)
    assert result.peak_memory_bytes is not None and result.peak_memory_bytes > 1e7


def test_a_trial_that_falls_short_at_a_rung_is_stopped_there_and_leaves_no_weights(
    trainer: TransformerTrainer, tmp_path: Path
) -> None:
    whole = without_time(run(trainer, job(tmp_path / "whole", epochs=3)).result)
    reached = [epoch.metrics[0][1] for epoch in whole.epochs]
    passing = replace(job(tmp_path / "passing", epochs=3), rungs=(Rung(1, reached[0]), Rung(2, max(reached[:2]))))
    assert without_time(run(trainer, passing).result) == whole
    short = replace(job(tmp_path / "short", epochs=3), rungs=(Rung(1, 0.0), Rung(2, max(reached[:2]) + 0.01)))
    result = run(trainer, short).result
    assert (result.state, result.score, result.best_epoch, result.cause) == ("pruned", None, None, None)
    assert without_time(result).epochs == whole.epochs[:2]  # so the schedule is that of three epochs
    assert (result.stored, result.trained, result.head) == (whole.stored, whole.trained, whole.head)
    assert read_result(tmp_path / "short") == result
    assert [path.name for path in (tmp_path / "short").iterdir()] == ["result.json"]


def test_a_trial_that_patience_ends_at_a_rung_is_complete(trainer: TransformerTrainer, tmp_path: Path) -> None:
    patient = job(tmp_path, epochs=5, patience=1, learning_rate=1e-9)  # the score stays what it was
    result = run(trainer, replace(patient, rungs=(Rung(2, 1.0),))).result
    assert (result.state, len(result.epochs)) == ("complete", 2)


def test_a_trial_that_is_screened_is_trained_as_if_it_had_not_been(trainer: TransformerTrainer, tmp_path: Path) -> None:
    whole = without_time(run(trainer, job(tmp_path / "whole", epochs=2, dropout=0.2)).result)
    asked = replace(job(tmp_path / "screened", epochs=2, dropout=0.2), screen=0.25)
    result = run(trainer, replace(asked, rungs=(Rung(SCREENING, 0.0),))).result
    assert result.screened is not None and result.screened.steps == 2 * 2  # two epochs of 12 of the 48 rows
    assert result.screened.metrics != result.epochs[-1].metrics
    assert replace(without_time(result), screened=None) == whole
    assert read_result(asked.folder) == result
    asked = replace(asked, folder=tmp_path / "stopped", rungs=(Rung(SCREENING, 1.01),))
    stopped = run(trainer, asked).result
    assert (stopped.state, stopped.score, stopped.epochs) == ("pruned", None, ())
    assert stopped.screened is not None and stopped.screened.metrics == result.screened.metrics
    assert [path.name for path in asked.folder.iterdir()] == ["result.json"]
    assert read_result(asked.folder) == stopped


def test_the_same_job_gives_the_same_numbers_here_and_in_a_fresh_process(
    trainer: TransformerTrainer, bert: Path, tmp_path: Path
) -> None:
    here = run(trainer, job(tmp_path / "a", dropout=0.2)).result
    again = run(trainer, job(tmp_path / "b", dropout=0.2)).result
    with WorkerPool(backend(bert), threads=1, log=logging.getLogger("quiet")) as pool:
        pool.submit(job(tmp_path / "c", dropout=0.2))
        events = []
        while not any(isinstance(event, Finished) for event in events):
            new = pool.wait(timeout=120)
            assert new, "nothing for two minutes"
            events += new
        evaluation = pool.evaluate(job(tmp_path / "c"), "test")
    elsewhere = events[-1].result
    assert here.state == "complete", here.error
    assert without_time(here) == without_time(again) == without_time(elsewhere)
    files = {(tmp_path / folder / "adapter_model.safetensors").read_bytes() for folder in "abc"}
    assert len(files) == 1
    assert evaluation == trainer.evaluate(job(tmp_path / "a"), "test")
    other = run(trainer, job(tmp_path / "d", seed=2, dropout=0.2)).result
    assert other.epochs[0].train_loss != here.epochs[0].train_loss


def test_an_evaluation_scores_the_best_epoch_not_the_last(trainer: TransformerTrainer, tmp_path: Path) -> None:
    result = run(trainer, job(tmp_path, epochs=8, learning_rate=0.05)).result
    assert result.best_epoch is not None
    evaluation = trainer.evaluate(job(tmp_path), "validation")
    best = result.epochs[result.best_epoch - 1]
    assert evaluation.metrics[:-1] == best.metrics[:-1]
    assert evaluation.metrics[-1][1] == pytest.approx(best.metrics[-1][1], rel=1e-6)
    assert evaluation.n_rows == 16
    assert evaluation.interval[0] <= evaluation.metrics[0][1] <= evaluation.interval[1]


@pytest.mark.parametrize("family", ["gpt2", "roberta"])
def test_other_families_learn_too(family: str, tmp_path: Path) -> None:
    trainer = backend(checkpoint(tmp_path / family, family), epochs=6).open()
    before = state(trainer)
    result = run(trainer, job(tmp_path / "trial", CAUSAL if family == "gpt2" else HYBRID)).result
    assert result.state == "complete", result.error
    assert result.score is not None and result.score > 0.9
    assert trainer.evaluate(job(tmp_path / "trial"), "test").metrics[0][1] > 0.8
    assert_same(before, state(trainer))


def test_the_head_alone_is_an_architecture(trainer: TransformerTrainer, tmp_path: Path) -> None:
    result = run(trainer, job(tmp_path, Architecture())).result
    assert (result.state, result.stored, result.trained, result.head) == ("complete", 0, 0, 66)
    assert trainer.evaluate(job(tmp_path, Architecture()), "test").n_rows == 16


def test_numbers_can_be_predicted(bert: Path, tmp_path: Path) -> None:
    trainer = backend(bert, regression=True, pairs=True, epochs=6).open()
    result = run(trainer, job(tmp_path)).result
    assert result.score is not None and result.score > 0.5, result.error
    assert [name for name, _ in result.epochs[0].metrics] == ["pearson", "spearman", "loss"]


def test_a_loss_that_is_not_finite_ends_the_trial_at_once(bert: Path, tmp_path: Path) -> None:
    made = backend(bert, regression=True)
    train = made.data.splits["train"]
    data = replace(made.data, splits={**made.data.splits, "train": replace(train, labels=(1e30,) * len(train))})
    trainer = replace(made, data=data).open()
    before = state(trainer)
    done = run(trainer, job(tmp_path))
    assert (done.result.cause, done.result.epochs) == ("NaN", ())
    assert done.result.error == "NotFiniteError: the loss is inf at step 1; is the learning rate too high?"
    assert done.usable
    assert read_result(tmp_path) == done.result
    assert not (tmp_path / ADAPTER_FILES[1]).exists()
    assert_same(before, state(trainer))


def test_a_trial_that_cannot_be_built_leaves_no_trace(trainer: TransformerTrainer, tmp_path: Path) -> None:
    nowhere = Architecture.of([place("encoder", 0, "attn.q", "lora", 4), place("encoder", 9, "attn.q", "lora", 4)])
    done = run(trainer, job(tmp_path, nowhere))
    assert done.result.cause == "bug" and "encoder layer 9" in (done.result.error or "")
    assert run(trainer, job(tmp_path)).result.state == "complete"


def test_a_failure_in_the_middle_leaves_no_trace(trainer: TransformerTrainer, tmp_path: Path) -> None:
    def interrupted(record: EpochRecord) -> None:
        raise MemoryError

    done = run_trial(trainer, job(tmp_path), interrupted)
    assert (done.result.cause, done.usable) == ("OOM", False)


def test_training_stops_when_patience_is_over(trainer: TransformerTrainer, tmp_path: Path) -> None:
    result = run(trainer, job(tmp_path, epochs=9, patience=2, learning_rate=1e-9)).result
    assert (result.best_epoch, len(result.epochs)) == (1, 3)


def test_only_adapters_drop_in_training(trainer: TransformerTrainer, tmp_path: Path) -> None:
    seen: list[set[type]] = []
    hook = shared(trainer).model.register_forward_pre_hook(
        lambda model, _: seen.append({type(m) for m in model.modules() if m.training}),
    )
    try:
        run(trainer, job(tmp_path, epochs=1, dropout=0.5))
    finally:
        hook.remove()
    in_training, in_evaluation = seen[0], seen[-1]
    assert in_training and all(issubclass(kind, HybridLayer) for kind in in_training)
    assert in_evaluation == set()
    without = run(trainer, job(tmp_path, epochs=1)).result
    assert (
        without.epochs[0].train_loss != run(trainer, job(tmp_path, epochs=1, dropout=0.5)).result.epochs[0].train_loss
    )


def test_the_head_may_learn_faster_than_the_adapters(trainer: TransformerTrainer) -> None:
    with shared(trainer).adapted(HYBRID, dropout=0.0, seed=0) as adapted:
        spec = recipe(head_learning_rate=0.5, weight_decay=0.1).training
        groups = parameter_groups(adapted, spec)
        names = {id(parameter): name for name, parameter in adapted.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["peak"] == (0.5 if "classifier" in name else 1e-2), name
            assert group["weight_decay"] == (0.1 if parameter.dim() >= 2 else 0.0), name
    assert sum(p.numel() for group in groups for p in group["params"]) == 66 + shared(trainer).count(HYBRID).trained


def test_lora_plus_gives_b_its_own_learning_rate(trainer: TransformerTrainer) -> None:
    with shared(trainer).adapted(HYBRID, dropout=0.0, seed=0) as adapted:
        groups = parameter_groups(adapted, recipe(lora_plus_ratio=16.0).training)
        names = {id(parameter): name for name, parameter in adapted.named_parameters()}
    peaks = {names[id(p)]: group["peak"] for group in groups for p in group["params"]}
    of_b = {name for name in peaks if "lora_B" in name}
    assert of_b
    assert all(peak == (16 * 1e-2 if name in of_b else 1e-2) for name, peak in peaks.items())


def test_modules_of_a_kind_may_have_a_learning_rate_and_a_decay_of_their_own(trainer: TransformerTrainer) -> None:
    own = {"modules.lora.learning_rate": 0.02, "modules.prefix.weight_decay": 0.3, "modules.bitfit.learning_rate": 0.5}
    spec = training_of(recipe(lora_plus_ratio=4.0, weight_decay=0.1), job(Path(), **own))
    with shared(trainer).adapted(HYBRID, dropout=0.0, seed=0) as adapted:
        groups = parameter_groups(adapted, spec)
        names = {id(parameter): name for name, parameter in adapted.named_parameters()}
    seen = set()
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            kind = name.partition("autopeft_")[2].partition("_")[0].partition(".")[0]
            seen.add(kind)
            peak = {"lora": 0.02, "bias": 0.5}.get(kind, 1e-2) * (4 if "lora_B" in name else 1)
            assert group["peak"] == peak, name
            assert group["weight_decay"] == (0 if parameter.dim() < 2 else 0.3 if kind == "prefix" else 0.1), name
    assert {"lora", "bias", "prefix", "serial", "parallel", ""} <= seen


def test_a_learning_rate_of_one_kind_changes_what_is_learned(trainer: TransformerTrainer, tmp_path: Path) -> None:
    plain = run(trainer, job(tmp_path / "plain", epochs=1)).result
    other = run(trainer, job(tmp_path / "other", epochs=1, **{"modules.parallel.learning_rate": 0.5})).result
    assert plain.epochs[0].train_loss != other.epochs[0].train_loss
    failed = run(trainer, job(tmp_path / "wrong", **{"modules.parallel.learning_rate": 50.0})).result
    assert "training.modules.parallel.learning_rate" in (failed.error or "")


@pytest.mark.parametrize("damage", ["missing file", "missing key", "surplus key", "other shape"])
def test_damaged_weights_are_refused(trainer: TransformerTrainer, tmp_path: Path, damage: str) -> None:
    run(trainer, job(tmp_path, epochs=1))
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "classifier" not in name)
    match damage:
        case "missing file":
            (tmp_path / "adapter_config.json").unlink()
        case "missing key":
            del weights[name]
        case "surplus key":
            weights["base_model.model.bert.surplus.weight"] = torch.zeros(1)
        case "other shape":
            weights[name] = torch.zeros(3, 3, 3)
    save_file(weights, file)
    with pytest.raises(ModelError):
        trainer.evaluate(job(tmp_path), "test")


def test_an_adapter_is_not_scored_on_another_model(trainer: TransformerTrainer, bert: Path, tmp_path: Path) -> None:
    run(trainer, job(tmp_path / "trial", epochs=1))
    other = backend(checkpoint(tmp_path / "other", layers=3)).open()
    with pytest.raises(ModelError, match="made for a model of fingerprint"):
        other.evaluate(job(tmp_path / "trial"), "test")


def test_memory_does_not_grow_with_the_trials(trainer: TransformerTrainer, tmp_path: Path) -> None:
    def n_modules() -> int:
        gc.collect()
        return sum(isinstance(thing, nn.Module) for thing in gc.get_objects())

    run(trainer, job(tmp_path, epochs=1))
    before = n_modules()
    for seed in range(3):
        run(trainer, job(tmp_path, seed=seed, epochs=1))
    assert n_modules() == before


def test_jobs_may_change_the_training_but_not_what_trials_share() -> None:
    given = recipe()
    changed = training_of(given, TrialJob(0, HYBRID, (("learning_rate", 0.5), ("epochs", 2)), 0, Path()))
    assert (changed.learning_rate, changed.epochs, changed.batch_size) == (0.5, 2, 8)
    with pytest.raises(ConfigError) as raised:
        training_of(given, TrialJob(0, HYBRID, (("max_length", 8), ("learning_rte", 0.5), ("epochs", 0)), 0, Path()))
    assert len(raised.value.problems) == 3


def test_the_learning_rate_rises_then_falls_to_almost_nothing() -> None:
    rates = [rate_at(step, 100, 0.1) for step in range(1, 101)]
    assert max(rates) == 1.0 and rates.index(1.0) == 9
    assert rates[:10] == sorted(rates[:10]) and rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 0.02 and rates[0] == pytest.approx(0.1)
    assert rate_at(1, 1, 0.0) == 1.0 and 0 < rate_at(1, 1, 0.9) <= 1.0


def test_a_pooler_that_the_checkpoint_lacks_trains_with_the_head(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in weights.items() if "pooler" not in n}, folder / "model.safetensors", {"format": "pt"})
    trainer = backend(folder).open()
    assert shared(trainer).head == ("classifier", "bert.pooler")
    before = state(trainer)
    result = run(trainer, job(tmp_path / "trial")).result
    assert result.head == 66 + 32 * 32 + 32, result.error
    assert any("pooler" in name for name in load_file(tmp_path / "trial" / "adapter_model.safetensors"))
    assert_same(before, state(trainer))
    expected = dict(result.epochs[(result.best_epoch or 0) - 1].metrics)["accuracy"]
    assert dict(backend(folder).open().evaluate(job(tmp_path / "trial"), "validation").metrics)["accuracy"] == expected


def test_bfloat16_trains_on_a_cpu_too(bert: Path, tmp_path: Path) -> None:
    trainer = backend(bert, precision="bfloat16", epochs=6).open()
    assert trainer.facts["precision"] == "bfloat16"
    result = run(trainer, job(tmp_path)).result
    assert result.score is not None and result.score > 0.9, result.error
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


def test_a_tokeniser_that_knows_more_words_than_the_model_is_refused(bert: Path, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "small")
    other = checkpoint(tmp_path / "wide")
    text = (other / "tokenizer.json").read_text().replace('"w1": 5,', '"w1": 111,')
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match="gives token 111, the model knows 100 tokens"):
        backend(folder).open()


def test_long_texts_are_cut_to_what_the_model_takes(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "roberta", "roberta")
    made = backend(folder, max_length=1000)
    long = (" ".join(["w1"] * 500),)
    test = made.data.splits["test"]
    data = replace(made.data, splits={**made.data.splits, "test": replace(test, texts=(long, *test.texts[1:]))})
    trainer = replace(made, data=data).open()
    assert shared(trainer).max_tokens == 62, "64 positions, of which RoBERTa leaves 2 unused"
    run(trainer, job(tmp_path / "trial", epochs=1))
    assert trainer.evaluate(job(tmp_path / "trial"), "test").n_rows == 16


def test_weights_left_by_a_killed_attempt_do_not_matter(trainer: TransformerTrainer, tmp_path: Path) -> None:
    run(trainer, job(tmp_path / "killed", epochs=1))
    shutil.copytree(tmp_path / "killed", tmp_path / "killed" / ".unfinished")
    (tmp_path / "killed" / "adapter_model.safetensors").write_bytes(b"torn")
    result = run(trainer, job(tmp_path / "killed", epochs=2)).result
    assert result.state == "complete"
    assert trainer.evaluate(job(tmp_path / "killed"), "validation").metrics[0][1] == result.score
