"""Measuring an adapted model before it is trained: how much slower it is than the base model, what training it takes.

Both are measured on the worker's own device and data. A machine that does other things too makes passes longer, so that
passes with and without adapters take turns and are compared in pairs; on a CPU their processor time is.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from autopeft.engine.batches import Batch, TokenisedSplit
from autopeft.engine.devices import wait_for
from autopeft.engine.limits import Limits
from autopeft.errors import OverLimitError

_ROWS = 8
_PAIRS = 11
_LEAST_PAIRS = 5
_SECONDS = 5.0
"""After which no further pair is begun, if there are enough."""
_ADAM_BYTES = 8
"""Of a trained float32 parameter: AdamW's two moments."""


def typical_batch(split: TokenisedSplit) -> Batch:
    """Up to 8 rows of the middle lengths: what a forward pass is timed on."""
    order = split.lengths.argsort(stable=True)
    start = max(0, (len(order) - _ROWS) // 2)
    return split.batch(order[start : start + _ROWS])


def longest_batch(split: TokenisedSplit, batch_size: int) -> Batch:
    """The longest rows: no batch of a training needs more memory."""
    return split.batch(split.lengths.argsort(descending=True, stable=True)[:batch_size])


def latency_overhead(
    forward: Callable[[], Any], without_adapters: Callable[[], AbstractContextManager[Any]], device: torch.device
) -> float:
    """Time of a forward pass over that of the base model: the median over pairs of passes, the first pair left out."""
    ratios: list[float] = []
    begun = time.monotonic()
    with torch.inference_mode():
        while len(ratios) <= _LEAST_PAIRS or (len(ratios) <= _PAIRS and time.monotonic() - begun < _SECONDS):
            adapted = _seconds(forward, device)
            with without_adapters():
                ratios.append(adapted / _seconds(forward, device))
    return median(ratios[1:])


def _seconds(forward: Callable[[], Any], device: torch.device) -> float:
    """Of one pass: processor time of this process on a CPU, else by the wall clock."""
    if device.type == "cpu":
        start = time.process_time()
        forward()
        return time.process_time() - start
    wait_for(device)
    start = time.perf_counter()
    forward()
    wait_for(device)
    return time.perf_counter() - start


def training_memory(model: nn.Module, loss: Callable[[], Tensor], device: torch.device) -> int:
    """Bytes that one training step takes, the model included; leaves no gradients, and random numbers as they were.

    On CUDA the peak of a real step forward and backward, as PyTorch's allocator counts it, and AdamW's moments. On a
    CPU, where a process' peak is not that of one trial, it is added up: weights, what a real forward pass keeps for the
    backward one, gradients and moments; short-lived intermediates are not in it.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    is_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if is_cuda else []):
        if is_cuda:
            torch.cuda.reset_peak_memory_stats(device)
            loss().backward()
            model.zero_grad(set_to_none=True)
            return torch.cuda.max_memory_allocated(device) + _ADAM_BYTES * trained
        weights = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(model)}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            result = loss()  # held until all that it keeps is counted, so that no storage is used twice
        activations = sum(n_bytes for place, n_bytes in kept.items() if place not in weights)
        del result
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return sum(weights.values()) + activations + gradients + _ADAM_BYTES * trained


def refuse_over_limit(limits: Limits, latency_overhead: float | None, memory_bytes: int | None) -> None:
    """
    Raises:
        OverLimitError: a measured value is over its limit; says both.
    """
    most, memory = limits.latency_overhead, limits.memory_bytes
    if most is not None and latency_overhead is not None and latency_overhead > most:
        raise OverLimitError(
            f"a forward pass takes {latency_overhead:.2f} times the base model's, over --max-latency-overhead {most:g}"
        )
    if memory is not None and memory_bytes is not None and memory_bytes > memory:
        raise OverLimitError(
            f"training takes {memory_bytes / 1e6:,.1f} MB at its peak, over --max-memory {memory / 1e6:,.1f}MB"
        )


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
