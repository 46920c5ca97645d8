"""What the frozen model computes in: float32, float32 by TF32 products, or bfloat16; chosen by trying.

Some processors are many times slower in bfloat16, others several times faster, and no name tells which. So a layer with
the widths of the model's own goes forward and backward in both, in turns: not its matrices alone, since norms, softmax
and casts gain nothing. float32 is kept unless bfloat16 is clearly faster. What was chosen is part of the study from
then on: a measurement is never the same twice, and scores must not hang on it.
"""

import time
from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from autopeft.engine.devices import wait_for
from autopeft.errors import StudyCorruptError
from autopeft.space.anatomy import Anatomy

Precision = Literal["float32", "tf32", "bfloat16"]
DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}

CLEARLY_FASTER = 1.3
"""Times as fast as float32 that bfloat16 has to be."""
SECONDS = 0.05
"""After which no further pair of passes is begun."""
_LEAST_PAIRS, _MOST_PAIRS = 2, 50
_TOKENS = 32
_MOST_TEXTS = 32
_PRODUCTS = 2**26
"""Multiplications of a forward pass at most, where one text does not need more: some 5 ms of one core."""
_RANK = 8
_TF32_CAPABILITY = 8
"""Of NVIDIA's GPUs, from Ampere on."""


def full_precision(device: torch.device) -> Precision:
    """float32, by TF32 products where the device has them."""
    has_tf32 = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= _TF32_CAPABILITY
    return "tf32" if has_tf32 else "float32"


def can_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu"


def measure_precision(anatomy: Anatomy, device: torch.device) -> tuple[Precision, float | None]:
    """What is to be computed in, and how many times as fast as float32 bfloat16 was; None where the device has none.

    Passes in float32 and bfloat16 take turns for 50 ms (at least three times, the first not counted), on a CPU of the
    processor's time: what else runs on the machine takes none of that.
    """
    full = full_precision(device)
    if not can_bfloat16(device):
        return full, None
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    before = torch.get_float32_matmul_precision()
    try:
        allow_tf32(full, device)
        passes = [_a_pass(anatomy, device, dtype) for dtype in (torch.float32, torch.bfloat16)]
        times: list[tuple[float, float]] = []
        begun = clock()
        while len(times) <= _LEAST_PAIRS or (len(times) <= _MOST_PAIRS and clock() - begun < SECONDS):
            first, second = (_seconds(one, device, clock) for one in passes)
            times.append((first, second))
    finally:
        torch.set_float32_matmul_precision(before)
    # The fastest of each: whatever disturbs a pass makes it longer.
    ratio = min(first for first, _ in times[1:]) / min(second for _, second in times[1:])
    return chosen(full, ratio), ratio


def chosen(full: Precision, ratio: float) -> Precision:
    """`full`, or bfloat16 where that is `ratio` times as fast and this is clear."""
    return "bfloat16" if ratio >= CLEARLY_FASTER else full


def allow_tf32(precision: str, device: torch.device) -> None:
    """Set how this process multiplies float32 matrices on a GPU."""
    is_meant = precision == "tf32" and full_precision(device) == "tf32"
    torch.set_float32_matmul_precision("high" if is_meant else "highest")


def in_force(asked: str, dtype: torch.dtype, device: torch.device) -> str:
    """What a model of these weights is computed in."""
    is_tf32 = asked == "tf32" and full_precision(device) == "tf32"
    return "tf32" if is_tf32 else str(dtype).removeprefix("torch.")


def checked(choice: object) -> Precision:
    """A choice that a study holds.

    Raises:
        StudyCorruptError: it is none.
    """
    for precision in DTYPES:
        if precision == choice:
            return precision  # type: ignore[return-value]
    raise StudyCorruptError(f"the study was searched in {choice!r}, which is no precision: {', '.join(DTYPES)}")


def _a_pass(anatomy: Anatomy, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    """Forward and backward through a layer as the widest of the model: frozen weights, and LoRA in float32 at q."""
    layer = max((layer for _, _, layer in anatomy.layers), key=lambda layer: layer.hidden)
    h = layer.hidden
    wide = max((max(site.in_features, site.out_features) for site in layer.sites), default=h)
    n_heads = layer.n_heads if layer.n_heads and h % layer.n_heads == 0 else 1
    n_texts = max(1, min(_MOST_TEXTS, _PRODUCTS // (_TOKENS * (4 * h * h + 2 * h * wide))))
    generator = torch.Generator().manual_seed(0)

    def matrix(n_out: int, n_in: int, dtype: torch.dtype = dtype) -> Tensor:
        return (torch.randn(n_out, n_in, generator=generator) * 0.02).to(device, dtype)

    q, k, v, o, up, down = (matrix(*size) for size in [(h, h)] * 4 + [(wide, h), (h, wide)])
    lora = [matrix(*size, torch.float32).requires_grad_() for size in ((_RANK, h), (h, _RANK))]
    x = torch.randn(n_texts, _TOKENS, h, generator=generator).to(device)

    def heads(y: Tensor) -> Tensor:
        return y.view(n_texts, _TOKENS, n_heads, -1).transpose(1, 2)  # (B, n_heads, T, d)

    def run() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            queries = functional.linear(x, q) + functional.linear(functional.linear(x, lora[0]), lora[1])
            mixed = functional.scaled_dot_product_attention(
                heads(queries), heads(functional.linear(x, k)), heads(functional.linear(x, v))
            )
            mixed = functional.linear(mixed.transpose(1, 2).reshape(x.shape), o)
            y = functional.layer_norm(x + mixed, (h,))
            y = functional.layer_norm(y + functional.linear(functional.gelu(functional.linear(y, up)), down), (h,))
        y.float().square().mean().backward()
        for weights in lora:
            weights.grad = None

    return run


def _seconds(run: Callable[[], None], device: torch.device, clock: Callable[[], float]) -> float:
    wait_for(device)
    start = clock()
    run()
    wait_for(device)
    return clock() - start
