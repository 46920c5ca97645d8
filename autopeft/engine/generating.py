"""Texts made by an adapted model, greedily, for the metrics that read them."""

from typing import Any

import torch
from torch import Tensor

from autopeft.engine.batches import TokenisedSplit
from autopeft.engine.shared_model import SharedModel

__all__ = ["generate"]


def generate(base: SharedModel, adapted: Any, split: TokenisedSplit, batch_size: int) -> list[str]:
    """What `adapted` makes of each row's prompt: at most as many tokens as the longest true text.

    `adapted` must run whole, without stand-ins for its frozen part.
    """
    prompts, tokenizer = base.problem.prompts(split), base.tokenizer
    is_pair = bool(base.model.config.is_encoder_decoder)
    longest = max(1, int(split.n_labels.max()))
    texts = [""] * len(prompts)
    by_length = sorted(range(len(prompts)), key=lambda row: -len(prompts[row]))
    for start in range(0, len(prompts), batch_size):
        rows = by_length[start : start + batch_size]
        ids, mask = _padded([prompts[row] for row in rows], split.pad_id, on_left=not is_pair)
        room = longest if is_pair else max(1, min(longest, base.max_tokens - ids.shape[1]))
        with torch.inference_mode():
            made = adapted.generate(
                input_ids=ids.to(base.device),
                attention_mask=mask.to(base.device),
                max_new_tokens=room,
                do_sample=False,
                num_beams=1,
                use_cache=True,
                pad_token_id=split.pad_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        if not is_pair:
            made = made[:, ids.shape[1] :]
        for row, text in zip(rows, tokenizer.batch_decode(made, skip_special_tokens=True), strict=True):
            texts[row] = text
    return texts


def _padded(prompts: list[Tensor], pad_id: int, *, on_left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask `(B, T)`, padded on the left where what is made follows the last token."""
    T = max(map(len, prompts))
    ids = torch.full((len(prompts), T), pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        start = T - len(prompt) if on_left else 0
        ids[row, start : start + len(prompt)] = prompt
        mask[row, start : start + len(prompt)] = 1
    return ids, mask
