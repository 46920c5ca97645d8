"""Frozen weights of 8 or 4 bits: loaded, adapted, counted, reused where that is exact."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autopeft.engine import quantisation as module
from autopeft.engine.models import load_anatomy
from autopeft.engine.reuse import CacheMemory
from autopeft.engine.training import TransformerTrainer
from autopeft.engine.transformer_backend import TransformerBackend
from autopeft.engine.trial import TrialJob
from autopeft.errors import EnvironmentProblem, ExportError
from autopeft.export.merged import write_merged
from autopeft.space.architecture import Architecture, place
from tests.engine.checkpoints import backend, checkpoint

ARCHITECTURE = Architecture.of([place("encoder", 1, "attn.q", "lora", 4), place("encoder", 1, "ffn", "serial", 4)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("bert"))


def quantised(folder: Path, bits: str, **training: Any) -> TransformerBackend:
    made = backend(folder, precision="float32", epochs=2, **training)
    recipe = made.recipe.model_copy(update={"model": made.recipe.model.model_copy(update={"quantisation": bits})})
    return replace(made, recipe=recipe)


def losses(trainer: TransformerTrainer, folder: Path) -> list[float]:
    found: list[float] = []
    trainer.train(
        TrialJob(0, ARCHITECTURE, (), 3, folder), lambda r: None, on_step=lambda loss: found.append(float(loss))
    )
    return found


@pytest.mark.parametrize(("bits", "kind"), [("nf4", torch.uint8), ("int8", torch.int8)])
def test_a_quantised_backbone_is_adapted_and_counted_as_it_is(
    folder: Path, tmp_path: Path, bits: str, kind: torch.dtype
) -> None:
    pytest.importorskip("bitsandbytes")
    trainer = quantised(folder, bits).open()
    base = trainer._base
    assert base.model.get_submodule("bert.encoder.layer.0.attention.self.query").weight.dtype is kind
    assert base.model.classifier.weight.dtype is torch.float32
    assert base.anatomy.n_parameters == load_anatomy(str(folder)).n_parameters
    result = trainer.train(TrialJob(0, ARCHITECTURE, (), 3, tmp_path), lambda record: None)
    assert result.state == "complete" and result.trained == base.count(ARCHITECTURE).trained
    score = trainer.evaluate(TrialJob(0, ARCHITECTURE, (), 3, tmp_path), "validation").metrics[0][1]
    assert score == result.score
    assert ("off: 8-bit" in str(trainer.facts["cache"])) == (bits == "int8")


def test_the_frozen_part_in_four_bits_is_reused_exactly(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    kept = quantised(folder, "nf4").open()
    anew = replace(quantised(folder, "nf4"), cache=CacheMemory(n_bytes=0)).open()
    first, second = losses(kept, tmp_path / "kept"), losses(anew, tmp_path / "anew")
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) <= 1e-5
    assert any(plan.stand_ins for plan in kept._reuse._plans.values()), "it is reused"  # type: ignore[union-attr]


def test_without_bitsandbytes_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match=r"nf4: bitsandbytes is not installed.*autopeft\[quantised\]"):
        quantised(folder, "nf4").open()


def test_what_was_trained_on_few_bits_is_not_merged(tmp_path: Path) -> None:
    lora = Architecture.of([place("encoder", 0, "attn.q", "lora", 4)])
    spec = SimpleNamespace(parsed_architecture=lora, recipe={"model": {"quantisation": "nf4"}})
    with pytest.raises(ExportError, match="trained on weights in nf4"):
        write_merged(tmp_path, spec, tmp_path)  # type: ignore[arg-type]
