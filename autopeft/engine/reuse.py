"""Lets a trial begin where its adapters begin: what the frozen part below them gives is computed once for all trials.

Which part that is depends on the architecture and the bound of the cache alone, and the values are computed in batches
of their own, in an order of their own. So a trial gives the same numbers whether they were there already or not, and in
whichever worker it runs.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from autopeft.engine.activation_cache import ActivationCache, Kept, write
from autopeft.engine.batches import Batch, TokenisedSplit, evaluation_batches
from autopeft.engine.frozen_part import captured, find_frozen
from autopeft.engine.stand_ins import Feed, StandIn, installed
from autopeft.hybrid.sites import find_sites
from autopeft.space.architecture import Architecture

FILL_ROWS = 32
"""Rows at a time where the cache is filled: fixed, since the last bits of the values depend on it."""

Forward = Callable[[Batch], Tensor]
Plan = tuple[StandIn, ...]


class FrozenPartReuse:
    """For the trials of one worker on one model; `splits` are those that each trial reads."""

    def __init__(
        self,
        model: Any,
        splits: Mapping[str, TokenisedSplit],
        capacity: int,
        device: torch.device,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._model = model
        self._splits = splits
        self._device = device
        self._cache = ActivationCache(splits, capacity, device, dtype)
        self._layers = frozenset(sites.name for sites in find_sites(model).layers.values())
        self._plans: dict[Any, tuple[Plan, ...]] = {}
        self._is_on = capacity > 0
        self._log = logging.getLogger(__name__)

    @contextmanager
    def shortened(self, architecture: Architecture, forward: Forward) -> Iterator[Callable[[str, Batch], Tensor]]:
        """Within it, the adapted model starts at what `architecture` adapts first, where that can be; `forward` runs
        it. Gives the function that takes the place of `forward`, for batches of the named split.
        """
        plan = self._plan(architecture, forward) if self._is_on else ()
        kept = [kept for one in plan for kept in one.kept]
        self._fill(plan, kept, forward)
        feed = Feed()

        def run(split: str, batch: Batch) -> Tensor:
            batch = batch.to(self._device)
            feed.size = (batch.input_ids.shape[0], batch.input_ids.shape[1])
            feed.values = {one.key: self._cache.read(one, split, batch) for one in kept}
            return forward(batch)

        with installed(self._model, plan, feed) if plan else nullcontext():
            yield run

    def _plan(self, architecture: Architecture, forward: Forward) -> Plan:
        """The first of the ways to cut the model that fits into the cache."""
        signature = tuple((p.stack, p.layer, p.role, p.module, p.options) for p in architecture.placements)
        if signature not in self._plans:
            with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
                self._plans[signature] = self._find_plans(forward)
        fitting = (plan for plan in self._plans[signature] if self._cache.fits(k for one in plan for k in one.kept))
        return next(fitting, ())

    def _find_plans(self, forward: Forward) -> tuple[Plan, ...]:
        batches = _examples(self._splits["train"], self._device)
        plans = []
        for whole_layers in (False, True):
            try:
                plan = find_frozen(self._model, forward, batches, self._layers, whole_layers=whole_layers)
            except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
                self._log.warning("the frozen part cannot be cut off: %s", str(error).partition("\n")[0])
                plan = None
            if plan is None:
                self._log.warning("the frozen part cannot be reused exactly; every step computes it")
            if plan:
                plans.append(plan)
        return tuple(plans)

    def _fill(self, plan: Plan, kept: Sequence[Kept], forward: Forward) -> None:
        missing = self._cache.missing(kept)
        if not missing:
            return
        self._cache.make_room(kept)
        wanted = {one.path: [k for k in one.kept if k in missing] for one in plan}
        entries = {one: self._cache.empty(one) for one in missing}
        with captured(self._model, {path: kepts for path, kepts in wanted.items() if kepts}) as run, torch.no_grad():
            for name, split in self._splits.items():
                for batch in evaluation_batches(split, FILL_ROWS):
                    moved = batch.to(self._device)
                    values = run(partial(forward, moved))
                    for one in missing:
                        write(entries[one][name], one, moved, values[one.key])
        for one, entry in entries.items():
            self._cache.put(one, entry)


def _examples(split: TokenisedSplit, device: torch.device) -> tuple[Batch, Batch]:
    """Two small batches, of different lengths where there are any."""
    order = split.lengths.argsort(stable=True)
    n = len(order)
    first, second = (order[[min(n - 1, int(share * n)) for share in shares]] for shares in ((0, 0.3, 0.5), (0.1, 0.8)))
    return split.batch(first).to(device), split.batch(second).to(device)
