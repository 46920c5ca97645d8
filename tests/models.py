"""Tiny random models, made from configs: four families with heads, all families without; seeded, in eval mode."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
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


_SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT = {**_SMALL, "intermediate_size": 64, "max_position_embeddings": 64}
_GROUPED = {**_TEXT, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
_VISION = {key: value for key, value in _TEXT.items() if key not in ("vocab_size", "max_position_embeddings")}
_BART = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2,
}  # fmt: skip

CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "bert": lambda: transformers.BertConfig(**_TEXT),
    "roberta": lambda: transformers.RobertaConfig(**_TEXT, pad_token_id=0),
    "distilbert": lambda: transformers.DistilBertConfig(
        vocab_size=VOCABULARY, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64
    ),
    "electra": lambda: transformers.ElectraConfig(**_TEXT, embedding_size=16),
    "albert": lambda: transformers.AlbertConfig(**_TEXT, embedding_size=16, pad_token_id=0),
    "deberta_v2": lambda: transformers.DebertaV2Config(
        **_TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False, pad_token_id=0
    ),
    "modernbert": lambda: transformers.ModernBertConfig(**_TEXT, pad_token_id=0, bos_token_id=2, eos_token_id=3),
    "mpnet": lambda: transformers.MPNetConfig(**_TEXT, pad_token_id=0),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=2, eos_token_id=3
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_TEXT, bos_token_id=2, eos_token_id=3),
    "opt": lambda: transformers.OPTConfig(
        **_SMALL, ffn_dim=64, max_position_embeddings=64, word_embed_proj_dim=32, pad_token_id=0, bos_token_id=2,
        eos_token_id=3,
    ),
    "llama": lambda: transformers.LlamaConfig(**_GROUPED),
    "mistral": lambda: transformers.MistralConfig(**_GROUPED, sliding_window=32),
    "qwen2": lambda: transformers.Qwen2Config(**_GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**_GROUPED, head_dim=8),
    "gemma": lambda: transformers.GemmaConfig(**_GROUPED, head_dim=8),
    "phi3": lambda: transformers.Phi3Config(**_GROUPED),
    "t5": lambda: transformers.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    ),
    "bart": lambda: transformers.BartConfig(**_BART),
    "vit": lambda: transformers.ViTConfig(**_VISION, image_size=16, patch_size=4),
    "clip": lambda: transformers.CLIPVisionConfig(**_VISION, image_size=16, patch_size=4),
    "whisper": lambda: transformers.WhisperConfig(
        **{**_BART, "max_source_positions": 8, "max_target_positions": 16}, num_mel_bins=8
    ),
    "mixtral": lambda: transformers.MixtralConfig(**_GROUPED, num_local_experts=2, num_experts_per_tok=1),
}  # fmt: skip
"""The families whose adapters are tested, by the name of their config; hidden 32, 2 layers, tiny everywhere."""


CAUSAL = ("gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "mixtral")
BIDIRECTIONAL = ("bert", "roberta", "distilbert", "electra", "albert", "deberta_v2", "modernbert", "mpnet")
"""Families that read text; the rest reads pictures or sounds, or is an encoder and a decoder."""


def tiny(family: str, **config: Any) -> PreTrainedModel:
    """The model without a head that `AutoModel` makes of a tiny config, seeded, in eval mode."""
    made = CONFIGS[family]()
    made.update(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModel.from_config(made).eval()


def tiny_inputs(family: str) -> dict[str, torch.Tensor]:
    """Inputs for `tiny(family)`: two sentences, images or sounds."""
    if family in ("vit", "clip"):
        return {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)}
    if family == "whisper":
        features = torch.linspace(-1, 1, 2 * 8 * 16).view(2, 8, 16)
        return {"input_features": features, "decoder_input_ids": torch.tensor([[2, 5, 6], [2, 7, 8]])}
    batch = tiny_batch()
    return batch | ({"decoder_input_ids": torch.tensor([[2, 7, 8], [2, 9, 5]])} if family in ("t5", "bart") else {})
