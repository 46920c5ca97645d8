"""Several adapters in one forward pass, each with its own rows and each from where it begins.

A member takes part from its first adapted operation on: below, its rows are left out, and come in from the cache where
`autopeft.engine.reuse` cut the model for it. The members' batches are padded to the longest; masks keep that out of
the results. See `autopeft.hybrid.packed` for what adapters do.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree

from autopeft.engine.activation_cache import Kept
from autopeft.engine.batches import IGNORED, Batch, TokenisedSplit
from autopeft.engine.frozen_part import sizes as batch_sizes
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
            feed.sizes, feed.values = batch_sizes(batch), values
        everything = _concatenated(padded)
        self._pack.begin(sizes, training)
        if self._last is not None:
            self._last.at(everything)
        together = self._forward(everything).split([len(batch.rows) for batch in padded])
        own = batches.values()
        return [_shorter(*one) for one in zip(together, padded, own, strict=True)]

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
    n_labels = max(_n_labels(batch, split) for batch in batches)
    made: dict[int, Batch] = {}
    for batch in batches:
        if id(batch) not in made:
            made[id(batch)] = _longer(batch, T, n_labels, split)
    return [made[id(batch)] for batch in batches]


def _n_labels(batch: Batch, split: TokenisedSplit) -> int:
    """Of each row, where rows have a list of them."""
    return 0 if split.label_starts is None else batch.labels.shape[1]


def _longer(batch: Batch, T: int, n_labels: int, split: TokenisedSplit) -> Batch:
    def padded(value: Tensor | None, n: int, fill: int = 0) -> Tensor | None:
        return None if value is None else functional.pad(value, (0, n - value.shape[1]), value=fill)

    changes: dict[str, Any] = {
        "input_ids": padded(batch.input_ids, T, split.pad_id),
        "attention_mask": padded(batch.attention_mask, T),
        "token_type_ids": padded(batch.token_type_ids, T),
        "places": padded(batch.places, T, len(split.tokens)),
    }
    if n_labels:
        changes["labels"] = padded(batch.labels, n_labels, IGNORED)
        changes["decoder_input_ids"] = padded(batch.decoder_input_ids, n_labels, split.pad_id)
        changes["target_places"] = padded(batch.target_places, n_labels, len(split.labels))
    return replace(batch, **changes)


def _concatenated(batches: Sequence[Batch]) -> Batch:
    first = batches[0]
    if len(batches) == 1:
        return first
    values: dict[str, list[Any]] = {f.name: [getattr(batch, f.name) for batch in batches] for f in fields(Batch)}
    joined: dict[str, Any] = {name: None if found[0] is None else torch.cat(found) for name, found in values.items()}
    return Batch(**joined)


def _shorter(outputs: Tensor, padded: Batch, batch: Batch) -> Tensor:
    """Outputs for each token without those that a member's batch does not have."""
    name = "input_ids" if batch.decoder_input_ids is None else "decoder_input_ids"
    T, own = getattr(padded, name).shape[1], getattr(batch, name).shape[1]
    return outputs[:, :own] if outputs.dim() > 2 and outputs.shape[1] == T else outputs
