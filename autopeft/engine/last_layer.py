"""The last layer, computed for the one token that the head reads, with the keys and values of all tokens.

The layer runs twice: with all tokens up to its attention function, which takes keys and values and stops it there; then
with the token alone, whose query meets those keys and values. This goes through the attention registry of transformers,
so it needs an attention module that calls it. Linear maps for queries are left out of the first run and those for keys
and values out of the second; what is on neither side of attention (output map, FFN, adapters there) is computed for one
token in place of all.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from autopeft.engine.batches import Batch
from autopeft.engine.stand_ins import StandIn, replaced
from autopeft.hybrid.attention import attention_function, is_causal
from autopeft.hybrid.sites import LayerSites

ATTENTION = "autopeft_last_layer"
_OWNER = "autopeft_last_layer"

Reads = Literal["first", "last"]
"""Which token of a row the head reads: its first, or its last before padding."""


class _KeysSeenError(Exception):
    """Keys and values are there: the rest of the layer is of no use."""


class LastLayer:
    """Stands in for `forward` of a model's last layer while it is installed."""

    def __init__(
        self,
        model: nn.Module,
        sites: LayerSites,
        reads: Reads,
        present: Callable[[Tensor], Tensor] = lambda of_all: of_all,
    ) -> None:
        assert sites.attention is not None
        self._model = model
        self._sites = sites
        self._reads = reads
        self._runs: Literal["keys", "query", ""] = ""
        self._keys_values: tuple[Tensor, Tensor] | None = None
        self._config: Any = None
        self._last_of_all: Tensor | None = None
        self._present = present
        """Of a tensor for all rows of the batch, the rows that are computed now."""
        self._needs_keys: Callable[[], bool] = lambda: True
        self.skipped: nn.Module | None = None
        """The linear map that was left out last."""

    def at(self, batch: Batch) -> None:
        """Make ready for a forward pass of this batch."""
        self._last_of_all = batch.attention_mask.sum(1) - 1 if self._reads == "last" else None

    @property
    def _last(self) -> Tensor | None:
        return None if self._last_of_all is None else self._present(self._last_of_all)

    @property
    def name(self) -> str:
        """The layer's."""
        return self._sites.name

    @contextmanager
    def installed(
        self, *stand_ins: Sequence[StandIn], members: Callable[[], Sequence[int]] = lambda: (0,)
    ) -> Iterator[None]:
        """Within it, the layer computes one token. `stand_ins` are those that are installed already, of each adapter;
        `members` tells which of them are present."""

        def computing(path: str | None) -> set[int]:
            return {k for k, own in enumerate(stand_ins or ((),)) if not any(is_in(path, one.path) for one in own)}

        if not computing(name := self._sites.name):
            yield  # the whole layer is stood in for
            return
        attending = computing(self._sites.attention)
        self._needs_keys = lambda: not attending.isdisjoint(members())
        layer = self._model.get_submodule(name)
        forwards = [(layer, self._layer_forward(layer))]
        with ExitStack() as stack:
            if attending:
                forwards += list(self._projections())
                stack.enter_context(self._attention())
            stack.enter_context(replaced(forwards))
            yield

    @contextmanager
    def _attention(self) -> Iterator[None]:
        attention: Any = self._model.get_submodule(self._sites.attention or "")
        self._config = attention.config
        AttentionInterface.register(ATTENTION, _attention)
        attention.__dict__[_OWNER] = self
        attention.config = copy.copy(attention.config)
        object.__setattr__(attention.config, "_attn_implementation_internal", ATTENTION)
        try:
            yield
        finally:
            attention.config = self._config
            del attention.__dict__[_OWNER]

    def _projections(self) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
        for role, runs in (("attn.q", "keys"), ("attn.k", "query"), ("attn.v", "query")):
            if role in self._sites.linears:
                linear = self._model.get_submodule(self._sites.linears[role])
                yield linear, self._without(linear, next(s for s in self._sites.layer.sites if s.role == role), runs)

    def _without(self, linear: nn.Module, site: Any, runs: str) -> Callable[..., Any]:
        original = linear.forward

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._runs == runs:
                self.skipped = linear
                return x.new_zeros(()).expand(*x.shape[:-1], site.out_features)
            self.skipped = None
            return original(x, *args, **kwargs)

        return forward

    def _layer_forward(self, layer: nn.Module) -> Callable[..., Any]:
        original = layer.forward
        names = [name for name in inspect.signature(type(layer).forward).parameters if name != "self"]

        def forward(*args: Any, **kwargs: Any) -> Any:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            if "past_key_values" in given:  # a cache would take the keys of both runs
                given["past_key_values"] = None
            B, T = given[names[0]].shape[:2]
            try:
                if self._needs_keys():
                    self._runs = "keys"
                    with suppress(_KeysSeenError):
                        original(**given)
                    if self._keys_values is None:
                        raise RuntimeError("the last layer does not call the attention function")
                self._runs = "query"
                output = original(**{name: self._only(name, value, B, T) for name, value in given.items()})
            finally:
                self._runs, self._keys_values = "", None
            if isinstance(output, tuple):
                return (self._back(output[0], T), *output[1:])
            return self._back(output, T)

        return forward

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        """The attention function: keeps keys and values in the first run, takes them in the second."""
        if self._runs == "keys":
            self._keys_values = key, value
            raise _KeysSeenError
        assert self._keys_values is not None
        last = self._last
        if mask is None and last is not None and is_causal(module, kwargs):
            mask = _up_to(last, query, self._keys_values[0].shape[2])
        function = attention_function(module, self._config._attn_implementation or "eager")
        return function(module, query, *self._keys_values, mask, **kwargs)

    def _only(self, name: str, value: Any, B: int, T: int) -> Any:
        """What a layer gets, for the read token alone."""
        if isinstance(value, tuple):
            return tuple(self._only(name, one, B, T) for one in value)
        if not isinstance(value, Tensor) or value.dim() < 2 or "encoder_hidden" in name:
            return value
        at = value.dim() - 2 if value.dim() == 4 else 1  # (B, heads, queries, keys), else (B, T, ...)
        if value.shape[at] != T or (value.dim() == 2 and "mask" in name):
            return value
        if (last := self._last) is None:
            return value.narrow(at, 0, 1)
        value = value.expand(B, *value.shape[1:])
        index = last.view(B, *(1,) * (value.dim() - 1))
        return value.gather(at, index.expand(*value.shape[:at], 1, *value.shape[at + 1 :]))

    def _back(self, output: Tensor, T: int) -> Tensor:
        """`(B, 1, H)` among zeros `(B, T, H)`."""
        if (last := self._last) is None:
            return nn.functional.pad(output, (0, 0, 0, T - 1))
        B, _, H = output.shape
        return output.new_zeros(B, T, H).scatter(1, last.view(B, 1, 1).expand(B, 1, H), output)


def token_read(
    model: nn.Module, layer: str, forward: Callable[[Batch], Tensor], batches: Sequence[Batch]
) -> Reads | None:
    """Which token of the last layer's output reaches the result, found by gradients; None where it is another one."""
    found: set[Reads | None] = set()
    for batch in batches:
        leaves: list[Tensor] = []

        def cut(module: nn.Module, args: Any, output: Any, leaves: list[Tensor] = leaves) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            leaves.append(first.detach().requires_grad_())
            return (leaves[-1], *output[1:]) if isinstance(output, tuple) else leaves[-1]

        handle = model.get_submodule(layer).register_forward_hook(cut)
        try:
            with torch.enable_grad():
                results = forward(batch)
                weights = torch.linspace(0.5, 1.5, results.numel(), device=results.device).view_as(results)
                (gradient,) = torch.autograd.grad((results * weights).sum(), leaves, allow_unused=True)
        finally:
            handle.remove()
        found.add(_which(gradient, batch))
    return found.pop() if len(found) == 1 else None


def _which(gradient: Tensor | None, batch: Batch) -> Reads | None:
    if gradient is None or gradient.shape[:2] != batch.input_ids.shape or gradient.shape[1] < 2:
        return None
    is_read = (gradient != 0).any(-1)  # (B, T)
    place = torch.arange(is_read.shape[1], device=is_read.device)
    candidates: Mapping[Reads, Tensor] = {"first": place == 0, "last": place == batch.attention_mask.sum(1, True) - 1}
    return next((name for name, expected in candidates.items() if bool((is_read == expected).all())), None)


def _up_to(last: Tensor, query: Tensor, T: int) -> Tensor:
    """The mask that a causal layer left to its attention function, for the read token: `(B, 1, 1, T)`."""
    is_later = torch.arange(T, device=query.device) > last.view(-1, 1, 1, 1)
    return query.new_zeros(is_later.shape).masked_fill_(is_later, torch.finfo(query.dtype).min)


def is_in(path: str | None, outer: str) -> bool:
    """Whether the module `path` is `outer`, or a part of it."""
    return path is not None and f"{path}.".startswith(f"{outer}.")


def _attention(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return module.__dict__[_OWNER].attend(module, *args, **kwargs)
