"""Tiny random models of four families, made from configs: hidden 32, 2 layers, seeded, in eval mode."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

VOCABULARY = 100


def _build(
    config: PretrainedConfig, plain: type[Any], classifier: type[Any], num_labels: int | None, seed: int
) -> PreTrainedModel:
    config.pad_token_id = 1 if config.model_type == "roberta" else 0
    if num_labels is not None:
        config.num_labels = num_labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return (plain if num_labels is None else classifier)(config).eval()


def tiny_bert(num_labels: int | None = None, *, layers: int = 2, seed: int = 0, **config: Any) -> PreTrainedModel:
    """A `BertModel`, or a classifier of `num_labels` classes."""
    given = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4}
    made = BertConfig(**given, intermediate_size=64, max_position_embeddings=64, **config)
    return _build(made, BertModel, BertForSequenceClassification, num_labels, seed)


def tiny_roberta(num_labels: int | None = None, *, layers: int = 2, seed: int = 0, **config: Any) -> PreTrainedModel:
    """A `RobertaModel`, or a classifier of `num_labels` classes."""
    given = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4}
    made = RobertaConfig(**given, intermediate_size=64, max_position_embeddings=64, **config)
    return _build(made, RobertaModel, RobertaForSequenceClassification, num_labels, seed)


def tiny_gpt2(num_labels: int | None = None, *, layers: int = 2, seed: int = 0, **config: Any) -> PreTrainedModel:
    """A `GPT2LMHeadModel`, or a classifier of `num_labels` classes."""
    made = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=layers,
        n_head=4,
        n_positions=64,
        bos_token_id=2,
        eos_token_id=3,
        **config,
    )
    return _build(made, GPT2LMHeadModel, GPT2ForSequenceClassification, num_labels, seed)


def tiny_llama(num_labels: int | None = None, *, layers: int = 2, seed: int = 0, **config: Any) -> PreTrainedModel:
    """A `LlamaForCausalLM` with 2 key/value heads for 4 heads, or a classifier of `num_labels` classes."""
    made = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        bos_token_id=2,
        eos_token_id=3,
        **config,
    )
    return _build(made, LlamaForCausalLM, LlamaForSequenceClassification, num_labels, seed)


TINY_FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {
    "bert": tiny_bert,
    "roberta": tiny_roberta,
    "gpt2": tiny_gpt2,
    "llama": tiny_llama,
}


def tiny_batch(pad_token: int = 0) -> dict[str, torch.Tensor]:
    """Two sentences of 6 and 4 tokens, the second padded on the right: `input_ids`, `attention_mask` (2, 6)."""
    ids = torch.tensor([[5, 6, 7, 8, 9, 10], [5, 6, 7, 11, pad_token, pad_token]])
    mask = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])
    return {"input_ids": ids, "attention_mask": mask}
