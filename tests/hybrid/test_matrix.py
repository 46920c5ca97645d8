"""Every kind on every family in the ways in which adapters are used.

A family's model holds all kinds side by side, each as an adapter of its own name, and each is active in turn: so one
model a family does for the whole row, and no kind may disturb another.
"""

import copy
from dataclasses import dataclass

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSpeechSeq2Seq

from autopeft.errors import ModelError
from autopeft.hybrid import HybridConfig, anatomy_of, load_strict
from autopeft.space.architecture import Architecture
from tests.hybrid.adapted import ARCHITECTURES, adapt, distance, logits, shake
from tests.models import BIDIRECTIONAL, CAUSAL, CONFIGS, tiny, tiny_inputs

CANNOT_CHECKPOINT = ("albert", "mpnet")  # transformers refuses it
MERGEABLE = {"lora", "vera", "kronecker", "ia3", "layernorm", "bitfit", "norms", "dora", "lora-fa"}


def architectures_on(model) -> dict[str, Architecture]:
    """Those that have a place on the model, by name: 16 to 18 of them."""
    anatomy = anatomy_of(model.config)
    made = {name: architecture(anatomy) for name, architecture in ARCHITECTURES.items()}
    return {name: architecture for name, architecture in made.items() if architecture}


@dataclass(frozen=True)
class Row:
    """A family's model with every kind in it, and how it is run."""

    family: str
    model: PeftModel
    architectures: dict[str, Architecture]

    def __iter__(self):
        """Name after name, the adapter of that name active."""
        for name in self.architectures:
            self.model.set_adapter(name)
            yield name

    def output(self, model=None):
        return logits(self.model if model is None else model, **tiny_inputs(self.family))

    def copied(self):
        return Row(self.family, copy.deepcopy(self.model), self.architectures)


def all_kinds_in(base, family: str, std: float = 0.1) -> Row:
    architectures = architectures_on(base)
    model = adapt(base, Architecture())
    for name, architecture in architectures.items():
        model.add_adapter(name, HybridConfig(architecture=architecture))
    return Row(family, shake(model.eval(), std=std), architectures)


@pytest.fixture(scope="module", params=CONFIGS)
def row(request) -> Row:
    return all_kinds_in(tiny(request.param), request.param)


def over(limit: float, distances: dict[str, float]) -> dict[str, float]:
    """The kinds whose distance is too large, or not a number."""
    return {name: d for name, d in distances.items() if not d <= limit}


def test_every_kind_is_saved_and_loaded_under_another_name(row, tmp_path):
    row.model.save_pretrained(tmp_path, selected_adapters=list(row.architectures))
    base, far = tiny(row.family), {}
    for name in row:
        expected = row.output()
        strict = load_strict(base, tmp_path / name, "another").eval()
        far[name] = distance(row.output(strict), expected)
        strict.unload()
    assert over(0.0, far) == {}


def test_every_kind_is_loaded_strictly(row):
    base = tiny(row.family)
    for architecture in row.architectures.values():
        model = adapt(base, architecture)
        saved = get_peft_model_state_dict(model, save_embedding_layers=False)
        key, *others = saved
        wrong = {
            "1 missing.* 1 unexpected": {key.replace("autopeft_", "autopeft_old_"): saved[key]},
            "1 of another shape": {key: saved[key][..., :-1]},
        }
        for message, changed in wrong.items():
            with pytest.raises(ModelError, match=message):
                set_peft_model_state_dict(model, {**changed, **{k: saved[k] for k in others}})
        model.unload()


def test_every_kind_is_unloaded_without_a_trace(row):
    base = tiny(row.family)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    modules = [(key, type(module)) for key, module in base.named_modules()]
    configs = [id(module.config) for module in base.modules() if hasattr(module, "config")]
    expected = row.output(base)
    for name, architecture in row.architectures.items():
        assert shake(adapt(base, architecture)).unload() is base, name
        assert [(key, type(module)) for key, module in base.named_modules()] == modules, name
        assert [id(module.config) for module in base.modules() if hasattr(module, "config")] == configs, name
        assert base.state_dict().keys() == before.keys(), name
        assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items()), name
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in base.modules()), name
        assert not hasattr(base, "peft_config"), name
        assert distance(row.output(base), expected) == 0.0, name


def test_every_kind_is_active_beside_another_and_alone_again(row):
    alone, both = {name: row.output() for name in row}, {}
    for name, other in zip(alone, [*list(alone)[1:], next(iter(alone))], strict=True):
        row.model.base_model.set_adapter([name, other])
        together = row.output()
        both[name] = min(distance(together, alone[name]), distance(together, alone[other]))
    assert {name: d for name, d in both.items() if not d > 1e-6} == {}
    assert over(0.0, {name: distance(row.output(), alone[name]) for name in row}) == {}
    with row.model.disable_adapter():
        assert distance(row.output(), row.output(tiny(row.family))) == 0.0


def test_every_kind_survives_a_copy(row):
    twin = row.copied()
    expected = {name: row.output() for name in row}
    assert over(0.0, {name: distance(twin.output(), expected[name]) for name in twin}) == {}
    shake(twin.model, seed=8)
    assert over(0.0, {name: distance(row.output(), expected[name]) for name in row}) == {}


def test_every_kind_merges_or_is_refused_by_name(row):
    base = tiny(row.family).double()  # what is left in float32 is rounding
    if row.family == "mixtral":
        base.set_experts_implementation("eager")  # the fused one is not for float64
    inputs = {key: t.double() if t.is_floating_point() else t for key, t in tiny_inputs(row.family).items()}
    weights = {key: value.clone() for key, value in base.state_dict().items()}
    far = {}
    for name, architecture in row.architectures.items():
        model = shake(adapt(base, architecture), std=0.1)
        expected = logits(model, **inputs)
        if name in MERGEABLE:
            model.merge_adapter(safe_merge=True)
            far[name] = distance(logits(model, **inputs), expected)
            model.unmerge_adapter()
            far[f"{name}, undone"] = distance(logits(model, **inputs), expected)
            far[f"{name}, unloaded"] = distance(logits(model.merge_and_unload(), **inputs), expected)
            assert base.state_dict().keys() == weights.keys()
            base.load_state_dict(weights)
        else:
            kinds = "|".join(f"(gated )?{kind}" for kind in architecture.modules)
            for merge in (model.merge_adapter, model.merge_and_unload):
                with pytest.raises(ModelError, match=f"cannot merge adapter default: ({kinds}) at"):
                    merge()
            assert distance(logits(model, **inputs), expected) == 0.0, name
            model.unload()
    assert over(1e-9, far) == {}


def test_every_kind_has_the_same_gradients_through_checkpoints(row):
    if row.family in CANNOT_CHECKPOINT:
        pytest.skip(f"transformers cannot checkpoint {row.family}")
    base, far = tiny(row.family), {}
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    def gradients(model):
        torch.manual_seed(0)  # random parts of the base that do not train
        model.zero_grad()
        (model(**tiny_inputs(row.family))[0] ** 3).sum().backward()
        return {key: p.grad for key, p in model.named_parameters() if p.requires_grad}

    for name, architecture in row.architectures.items():
        model = shake(adapt(base, architecture), std=0.1).train()
        model.enable_input_require_grads()
        expected = gradients(model)
        scale = max(1.0, *(float(g.abs().max()) for g in expected.values()))
        for reentrant in (True, False):
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            again = gradients(model)
            far[f"{name}, reentrant={reentrant}"] = max(distance(again[k], expected[k]) for k in expected) / scale
        model.gradient_checkpointing_disable()
        model.disable_input_require_grads()
        model.unload()
    assert over(1e-6, far) == {}


def test_every_kind_keeps_a_base_in_half_precision(row):
    base = tiny(row.family).to(torch.bfloat16)
    inputs = {key: t.bfloat16() if t.is_floating_point() else t for key, t in tiny_inputs(row.family).items()}
    for name, architecture in row.architectures.items():
        adapted = shake(adapt(base, architecture), std=0.1)
        assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}, name
        output = adapted(**inputs)[0]
        assert output.dtype == torch.bfloat16, name
        assert torch.isfinite(output).all(), name
        (output.float() ** 3).sum().backward()
        assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad), name
        assert {p.dtype for p in adapted.unload().parameters()} == {torch.bfloat16}, name


def test_padding_does_not_change_what_any_kind_makes_of_a_sentence(row):
    if row.family not in (*CAUSAL, *BIDIRECTIONAL, "t5", "bart"):
        pytest.skip(f"{row.family} has no padding")
    more = {"decoder_input_ids": torch.tensor([[2, 7, 8]])} if row.family in ("t5", "bart") else {}
    sides = {"right": ([5, 6, 7, 11, 0, 0], [1, 1, 1, 1, 0, 0], {}, slice(0, 4))}
    if row.family in CAUSAL:
        positions = {"position_ids": torch.tensor([[0, 0, 0, 1, 2, 3]])}
        sides["left"] = ([0, 0, 5, 6, 7, 11], [0, 0, 1, 1, 1, 1], positions, slice(2, 6))
    far = {}
    for name in row:
        alone = logits(row.model, input_ids=torch.tensor([[5, 6, 7, 11]]), **more)
        for side, (ids, mask, where, true) in sides.items():
            inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.tensor([mask]), **where, **more}
            padded = logits(row.model, **inputs)
            far[f"{name}, {side}"] = distance(padded if more else padded[:, true], alone)
    assert over(5e-6, far) == {}


GENERATORS = {
    **dict.fromkeys(CAUSAL, AutoModelForCausalLM),
    "t5": AutoModelForSeq2SeqLM,
    "bart": AutoModelForSeq2SeqLM,
    "whisper": AutoModelForSpeechSeq2Seq,
}


@pytest.mark.parametrize("family", GENERATORS)
def test_a_cache_does_not_change_what_any_kind_generates(family):
    torch.manual_seed(0)
    row = all_kinds_in(GENERATORS[family].from_config(CONFIGS[family]()).eval(), family, std=0.2)
    ids = torch.tensor([[0, 0, 5, 6, 7], [3, 4, 5, 6, 7]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    if family == "whisper":
        inputs = {"input_features": tiny_inputs(family)["input_features"]}

    def generate(**options):
        return row.model.generate(
            **inputs, max_new_tokens=3, do_sample=False, eos_token_id=None, pad_token_id=0, **options
        )

    for name in row:
        expected = generate(use_cache=False)
        assert torch.equal(generate(), expected), name
        assert torch.equal(generate(num_beams=2), generate(num_beams=2, use_cache=False)), name
        if name == "prompt" and family in CAUSAL:
            with pytest.raises(ModelError, match="a static cache has no room for the prompt"):
                generate(cache_implementation="static")
        else:
            assert torch.equal(generate(cache_implementation="static"), expected), name


@pytest.mark.slow
@pytest.mark.parametrize("family", CONFIGS)
def test_all_kinds_together_compile_to_one_graph(family):
    config = CONFIGS[family]()
    kinds_of_layers = {"layer_types": config.layer_types[:1]} if getattr(config, "layer_types", None) else {}
    row = all_kinds_in(tiny(family, num_hidden_layers=1, **kinds_of_layers), family)
    row.model.base_model.set_adapter(list(row.architectures))
    expected = row.output()
    torch._dynamo.reset()
    compiled = torch.compile(row.model, backend="eager", fullgraph=True)
    assert distance(row.output(compiled), expected) <= 1e-6
    torch._dynamo.reset()
