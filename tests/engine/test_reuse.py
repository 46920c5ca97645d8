"""A trial that starts at its first adapted operation gives what one gives that computes the whole model."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from autopeft.engine.activation_stores import FileStore
from autopeft.engine.pool import Finished, WorkerPool
from autopeft.engine.reuse import CacheMemory
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
            made = self._made[family, cache] = replace(backend(folder), cache=CacheMemory(cache)).open()
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
        assert one.train_loss == pytest.approx(other.train_loss, rel=tolerance, abs=tolerance)
        for (name, value), (same, expected) in zip(one.metrics, other.metrics, strict=True):
            assert name == same and value == pytest.approx(expected, rel=tolerance, abs=tolerance)


def stand_ins(trainer: TransformerTrainer, architecture: Architecture) -> dict[str, int]:
    """The modules that the last trial of this architecture did without, and the vectors kept of each."""
    with trainer._base.adapted(architecture, dropout=0.0, seed=0) as adapted:
        plan = trainer._reuse.plan(architecture, lambda batch: trainer._forward(adapted, batch))
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
    fresh = replace(backend(opened._root / "bert"), cache=CacheMemory(10**8)).open()
    alone = train(fresh, architecture, tmp_path)
    assert [replace(e, seconds=0) for e in alone.epochs] == [replace(e, seconds=0) for e in there.epochs]


def opened_with(opened: Opened, memory: CacheMemory) -> TransformerTrainer:
    opened.trainer("bert")  # makes the checkpoint
    return replace(backend(opened._root / "bert"), cache=memory).open()


def lora(*layers: int) -> Architecture:
    return Architecture.of(place("encoder", layer, "attn.q", "lora", 3) for layer in layers)


def test_half_precision_changes_losses_in_the_fifth_digit(opened: Opened, tmp_path: Path) -> None:
    half = opened_with(opened, CacheMemory(10**8, half=True))
    given = {"epochs": 8, "learning_rate": 1e-3}
    expected = train(opened.trainer("bert"), lora(1), tmp_path, **given)
    found = train(half, lora(1), tmp_path, **given)
    for one, other in zip(found.epochs, expected.epochs, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, abs=1e-4)
    assert any(one.train_loss != other.train_loss for one, other in zip(found.epochs, expected.epochs, strict=True))
    assert half._reuse._cache._store.n_bytes < opened.trainer("bert")._reuse._cache._store.n_bytes


def test_what_is_kept_stays_within_the_bound(opened: Opened, tmp_path: Path) -> None:
    """The bound holds one trial of each of these, and not both together: each makes the other's go."""
    bound = 200_000
    small = opened_with(opened, CacheMemory(bound))
    first, second = lora(1), Architecture.of([place("encoder", 0, "ffn", "serial", 3)])
    store = small._reuse._cache._store
    results = []
    for architecture in (first, second, first):
        results.append(train(small, architecture, tmp_path, epochs=1))
        assert 0 < store.n_bytes <= bound
    assert_equal(results[2], results[0], 0)
    assert_equal(results[0], train(opened.trainer("bert", 0), first, tmp_path, epochs=1), 1e-6)


def test_where_the_finer_cut_does_not_fit_whole_layers_are_kept_and_else_nothing(opened: Opened) -> None:
    fine = stand_ins(opened_with(opened, CacheMemory(10**8)), lora(1))
    coarse = stand_ins(opened_with(opened, CacheMemory(80_000)), lora(1))
    assert sum(fine.values()) > sum(coarse.values()) == 1
    assert any("attention.self.key" in path for path in fine)
    assert coarse["bert.encoder.layer.0"] == 1
    assert not stand_ins(opened_with(opened, CacheMemory(1000)), lora(1))


def test_two_workers_share_one_set_of_files(opened: Opened, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    memory = CacheMemory(10**7, 2, folder)
    expected = train(opened.trainer("bert"), lora(1), tmp_path / "a")
    opened.trainer("bert")
    shared = replace(backend(opened._root / "bert"), cache=memory)
    with WorkerPool(shared, 2, threads=1, log=logging.getLogger("quiet")) as pool:
        waiting = [TrialJob(number, lora(1), (), 1, tmp_path / str(number)) for number in range(2)]
        found: list[TrialResult] = []
        while len(found) < 2:
            while waiting and pool.n_free:
                pool.submit(waiting.pop(0))
            found += [event.result for event in pool.wait() if isinstance(event, Finished)]
    assert [result.state for result in found] == ["complete"] * 2
    for result in found:
        assert_equal(result, expected, 0)
    mine = shared.open()
    assert_equal(train(mine, lora(1), tmp_path / "b"), expected, 0)
    n_files = len(list(folder.glob("*.bin")))
    assert n_files == 2 * sum(stand_ins(mine, lora(1)).values()), "one file a split and tensor, for all workers"
    assert not list(folder.glob("*.part"))


def test_files_that_are_in_use_are_not_dropped(opened: Opened, tmp_path: Path) -> None:
    store, other = FileStore(tmp_path), FileStore(tmp_path)
    shapes = {"train": ((5, 2), torch.float32)}
    for name in ("old", "new"):
        store.put(name, store.new(name, shapes))
    store.use(["old"])
    assert len(other.droppable()) == 1 and other.n_bytes == 80
    other.drop(next(iter(other.droppable())))
    assert other.get("new", shapes) is None and other.get("old", shapes) is not None
    (tmp_path / "x.train.999999999.part").write_bytes(b"left by a worker that died")
    store.use([])
    assert len(other.droppable()) == 1 and not list(tmp_path.glob("*.part"))


def test_a_model_that_goes_through_one_layer_again_and_again_is_computed_whole(opened: Opened, tmp_path: Path) -> None:
    albert = opened.trainer("albert")
    architecture = Architecture.of([place("encoder", 0, "ffn", "serial", 3)])
    result = train(albert, architecture, tmp_path, epochs=1)
    assert result.state == "complete" and not stand_ins(albert, architecture)
    assert_equal(result, train(opened.trainer("albert", 0), architecture, tmp_path, epochs=1), 1e-6)


def test_a_cut_that_would_change_results_is_not_made_and_the_log_says_so(
    opened: Opened, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A layer that looks at what is padding gives other values where padding is not what it was."""
    odd = opened_with(opened, CacheMemory(10**8))
    layer = shared_layer(odd)
    handle = layer.register_forward_pre_hook(lambda module, args: (args[0] + args[0].mean((0, 1)), *args[1:]))
    try:
        assert not stand_ins(odd, lora(1))
    finally:
        handle.remove()
    assert "each step computes the frozen layers: results would differ" in caplog.text


def shared_layer(trainer: TransformerTrainer) -> Any:
    return trainer._base.model.get_submodule("bert.encoder.layer.1.attention")


@pytest.mark.parametrize(("family", "reads"), [("bert", "first"), ("gpt2", "last"), ("llama", "last"), ("t5", "last")])
def test_the_last_layer_is_computed_for_the_token_that_the_head_reads(family: str, reads: str, opened: Opened) -> None:
    trainer = opened.trainer(family)
    architecture = below(family, trainer)
    with trainer._base.adapted(architecture, dropout=0.0, seed=0) as adapted:
        plan = trainer._reuse.plan(architecture, lambda batch: trainer._forward(adapted, batch))
    assert plan.reads == reads


def test_the_last_layer_is_looked_at_once_for_what_is_adapted_there(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bert = backend(tmp_path / "bert")
    checkpoint(tmp_path / "bert")
    trainer = bert.open()
    looked: list[object] = []
    read = trainer._reuse._read  # type: ignore[union-attr]
    monkeypatch.setattr(trainer._reuse, "_read", lambda *given: (looked.append(given), read(*given))[1])
    top = place("encoder", 1, "attn.q", "lora", 2)
    given = {"epochs": 2, "learning_rate": 1e-3}
    for below, n_looks in (
        ([], 1),
        ([place("encoder", 0, "attn.q", "lora", 2)], 1),
        ([place("encoder", 0, "ffn", "serial", 4)], 1),
        ([place("encoder", 0, "embeddings", "prompt", 2)], 2),
        ([place("encoder", 1, "ffn", "serial", 4)], 3),
    ):
        architecture = Architecture.of([*below, top])
        found = train(trainer, architecture, tmp_path, **given)
        assert len(looked) == n_looks
        assert_equal(found, train(opened.trainer("bert", 0), architecture, tmp_path, **given), 1e-6)


def test_a_gate_over_all_tokens_needs_the_whole_last_layer(opened: Opened, tmp_path: Path) -> None:
    bert = opened.trainer("bert")
    architecture = Architecture.of([place("encoder", 1, "ffn", "serial", 3, {"gate": "mean"})])
    given = {"epochs": 3, "learning_rate": 1e-3}
    found = train(bert, architecture, tmp_path, **given)
    assert_equal(found, train(opened.trainer("bert", 0), architecture, tmp_path, **given), 1e-6)
    assert stand_ins(bert, architecture)


def test_prompts_change_what_enters_the_first_layer_so_nothing_is_kept(opened: Opened, tmp_path: Path) -> None:
    bert = opened.trainer("bert")
    architecture = Architecture.of([place("encoder", 0, "embeddings", "prompt", 2)])
    found = train(bert, architecture, tmp_path, epochs=2)
    assert_equal(found, train(opened.trainer("bert", 0), architecture, tmp_path, epochs=2), 1e-6)
    assert not stand_ins(bert, architecture)
