"""Makes `adapters.safetensors`: what AdapterHub's `adapters` computes, for `tests/hybrid/test_parity.py`.

It needs an environment of its own, since `adapters` 1.3 pins transformers 4.57:

    python -m venv adapters-env
    adapters-env/bin/pip install adapters==1.3.0 transformers==4.57.6 torch==2.13.0
    adapters-env/bin/python tests/hybrid/parity/make_reference.py

The file holds, by method: all weights of the adapter under the names that `adapters` gives them, and the logits with
and without padding. The base model is not in it: its weights are a formula, see `fill`.
"""

from pathlib import Path

import torch

FILE = Path(__file__).with_name("adapters.safetensors")
HIDDEN = 32
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [5, 6, 7, 11, 0, 0]])
MASK = torch.tensor([[1] * 6, [1, 1, 1, 1, 0, 0]])


@torch.no_grad()
def fill(model) -> None:
    """Every weight from its place among the sorted names and in its tensor: the same in all versions."""
    for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
        wave = (
            torch.sin(12.9898 * (torch.arange(parameter.numel(), dtype=torch.float64) + 10_007 * index)) * 43_758.5453
        )
        uniform = (wave - wave.floor() - 0.5).reshape(parameter.shape)
        parameter.copy_(uniform * 0.8 + ("LayerNorm.weight" in name))


def methods():
    from adapters import (
        DoubleSeqBnConfig,
        LoRAConfig,
        MAMConfig,
        ParBnConfig,
        PrefixTuningConfig,
        SeqBnConfig,
        UniPELTConfig,
    )

    def factor(bottleneck: int) -> float:
        return HIDDEN / (bottleneck + 0.5)  # adapters takes int(hidden / factor)

    prefix = PrefixTuningConfig(flat=True, prefix_length=3)
    # Pfeiffer's default reads the residual stream after a norm of its own; ours is placed as Houlsby's.
    serial = SeqBnConfig(reduction_factor=factor(5), original_ln_before=False)
    return {
        "serial": DoubleSeqBnConfig(reduction_factor=factor(6), non_linearity="swish"),
        "serial_ffn": serial,
        "parallel": ParBnConfig(reduction_factor=factor(7), scaling=1.0),
        "scaled_parallel": ParBnConfig(reduction_factor=factor(7), scaling=4.0),
        "learned_parallel": ParBnConfig(reduction_factor=factor(7), scaling="learned"),
        "prefix": prefix,
        "lora": LoRAConfig(r=3, alpha=6, attn_matrices=["q", "k", "v"]),
        "lora_ffn": LoRAConfig(r=2, alpha=8, selfattn_lora=False, intermediate_lora=True, output_lora=True),
        "mam": MAMConfig(prefix, ParBnConfig(reduction_factor=factor(7), scaling=4.0)),
        "unipelt": UniPELTConfig(prefix, serial, LoRAConfig(r=3, alpha=6)),
    }


def reference(name: str, config) -> dict[str, torch.Tensor]:
    import adapters
    from transformers import BertConfig, BertForSequenceClassification

    given = {"vocab_size": 100, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4}
    made = BertConfig(**given, intermediate_size=64, max_position_embeddings=64, num_labels=3, pad_token_id=0)
    made._attn_implementation = "eager"
    model = BertForSequenceClassification(made).eval()
    fill(model)
    base = {key for key, _ in model.named_parameters()}
    adapters.init(model)
    model.add_adapter("a", config=config)
    model.set_active_adapters("a")
    generator = torch.Generator().manual_seed(0)
    weights = {}
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            if key.replace(".base_layer", "") not in base:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
                weights[f"{name}/{key}"] = parameter.detach().clone().contiguous()
        weights[f"{name}:padded"] = model(input_ids=IDS, attention_mask=MASK).logits
        weights[f"{name}:whole"] = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return weights


def main() -> None:
    import adapters
    import transformers
    from safetensors.torch import save_file

    found = {}
    for name, config in methods().items():
        found |= reference(name, config)
    versions = {"adapters": adapters.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    save_file(found, FILE, metadata=versions)


if __name__ == "__main__":
    main()
