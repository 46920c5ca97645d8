"""Several adapters in one forward pass, each with its own rows and each from where it begins.

A member takes part from its first adapted operation on: below, its rows are left out, and come in from the cache where
`autopeft.engine.reuse` cut the model for it. The members' batches are padded to the longest; masks keep that out of
the results. See `autopeft.hybrid.packed` for what adapters do.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree

from autopeft.engine.activation_cache import Kept
from autopeft.engine.batches import IGNORED, Batch, TokenisedSplit
from autopeft.engine.last_layer import LastLayer, is_in
from autopeft.engine.stand_ins import Feed, StandIn, replaced
from autopeft.hybrid.detached import DetachedAdapter
from autopeft.hybrid.packed import Forward, Pack
from autopeft.hybrid.rows import Rows

BASE = ".base_layer"

Read = Callable[[Kept, str, Batch], Tensor]
"""What is kept of a batch of the named split."""


class PackedModel:
    """A model with several adapters in it; `installed` while it runs.

    `forward` runs the model on a batch, `stand_ins` are each member's, and `read` gives what they hand over.

    Raises:
        ModelError: these adapters cannot run together.
    """

    def __init__(
        self,
        model: nn.Module,
        members: Sequence[DetachedAdapter],
        stand_ins: Sequence[Sequence[StandIn]],
        forward: Callable[[Batch], Tensor],
        read: Read,
        last: Callable[[Callable[[Tensor], Tensor]], LastLayer | None] = lambda present: None,
    ) -> None:
        self._model = model
        self._device = next(model.parameters()).device
        self._pack = Pack(model, members)
        self._stand_ins = stand_ins
        self._forward = forward
        self._read = read
        rows = self._pack.rows
        self._last = last(lambda of_all: rows.narrow(of_all, rows.present, tuple(rows.sizes)))
        self._feeds = [Feed() for _ in members]
        self._routes: dict[str, dict[int, StandIn]] = {}
        for k, own in enumerate(stand_ins):
            for one in own:
                self._routes.setdefault(one.path, {})[k] = one

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within it, the model can `run`."""
        paths = dict.fromkeys((*self._pack.paths, *(path.removesuffix(BASE) for path in self._routes)))
        around = [path for path in paths if self._last is not None and is_in(self._last.name, path)]
        with ExitStack() as stack:
            stack.enter_context(replaced(self._at(path) for path in paths if path not in around))
            stack.enter_context(self._pack.hooked())
            if self._last is not None:
                stack.enter_context(self._last.installed(*self._stand_ins, members=lambda: self._pack.rows.present))
            stack.enter_context(replaced(self._at(path) for path in around))
            yield

    def run(
        self, name: str, split: TokenisedSplit, batches: Mapping[int, Batch], *, training: bool = False
    ) -> list[Tensor]:
        """The results of each member's batch of the split of this name, in the order of `batches`."""
        padded = [batch.to(self._device) for batch in _padded(list(batches.values()), split)]
        sizes = {member: len(batch.input_ids) for member, batch in zip(batches, padded, strict=True)}
        known: dict[tuple[Kept, int], Tensor] = {}
        for member, batch in zip(batches, padded, strict=True):
            values = {}
            for kept in (kept for one in self._stand_ins[member] for kept in one.kept):
                if (kept, id(batch.rows)) not in known:
                    known[kept, id(batch.rows)] = self._read(kept, name, batch)
                values[kept.key] = known[kept, id(batch.rows)]
            feed = self._feeds[member]
            feed.size, feed.values = (batch.input_ids.shape[0], batch.input_ids.shape[1]), values
        everything = _concatenated(padded)
        self._pack.rows.begin(sizes)
        self._pack.training = training
        if self._last is not None:
            self._last.at(everything)
        together = self._forward(everything).split([len(batch.rows) for batch in padded])
        T = everything.input_ids.shape[1]
        return [
            _shorter(outputs, T, batch.input_ids.shape[1])
            for outputs, batch in zip(together, batches.values(), strict=True)
        ]

    def hand_out_gradients(self, members: Sequence[int]) -> None:
        """Give these members' parameters their gradients, after the backward pass."""
        self._pack.hand_out_gradients(members)

    def _at(self, path: str) -> tuple[nn.Module, Forward]:
        module = self._model.get_submodule(path)
        forward: Forward = module.forward
        if base := self._routes.get(path + BASE):
            forward = routed(forward, base, self._feeds, self._pack.rows)
        forward = self._pack.forwards(path, forward)
        if whole := self._routes.get(path):
            forward = routed(forward, whole, self._feeds, self._pack.rows)
        return module, forward


def routed(forward: Forward, stand_ins: Mapping[int, StandIn], feeds: Sequence[Feed], rows: Rows) -> Forward:
    """`forward` for the rows of the members that compute this module; for the others, what stands in for it."""

    def run(*args: Any, **kwargs: Any) -> Any:
        present = rows.present
        standing = [member for member in present if member in stand_ins]
        if not standing:
            return forward(*args, **kwargs)
        inputs = _pytree.tree_leaves((args, kwargs))
        active = tuple(member for member in present if member not in stand_ins)
        computed: list[Any] = []
        structure = stand_ins[standing[0]].structure
        if active:
            own_args, own_kwargs = rows.narrowed((args, kwargs), active)
            with rows.only(active):
                computed, structure = _pytree.tree_flatten(forward(*own_args, **own_kwargs))
        n_leaves = len(stand_ins[standing[0]].leaves)
        outputs = [_merged(i, computed, inputs) for i in range(n_leaves)]
        is_plain = not isinstance(structure, _pytree.TreeSpec) or structure.is_leaf()
        return outputs[0] if is_plain else _pytree.tree_unflatten(outputs, structure)

    def _merged(i: int, computed: list[Any], inputs: list[Any]) -> Any:
        present = rows.present
        leaves = {member: stand_ins[member].leaves[i] for member in present if member in stand_ins}
        passed = {leaf.argument for leaf in leaves.values() if leaf.source == "passed"}
        if passed and all(leaf.source == "passed" for leaf in leaves.values()) and len(passed) == 1:
            return inputs[passed.pop()]
        if computed and not isinstance(computed[i], Tensor):
            return computed[i]
        active = [member for member in present if member not in leaves]
        pieces = []
        for member in present:
            if member in leaves:
                given = rows.narrowed(inputs, (member,)) if leaves[member].source == "passed" else inputs
                pieces.append(feeds[member].output(leaves[member], given))
            else:
                pieces.append(rows.narrow(computed[i], (member,), active))
        if not isinstance(pieces[0], Tensor) or len(pieces) == 1:
            return pieces[0]
        if not computed and all(leaf.source == "blank" for leaf in leaves.values()):
            return pieces[0][:1].expand(rows.n, *pieces[0].shape[1:])
        return torch.cat(pieces)

    return run


def _padded(batches: Sequence[Batch], split: TokenisedSplit) -> list[Batch]:
    """The batches, all as long as the longest; one that stands there twice stays one."""
    T = max(batch.input_ids.shape[1] for batch in batches)
    made: dict[int, Batch] = {}
    for batch in batches:
        if id(batch) not in made:
            made[id(batch)] = batch if batch.input_ids.shape[1] == T else _longer(batch, T, split)
    return [made[id(batch)] for batch in batches]


def _longer(batch: Batch, T: int, split: TokenisedSplit) -> Batch:
    more = (0, T - batch.input_ids.shape[1])
    types = batch.token_type_ids
    return replace(
        batch,
        input_ids=functional.pad(batch.input_ids, more, value=split.pad_id),
        attention_mask=functional.pad(batch.attention_mask, more),
        token_type_ids=None if types is None else functional.pad(types, more),
        labels=batch.labels if split.label_starts is None else functional.pad(batch.labels, more, value=IGNORED),
        places=functional.pad(batch.places, more, value=len(split.tokens)),
    )


def _concatenated(batches: Sequence[Batch]) -> Batch:
    first = batches[0]
    if len(batches) == 1:
        return first
    types = [batch.token_type_ids for batch in batches if batch.token_type_ids is not None]
    return replace(
        first,
        rows=torch.cat([batch.rows for batch in batches]),
        sequences=torch.cat([batch.sequences for batch in batches]),
        input_ids=torch.cat([batch.input_ids for batch in batches]),
        attention_mask=torch.cat([batch.attention_mask for batch in batches]),
        token_type_ids=torch.cat(types) if types else None,
        labels=torch.cat([batch.labels for batch in batches]),
        places=torch.cat([batch.places for batch in batches]),
    )


def _shorter(outputs: Tensor, T: int, own: int) -> Tensor:
    """Outputs for each of `T` tokens without those that a member's batch does not have."""
    return outputs[:, :own] if outputs.dim() > 2 and outputs.shape[1] == T else outputs
