"""A trial that starts at its first adapted operation gives what one gives that computes the whole model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autopeft.engine.training import TransformerTrainer
from autopeft.engine.trial import TrialJob, TrialResult
from autopeft.hybrid import anatomy_of
from autopeft.space.architecture import Architecture, place
from autopeft.space.modules import MODULES
from tests.engine.checkpoints import backend, checkpoint
from tests.hybrid.adapted import size_of

torch.set_num_threads(1)

FAMILIES = {
    "bert": {},
    "gpt2": {},
    "llama": {},
    "t5": {"eos_token_id": 3},
}
STACKS = {"bert": "encoder", "gpt2": "decoder", "llama": "decoder", "t5": "decoder"}


class Opened:
    """Trainers of tiny models by family and size of the cache, each made once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made: dict[tuple[str, int], TransformerTrainer] = {}

    def trainer(self, family: str, cache: int = 10**8, **config: Any) -> TransformerTrainer:
        if (family, cache) not in self._made:
            folder = self._root / family
            if not folder.exists():
                checkpoint(folder, family, **{**FAMILIES.get(family, {}), **config})
            made = self._made[family, cache] = replace(backend(folder), cache_memory=cache).open()
            if cache == 0:
                made._reuse._read = lambda *_: None  # type: ignore[method-assign]
        return self._made[family, cache]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return Opened(tmp_path_factory.mktemp("models"))


def at_the_top(kind: str, trainer: TransformerTrainer, stack: str, **options: Any) -> Architecture | None:
    """The kind at every place of the last layer; None where it has none."""
    anatomy = anatomy_of(trainer._base.model.config)
    _, index, layer = [found for found in anatomy.layers if found[0] == stack][-1]
    kind_of = MODULES[kind]
    roles = [role for role in kind_of.roles if kind_of.supports(layer, role)]
    if not roles:
        return None
    return Architecture.of(place(stack, index, role, kind, size_of(kind), options) for role in roles)


def train(trainer: TransformerTrainer, architecture: Architecture, folder: Path, **training: Any) -> TrialResult:
    return trainer.train(TrialJob(0, architecture, tuple(training.items()), 1, folder), lambda _: None)


def assert_equal(a: TrialResult, b: TrialResult, tolerance: float) -> None:
    assert len(a.epochs) == len(b.epochs)
    for one, other in zip(a.epochs, b.epochs, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=tolerance)
        for (name, value), (same, expected) in zip(one.metrics, other.metrics, strict=True):
            assert name == same and value == pytest.approx(expected, abs=tolerance)


def stand_ins(trainer: TransformerTrainer, architecture: Architecture) -> dict[str, int]:
    """The modules that the last trial of this architecture did without, and the vectors kept of each."""
    with trainer._base.adapted(architecture, dropout=0.0, seed=0) as adapted:
        plan = trainer._reuse._plan(architecture, lambda batch: trainer._forward(adapted, batch))
    return {one.path: len(one.kept) for one in plan.stand_ins}


KINDS = [("bert", kind) for kind in MODULES if kind != "prompt"]
KINDS += [(family, kind) for family in ("gpt2", "llama", "t5") for kind in ("lora", "parallel", "serial", "prefix")]


@pytest.mark.parametrize(("family", "kind"), KINDS, ids=["-".join(case) for case in KINDS])
def test_every_kind_trains_as_without_the_cache(family: str, kind: str, opened: Opened, tmp_path: Path) -> None:
    cached, plain = opened.trainer(family), opened.trainer(family, 0)
    architecture = at_the_top(kind, cached, STACKS[family])
    if architecture is None:
        pytest.skip("this model has no place for it")
    given = {"epochs": 2, "learning_rate": 1e-3}
    expected = train(plain, architecture, tmp_path, **given)
    assert_equal(train(cached, architecture, tmp_path, **given), expected, 1e-6)
    assert stand_ins(cached, architecture), "nothing was reused"
    assert not stand_ins(plain, architecture)


def below(family: str, trainer: TransformerTrainer) -> Architecture:
    """Modules that come early and late in the last layer."""
    roles = [site.role for site in anatomy_of(trainer._base.model.config).layers[-1][2].sites]
    stack = STACKS[family]
    return Architecture.of(
        [
            place(stack, 1, roles[0], "lora", 3),
            place(stack, 1, "ffn", "serial", 4),
            place(stack, 1, "attn", "prefix", 2),
        ]
    )


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
def test_two_hundred_steps_with_the_cache_are_those_without(family: str, opened: Opened, tmp_path: Path) -> None:
    cached, plain = opened.trainer(family), opened.trainer(family, 0)
    architecture = below(family, cached)
    given = {"epochs": 34, "learning_rate": 1e-3}
    expected = train(plain, architecture, tmp_path, **given)
    assert expected.epochs[-1].steps >= 200
    assert_equal(train(cached, architecture, tmp_path, **given), expected, 1e-6)


def test_a_trial_gives_the_same_bits_whatever_is_in_the_cache(opened: Opened, tmp_path: Path) -> None:
    bert = opened.trainer("bert")
    architecture = below("bert", bert)
    there = train(bert, architecture, tmp_path)
    fresh = replace(backend(opened._root / "bert"), cache_memory=10**8).open()
    alone = train(fresh, architecture, tmp_path)
    assert [replace(e, seconds=0) for e in alone.epochs] == [replace(e, seconds=0) for e in there.epochs]
