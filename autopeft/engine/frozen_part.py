"""Finds the modules of a model that a trial leaves alone, so that stand-ins can take their places.

How it is found, without knowing the family: the adapted model is run once on a few rows. A module whose outputs need no
gradient does not depend on what trains; it can be stood in for if it is called once in a forward pass and gives vectors
for tokens or rows. The outermost such modules are taken: whole layers below the first adapted one, and in that layer
whatever comes before its first adapted operation. Outputs that no gradient reaches from the result are read by nobody
and need not be kept. In the end result and gradients are compared with those of the model as it was, blank outputs
filled with NaN: what cannot be cut so is not cut.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.utils import _pytree

from autopeft.engine.activation_cache import Kept, Key
from autopeft.engine.batches import Batch, Per
from autopeft.engine.fused_lora import fused
from autopeft.engine.last_layer import LastLayer
from autopeft.engine.short_attention import short_attention
from autopeft.engine.stand_ins import Feed, Leaf, StandIn, installed
from autopeft.hybrid.layers import PREFIX, AdaptedOutput, HybridLayer
from autopeft.hybrid.roles import is_linear

TOLERANCE = 1e-6
"""Largest difference of results and gradients, relative to the largest of them where that is above 1."""

Forward = Callable[[Batch], Tensor]
"""The results `(B, n_outputs)` of the adapted model."""


@dataclass
class Call:
    """What one module got and gave; of several calls, the last."""

    inputs: list[Any]
    outputs: list[Any]
    structure: Any
    times: int = 1

    @property
    def is_frozen(self) -> bool:
        return not any(isinstance(output, Tensor) and output.requires_grad for output in self.outputs)


@dataclass
class Trace:
    """One forward pass of a model: each module's calls, the results and their gradients."""

    calls: dict[str, Call] = field(default_factory=dict)
    outputs: tuple[Tensor, ...] = ()
    """The results, then the gradients of all that trains."""


def find_frozen(
    model: nn.Module,
    forward: Forward,
    batches: tuple[Batch, Batch],
    layers: frozenset[str],
    *,
    whole_layers: bool,
    last: LastLayer | None = None,
) -> tuple[StandIn, ...] | None:
    """Stand-ins for what is frozen in `model`; empty where nothing is worth it, None where it cannot be cut exactly.

    `layers` are the names of the model's layers; with `whole_layers`, an adapted layer is not looked into. The two
    batches should be of different lengths, with padding. `last` is the last layer where it computes one token only.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    first, second = batches
    trace = run_traced(model, partial(forward, first), trained, last)
    found = tuple(_outermost(model, trace, first, layers if whole_layers else frozenset()))
    if not any(_saves(one.path, layer) for one in found for layer in layers):
        return ()
    found = _read_only(model, found, trace, forward, first, last)
    found = _without_cheap(model, found, trace, forward, first, last)
    return found if _is_exact(model, found, forward, second, trained, last) else None


@contextmanager
def shortened(
    model: nn.Module, stand_ins: Sequence[StandIn], feed: Feed, last: LastLayer | None, *, fuses: bool = False
) -> Iterator[None]:
    """Within it, the model runs with its stand-ins, and with its last layer for one token where `last` is given.

    With `fuses`, some modules are not called, as what they do is done in one with others: nobody can watch them.
    """
    with ExitStack() as stack:
        stack.enter_context(installed(model, stand_ins, feed))
        if fuses:
            stack.enter_context(fused(model))
            stack.enter_context(short_attention())
        if last is not None:
            stack.enter_context(last.installed(stand_ins))
        yield


def run_traced(
    model: nn.Module, forward: Callable[[], Tensor], trained: Sequence[Tensor], last: LastLayer | None
) -> Trace:
    """Run a model and look at each of its modules."""
    trace = Trace()

    def remember(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if last is not None and last.skipped is module:
            return
        outputs, structure = _pytree.tree_flatten(output)
        times = trace.calls[name].times + 1 if name in trace.calls else 1
        trace.calls[name] = Call(_pytree.tree_leaves((args, kwargs)), outputs, structure, times)

    handles = [
        module.register_forward_hook(partial(remember, name), with_kwargs=True)
        for name, module in model.named_modules()
    ]
    try:
        with shortened(model, (), Feed(), last):
            trace.outputs = with_gradients(forward, trained)
    finally:
        for handle in handles:
            handle.remove()
    return trace


def key_of(path: str) -> str:
    """The name of a module in the model without adapters."""
    return path.replace(".base_layer", "")


def with_gradients(forward: Callable[[], Tensor], trained: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The results, then the gradients of all that trains."""
    with torch.enable_grad():
        results = forward()
        weights = torch.linspace(0.5, 1.5, results.numel(), device=results.device).view_as(results)
        gradients = torch.autograd.grad((results * weights).sum(), trained, allow_unused=True)
    return (results.detach(), *(g for g in gradients if g is not None))


def _saves(path: str, layer: str) -> bool:
    """Whether the module of this path is a part of the layer, or has it as a part."""
    return f"{path}.".startswith(f"{layer}.") or f"{layer}.".startswith(f"{path}.")


def _outermost(
    module: nn.Module, trace: Trace, batch: Batch, closed: frozenset[str], name: str = ""
) -> Iterator[StandIn]:
    for child_name, child in module.named_children():
        is_host = isinstance(child, HybridLayer) and not isinstance(child, AdaptedOutput)
        if child_name.startswith(PREFIX) or is_host or isinstance(child, AuxiliaryTrainingWrapper):
            continue
        path = f"{name}.{child_name}" if name else child_name
        call = trace.calls.get(path)
        found = _stand_in(path, child, call, batch) if call is not None else None
        if found is not None:
            yield found
        elif path not in closed or (call is not None and call.is_frozen):
            yield from _outermost(child, trace, batch, closed, path)


def _stand_in(path: str, module: nn.Module, call: Call, batch: Batch) -> StandIn | None:
    if call.times > 1 or not call.is_frozen:
        return None
    if any(
        isinstance(part, HybridLayer) or (part._forward_pre_hooks and part is not module) for part in module.modules()
    ):
        return None  # adapters stand within, or read what happens there
    leaves = []
    for i, output in enumerate(call.outputs):
        leaf = _leaf(Key(key_of(path), i, "token"), output, call.inputs, batch)
        if leaf is None:
            return None
        leaves.append(leaf)
    if not any(leaf.kept for leaf in leaves):
        return None
    return StandIn(path, call.structure, tuple(leaves))


def _leaf(key: Key, output: Any, inputs: list[Any], batch: Batch) -> Leaf | None:
    if output is None or isinstance(output, bool | int | float | str):
        return Leaf("constant", constant=output)
    for i, given in enumerate(inputs):
        if given is output:
            return Leaf("passed", argument=i)
    kept = _kept(key, output, batch) if isinstance(output, Tensor) and output.is_floating_point() else None
    return None if kept is None else Leaf("kept", kept)


def _kept(key: Key, output: Tensor, batch: Batch) -> Kept | None:
    """What is kept of an output with a vector for each token or each row; None for others, as attention weights are."""
    lengths = {per: size for per, size in sizes(batch).items() if per != "row"}
    for per, size in lengths.items():
        if output.dim() > 2 and output.shape[:2] == size:
            return Kept(Key(key.module, key.leaf, per), tuple(output.shape[2:]), output.dtype)
    S = batch.input_ids.shape[0]
    if output.dim() > 1 and output.shape[0] == S and not {size[1] for size in lengths.values()} & {*output.shape[1:]}:
        return Kept(Key(key.module, key.leaf, "row"), tuple(output.shape[1:]), output.dtype)
    return None


def _values(found: Iterable[StandIn], trace: Trace) -> dict[Key, Tensor]:
    return {kept.key: trace.calls[s.path].outputs[kept.key.leaf].detach() for s in found for kept in s.made}


def _read_only(
    model: nn.Module,
    found: tuple[StandIn, ...],
    trace: Trace,
    forward: Forward,
    batch: Batch,
    last: LastLayer | None,
) -> tuple[StandIn, ...]:
    """The stand-ins with those outputs blank that nobody reads."""
    values = {key: value.clone().requires_grad_() for key, value in _values(found, trace).items()}
    everything = tuple(s.reading(values) for s in found)
    with shortened(model, everything, Feed(sizes(batch), values), last), torch.enable_grad():
        results = forward(batch)
        reached = torch.autograd.grad(results.sum(), list(values.values()), allow_unused=True)
    read = [key for key, gradient in zip(values, reached, strict=True) if gradient is not None]
    return tuple(s.reading(read) for s in found)


def _without_cheap(
    model: nn.Module,
    found: tuple[StandIn, ...],
    trace: Trace,
    forward: Forward,
    batch: Batch,
    last: LastLayer | None,
) -> tuple[StandIn, ...]:
    """Norms and the like are computed where that saves keeping their outputs."""
    for one in found:
        if one.kept and not any(is_linear(module) for module in model.get_submodule(one.path).modules()):
            fewer = _read_only(model, tuple(s for s in found if s.path != one.path), trace, forward, batch, last)
            if sum(map(_width, fewer)) < sum(map(_width, found)):
                found = fewer
    return found


def _width(one: StandIn) -> int:
    return sum(torch.Size(kept.shape).numel() for kept in one.kept)


def _is_exact(
    model: nn.Module,
    found: tuple[StandIn, ...],
    forward: Forward,
    batch: Batch,
    trained: Sequence[Tensor],
    last: LastLayer | None,
) -> bool:
    trace = run_traced(model, partial(forward, batch), trained, last)
    values = {}
    for key, value in _values(found, trace).items():
        if value.shape[: len(sizes(batch)[key.per])] != sizes(batch)[key.per]:
            return False
        is_there = batch.is_there(key.per)
        if is_there is not None:
            value = value.masked_fill(~is_there.view(*is_there.shape, *(1,) * (value.dim() - 2)), 0)  # noqa: PLW2901
        values[key] = value
    with shortened(model, found, Feed(sizes(batch), values, fill=float("nan")), last):
        outputs = with_gradients(partial(forward, batch), trained)
    return are_close(outputs, trace.outputs)


def are_close(a: Sequence[Tensor], b: Sequence[Tensor], tolerance: float = TOLERANCE) -> bool:
    """Whether two runs gave the same; NaN is like nothing."""
    return len(a) == len(b) and all(_is_close(*pair, tolerance) for pair in zip(a, b, strict=True))


def _is_close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max())))


def sizes(batch: Batch) -> dict[Per, tuple[int, ...]]:
    """How many vectors of each kind a batch has: sequences, by tokens of the encoder and of the decoder."""
    S, T = batch.input_ids.shape
    found: dict[Per, tuple[int, ...]] = {"row": (S,), "token": (S, T)}
    if batch.decoder_input_ids is not None:
        found["target"] = (S, batch.decoder_input_ids.shape[1])
    return found


class _AllSeenError(Exception):
    """All outputs that were wanted are there: the rest of the forward pass is of no use."""


@contextmanager
def captured(
    model: nn.Module, wanted: Mapping[str, Sequence[Kept]], last: LastLayer | None
) -> Iterator[Callable[[Callable[[], Any]], dict[Key, Tensor]]]:
    """Within it, a function that runs a forward pass and gives what modules, by path, gave; it stops after the last."""
    values: dict[Key, Tensor] = {}
    n = sum(map(len, wanted.values()))

    def take(kepts: Sequence[Kept], module: nn.Module, args: Any, output: Any) -> None:
        if last is not None and last.skipped is module:
            return
        outputs = _pytree.tree_leaves(output)
        values.update({kept.key: outputs[kept.key.leaf] for kept in kepts})
        if len(values) == n:
            raise _AllSeenError

    def run(forward: Callable[[], Any]) -> dict[Key, Tensor]:
        values.clear()
        with suppress(_AllSeenError):
            forward()
        return values

    handles = [model.get_submodule(p).register_forward_hook(partial(take, kepts)) for p, kepts in wanted.items()]
    try:
        with shortened(model, (), Feed(), last):
            yield run
    finally:
        for handle in handles:
            handle.remove()
