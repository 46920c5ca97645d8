"""Precision and device: chosen once, by what is measured, and the same for all from then on."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autopeft.engine.devices import choose_device, find_devices
from autopeft.engine.precision import CLEARLY_FASTER, DTYPES, allow_tf32, chosen, full_precision, measure_precision
from autopeft.errors import ConfigError, EnvironmentProblem, StudyCorruptError
from autopeft.study.settings import resolve_settings
from autopeft.transfer.settings import TrainSettings
from tests.anatomies import bert_like
from tests.engine.checkpoints import backend, checkpoint

CPU = torch.device("cpu")


def test_float32_is_kept_unless_bfloat16_is_clearly_faster() -> None:
    assert chosen("float32", 1.0) == chosen("float32", CLEARLY_FASTER - 0.01) == "float32"
    assert chosen("tf32", 0.1) == "tf32"
    assert chosen("tf32", CLEARLY_FASTER) == "bfloat16"


def test_measuring_leaves_everything_as_it_was() -> None:
    random, products = torch.get_rng_state(), torch.get_float32_matmul_precision()
    precision, ratio = measure_precision(bert_like(2, 64, 10_000), CPU)
    assert ratio is not None and ratio > 0 and precision == chosen("float32", ratio)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_float32_matmul_precision() == products
    assert full_precision(CPU) == "float32"
    allow_tf32("tf32", CPU)
    assert torch.get_float32_matmul_precision() == "highest", "only GPUs have it"


def test_a_backend_is_settled_by_what_was_chosen_and_by_nothing_else(tmp_path: Path) -> None:
    open_question = backend(checkpoint(tmp_path), precision="auto")
    assert not open_question.is_settled
    choices = open_question.settle()
    assert choices["precision"] in DTYPES and choices["device"] == "cpu"
    settled = pickle.loads(pickle.dumps(open_question.settled({"precision": "bfloat16"})))
    assert settled.is_settled and settled.recipe.training.precision == "bfloat16"
    assert settled.settled({"precision": "float32"}) == settled
    with pytest.raises(StudyCorruptError, match="'float8', which is no precision: float32, tf32, bfloat16"):
        open_question.settled({"precision": "float8"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_device_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    assert find_devices() == find_devices("cpu") == (CPU,)
    assert choose_device(3, "cpu") == CPU
    with pytest.raises(EnvironmentProblem, match=r"--device cuda:1: torch .* sees no such device .* It sees: cpu"):
        replace(backend(checkpoint(tmp_path)), device="cuda:1").open()


def test_other_names_of_devices_are_refused_with_the_allowed_ones() -> None:
    for name in ("auto", "cpu", "cuda", "cuda:1", "mps"):
        assert resolve_settings({"budget": "1%", "device": name}, environ={}).device == name
        assert TrainSettings(spec="x", device=name).device == name
    with pytest.raises(ConfigError, match=r"--device.*'gpu' is not a device\. Allowed: auto, cpu, cuda, cuda:0, mps"):
        resolve_settings({"budget": "1%", "device": "gpu"}, environ={})
