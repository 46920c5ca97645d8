"""Adapters that share a forward pass get what each gets alone."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from autopeft.engine.batches import Batch
from autopeft.engine.packed import PackedModel
from autopeft.engine.stand_ins import StandIn
from autopeft.engine.training import TransformerTrainer
from autopeft.errors import ModelError
from autopeft.hybrid import anatomy_of
from autopeft.hybrid.detached import DetachedAdapter, detached
from autopeft.hybrid.packed import Pack
from autopeft.hybrid.stacked import StackedMaps, lay_out
from autopeft.space.architecture import Architecture, place
from autopeft.space.modules import MODULES
from tests.engine.test_reuse import STACKS, Opened, at_the_top
from tests.hybrid.adapted import mixed

torch.set_num_threads(1)

FAMILIES = ("bert", "gpt2", "llama", "t5")


def logits(model: Any, batch: Batch) -> Tensor:
    return model(**batch.model_inputs()).logits


class Double(Opened):
    """In 64 bits, in which rounding hides nothing."""

    def trainer(self, family: str, cache: int = 10**8, **config: Any) -> TransformerTrainer:
        made = super().trainer(family, cache, **config)
        made._base.model.double()
        made._forward = logits  # type: ignore[method-assign]
        return made


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return Double(tmp_path_factory.mktemp("models"))


def many(trainer: TransformerTrainer, family: str) -> list[Architecture]:
    """Every kind that can be packed, all together, and some that begin elsewhere."""
    stack = STACKS[family]
    kinds = [at_the_top(kind, trainer, stack) for kind in MODULES if kind != "prompt"]
    anatomy = anatomy_of(trainer._base.model.config)
    roles = [site.role for site in [layer for layer in anatomy.layers if layer[0] == stack][-1][2].sites]
    below = [
        Architecture.of([place(stack, 0, roles[0], "lora", 5), place(stack, 1, "ffn", "serial", 2)]),
        Architecture.of(
            [place(stack, 0, roles[0], "lora", 2, {"variant": "fa"}), place(stack, 1, "ffn", "parallel", 3)]
        ),
        Architecture.of([place(stack, 1, roles[0], "lora", 3, {"gate": "token"})]),
        Architecture.of([place(stack, 0, "ffn", "parallel", 3, {"scale": "learned"})]),
        Architecture.of([]),
    ]
    gate = "mean" if family == "bert" else "token"
    everything = [mixed(anatomy, gate)] if family != "t5" else []
    return [*(kind for kind in kinds if kind is not None), *below, *everything]


class Alone:
    """One adapter trained nowhere: its parts, and what it gives for a batch, alone."""

    def __init__(self, trainer: TransformerTrainer, architecture: Architecture, seed: int, rows: Sequence[int]) -> None:
        self.batch = trainer._splits["train"].batch(torch.tensor(rows))
        with trainer._base.adapted(architecture, dropout=0.0, seed=seed) as adapted:
            trained = [p for p in adapted.parameters() if p.requires_grad]
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter in trained:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            forward = partial(trainer._forward, adapted)
            self.plan = trainer._reuse.plan(architecture, forward)
            with trainer._reuse.shortened(architecture, forward) as shortened:
                outputs = shortened("train", self.batch)
                self.gradients = torch.autograd.grad(weighted(outputs), trained, allow_unused=True)
                self.outputs = outputs.detach()
            self.adapter: DetachedAdapter = detached(trainer._base.model)
            self.trained = trained


def weighted(outputs: Tensor) -> Tensor:
    return (outputs * torch.linspace(0.5, 1.5, outputs.numel()).to(outputs).view_as(outputs)).sum()


def close(a: Tensor, b: Tensor) -> None:
    assert a.dtype == b.dtype == torch.float64
    assert float((a - b).abs().max()) <= 1e-11 * max(1.0, float(b.abs().max()))


def run_together(trainer: TransformerTrainer, alone: Sequence[Alone], broken: int | None = None) -> Tensor:
    """Compare each with itself, but the `broken` one; what that one gave, or the first."""
    for one in alone:
        for parameter in one.trained:
            parameter.grad = None
    plans: list[tuple[StandIn, ...]] = [one.plan.stand_ins for one in alone]
    reads = alone[0].plan.reads
    packed = PackedModel(
        trainer._base.model,
        [one.adapter for one in alone],
        plans,
        partial(trainer._forward, trainer._base.model),
        trainer._reuse.read,
        partial(trainer._reuse.last_layer, reads),
    )
    with packed.installed():
        outputs = packed.run("train", trainer._splits["train"], {k: one.batch for k, one in enumerate(alone)})
        torch.stack([weighted(output) for output in outputs]).sum().backward()
    packed.hand_out_gradients(range(len(alone)))
    for k, (one, output) in enumerate(zip(alone, outputs, strict=True)):
        if k == broken:
            continue
        close(output.detach(), one.outputs)
        for parameter, expected in zip(one.trained, one.gradients, strict=True):
            if expected is None:
                assert parameter.grad is None or not parameter.grad.any()
            else:
                assert parameter.grad is not None
                close(parameter.grad, expected)
    return outputs[broken or 0]


@pytest.mark.parametrize("cache", [10**8, 0], ids=["cached", "uncached"])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_of_all_kinds_together_give_what_each_gives_alone(family: str, cache: int, opened: Opened) -> None:
    trainer = opened.trainer(family, cache)
    alone = [
        Alone(trainer, architecture, seed, [(seed * 3 + i * 5) % 48 for i in range(4)])
        for seed, architecture in enumerate(many(trainer, family))
    ]
    assert len(alone) > 10
    for reads in {one.plan.reads for one in alone}:
        same = [one for one in alone if one.plan.reads == reads]
        kept = [kept for one in same for kept in one.plan.kept]
        with trainer._base.adapted(Architecture.of([]), dropout=0.0, seed=0):
            trainer._reuse._cache.provide(tuple(dict.fromkeys(kept)), lambda new: pytest.fail(f"absent: {new}"))
        run_together(trainer, same)


def stackable(family: str, trainer: TransformerTrainer) -> list[Architecture]:
    """Maps of one form and several sizes at the same places, and one adapter without any there."""
    stack = STACKS[family]
    roles = [site.role for site in anatomy_of(trainer._base.model.config).layers[-1][2].sites]
    return [
        Architecture.of(
            [
                place(stack, 0, roles[0], "lora", n, {"alpha": 4.0 * n, **({"variant": "fa"} if n == 2 else {})}),
                place(stack, 0, "ffn", "serial", 2 * n, {"scale": "learned" if n == 1 else 2.0}),
                place(stack, 1, "ffn", "parallel", n + 1, {"activation": "gelu"}),
                place(stack, 1, "attn", "prefix", n),
            ]
        )
        for n in (1, 2, 4)
    ] + [Architecture.of([place(stack, 1, "ffn", "parallel", 3)])]


@pytest.mark.parametrize("rows", [(4, 4, 4, 4), (4, 3, 4, 2)], ids=["even", "uneven"])
@pytest.mark.parametrize("family", FAMILIES)
def test_maps_of_one_form_are_computed_together(
    family: str, rows: tuple[int, ...], opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = opened.trainer(family, 0)
    seen = []
    update = StackedMaps.update
    monkeypatch.setattr(StackedMaps, "update", lambda self, x, of: seen.append(len(of)) or update(self, x, of))
    alone = [
        Alone(trainer, architecture, seed, [(seed * 3 + i * 5) % 48 for i in range(n)])
        for seed, (architecture, n) in enumerate(zip(stackable(family, trainer), rows, strict=True))
    ]
    assert not seen
    for one in alone:
        lay_out(one.adapter)
    run_together(trainer, alone)
    assert seen == ([4, 4, 4] if len(set(rows)) == 1 else [])


def test_a_nan_stays_where_it_arose(opened: Opened) -> None:
    bert = opened.trainer("bert", 0)
    alone = [Alone(bert, architecture, n, [n, n + 7]) for n, architecture in enumerate(stackable("bert", bert))]
    with torch.no_grad():
        alone[1].trained[0].fill_(float("nan"))
    assert run_together(bert, alone, broken=1).isnan().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_runs_in_a_pack_of_its_own(family: str, opened: Opened) -> None:
    trainer = opened.trainer(family)
    if not MODULES["prompt"].supports(anatomy_of(trainer._base.model.config).layers[0][2], "layer"):
        pytest.skip("no place for prompts")
    stack = anatomy_of(trainer._base.model.config).layers[0][0]
    prompt = Architecture.of([place(stack, 0, MODULES["prompt"].roles[0], "prompt", 3)])
    other = Architecture.of([place(stack, 1, "ffn", "serial", 2)])
    run_together(trainer, [Alone(trainer, prompt, 1, [1, 5, 3])])
    both = [Alone(trainer, architecture, 0, [0, 1]).adapter for architecture in (prompt, other)]
    with pytest.raises(ModelError, match="cannot be packed"):
        Pack(trainer._base.model, both)
