"""Lets a trial begin where its adapters begin: what the frozen part below them gives is computed once for all trials.

Which part that is depends on the architecture and the bound of the cache alone, and the values are computed in batches
of their own, in an order of their own. So a trial gives the same numbers whether they were there already or not, and in
whichever worker it runs.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from autopeft.engine.activation_cache import ActivationCache, Kept, write
from autopeft.engine.activation_stores import Entry, FileStore, MemoryStore
from autopeft.engine.batches import Batch, TokenisedSplit, evaluation_batches
from autopeft.engine.frozen_part import are_close, captured, find_frozen, shortened, sizes, with_gradients
from autopeft.engine.last_layer import LastLayer, Reads, is_in, token_read
from autopeft.engine.stand_ins import Feed, StandIn
from autopeft.hybrid.sites import find_sites
from autopeft.space.architecture import Architecture
from autopeft.space.site_map import NO_SITE_MAP, SiteMap

T = TypeVar("T")

FILL_ROWS = 32
"""Rows at a time where the cache is filled: fixed, since the last bits of the values depend on it."""

Forward = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class CacheMemory:
    """How much of what memory activations may take."""

    n_bytes: int = 2 * 10**9
    """For each worker; 0: nothing is kept."""
    n_workers: int = 1
    folder: Path | None = None
    """Of the files that these workers share; None: each has its own memory."""
    half: bool = False
    """Store 16 bits a number: twice as much fits, and results are as in the fourth digit."""
    n_trials: int = 1
    """Of one worker at the same time, which share what it has."""

    @property
    def text(self) -> str:
        """For people."""
        if not self.n_bytes:
            return "off"
        where = "" if self.folder is None else " in files that workers share"
        return f"{self.n_bytes / 10**9:.1f} GB a worker{where}, {'float16' if self.half else 'as computed'}"

    def cache(self, splits: Mapping[str, TokenisedSplit], device: torch.device) -> ActivationCache:
        """An empty cache, on a GPU in its own memory: at most a quarter of it."""
        dtype, share = torch.float16 if self.half else None, self.n_bytes // self.n_trials
        if device.type == "cuda":
            n = min(self.n_bytes, torch.cuda.get_device_properties(device).total_memory // 4)
            return ActivationCache(splits, MemoryStore(device), n // self.n_trials, n, dtype)
        if self.folder is None or not self.n_bytes:
            return ActivationCache(splits, MemoryStore(device), share, self.n_bytes, dtype)
        return ActivationCache(splits, FileStore(self.folder), share, self.n_bytes * self.n_workers, dtype)


DEFAULT_CACHE = CacheMemory()


@dataclass(frozen=True)
class Plan:
    """How the forward pass of an architecture is made shorter."""

    stand_ins: tuple[StandIn, ...] = ()
    reads: Reads | None = None
    """The token for which alone the last layer is computed; None: for all."""
    n_layers: int = 0
    """Layers that compute all tokens of a batch, at least in part."""

    @property
    def kept(self) -> tuple[Kept, ...]:
        return tuple(kept for one in self.stand_ins for kept in one.kept)


@dataclass(frozen=True)
class NoReuse:
    """For models whose frozen part does not give the same again: each step computes all of it."""

    memory: str
    """Why, for people."""

    @contextmanager
    def shortened(self, architecture: Architecture, forward: Forward) -> Iterator["ShortenedModel"]:
        yield ShortenedModel(lambda split, batch: forward(batch), Plan(), ExitStack(), nullcontext)

    def plan(self, architecture: Architecture, forward: Forward) -> "Plan":
        return Plan()

    def provide(self, plan: "Plan", forward: Forward, others: Iterable[Kept] = ()) -> None:
        """Nothing is kept."""

    def read(self, kept: Kept, split: str, batch: Batch) -> Tensor:
        raise KeyError(kept)

    def last_layer(self, reads: Reads | None, present: Callable[[Tensor], Tensor]) -> LastLayer | None:
        return None


@dataclass(frozen=True)
class ShortenedModel:
    """Runs an adapted model on a batch of a named split, its frozen part stood in for."""

    run: Callable[[str, Batch], Tensor]
    plan: Plan
    parts: ExitStack
    shorten: Callable[[], AbstractContextManager[None]]

    def __call__(self, split: str, batch: Batch) -> Tensor:
        return self.run(split, batch)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within it, the model itself runs whole, on whatever it is given."""
        self.parts.close()
        try:
            yield
        finally:
            self.parts.enter_context(self.shorten())


class FrozenPartReuse:
    """For the trials of one worker on one model; `splits` are those that each trial reads.

    `may_read_one`: the head may read one token only; whether it does is found.
    """

    def __init__(
        self,
        model: Any,
        splits: Mapping[str, TokenisedSplit],
        device: torch.device,
        memory: CacheMemory,
        site_map: SiteMap = NO_SITE_MAP,
        *,
        may_read_one: bool = True,
    ) -> None:
        self._model = model
        self._may_read_one = may_read_one
        self._splits = splits
        self._device = device
        self._cache = memory.cache(splits, device)
        self.memory = memory.text
        layers = find_sites(model, site_map).layers
        stack = "decoder" if any(name == "decoder" for name, _ in layers) else "encoder"
        self._last_place, self._last = [(place, sites) for place, sites in layers.items() if place[0] == stack][-1]
        self._layers = frozenset(sites.name for sites in layers.values())
        is_half = any(parameter.dtype.itemsize < 4 for parameter in model.parameters())
        has_tf32 = device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
        self._rounding = 3e-2 if is_half or has_tf32 else 1e-5
        """How far results may be apart that come from the same sums, made of matrices of other shapes."""
        self._plans: dict[Any, Plan] = {}
        self._reads: dict[Any, Reads | None] = {}
        """By what is adapted in the last layer and makes sequences longer: whether that layer may compute one token
        alone hangs on nothing else."""
        self._log = logging.getLogger(__name__)

    @contextmanager
    def shortened(self, architecture: Architecture, forward: Forward) -> Iterator["ShortenedModel"]:
        """Within it, the adapted model starts at what `architecture` adapts first, where that can be, and ends with the
        token that the head reads. `forward` runs it on a batch; what is given does so for a batch of the named split.
        """
        plan = self.plan(architecture, forward)
        last = self.last_layer(plan.reads)
        self.provide(plan, forward)
        feed, kept = Feed(), plan.kept

        def run(split: str, batch: Batch) -> Tensor:
            batch = batch.to(self._device)
            if last is not None:
                last.at(batch)
            feed.sizes = sizes(batch)
            feed.values = {one.key: self.read(one, split, batch) for one in kept}
            return forward(batch)

        with ExitStack() as parts:
            shorten = partial(shortened, self._model, plan.stand_ins, feed, last, fuses=True)
            parts.enter_context(shorten())
            yield ShortenedModel(run, plan, parts, shorten)

    def last_layer(
        self, reads: Reads | None, present: Callable[[Tensor], Tensor] = lambda of_all: of_all
    ) -> LastLayer | None:
        """The last layer for the token that the head reads; see `LastLayer` for what is `present`."""
        return None if reads is None else LastLayer(self._model, self._last, reads, present)

    def provide(self, plan: Plan, forward: Forward, others: Iterable[Kept] = ()) -> None:
        """Make what the plan keeps ready to `read`, and what `others` keep, which must be there, too; all else not.

        The model is adapted as the plan is for, and `forward` runs it.
        """
        wanted = tuple(dict.fromkeys((*plan.kept, *others)))
        self._cache.provide(wanted, partial(self._fill, plan, self.last_layer(plan.reads), forward))

    def read(self, kept: Kept, split: str, batch: Batch) -> Tensor:
        """What is kept of the rows of a batch."""
        return self._cache.read(kept, split, batch)

    def plan(self, architecture: Architecture, forward: Forward) -> Plan:
        """The first of the ways to cut the model that fits into the cache; `forward` runs it adapted."""
        signature = tuple((p.stack, p.layer, p.role, p.module, p.options) for p in architecture.placements)
        in_last = tuple(one for one in signature if one[:2] == self._last_place or one[2] == "embeddings")
        if signature not in self._plans:
            trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
            devices = [self._device] if self._device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices), _shaken(trained):
                plans = self._find_plans(forward, trained, in_last)
                self._plans[signature] = next(plan for plan in plans if self._cache.fits(plan.kept))
        return self._plans[signature]

    def _find_plans(self, forward: Forward, trained: Sequence[nn.Parameter], in_last: Any) -> Iterator[Plan]:
        """The ways to cut the model, the one that leaves least to compute first; the last needs no cache."""
        batches = _examples(self._splits["train"], self._device)
        if self._may_read_one and in_last not in self._reads:
            read = partial(self._read, forward, batches, trained)
            self._reads[in_last] = self._tried(read, "the last layer computes all tokens")
        reads = self._reads.get(in_last)
        last = self.last_layer(reads)
        for whole_layers in (False, True) if self._cache.share else ():
            find = partial(
                find_frozen,
                self._model,
                _told(last, forward),
                batches,
                self._layers,
                whole_layers=whole_layers,
                last=last,
            )
            yield self._plan(self._tried(find, "each step computes the frozen layers") or (), reads)
        yield self._plan((), reads)

    def _plan(self, stand_ins: tuple[StandIn, ...], reads: Reads | None) -> Plan:
        computed = {layer for layer in self._layers if not any(is_in(layer, one.path) for one in stand_ins)}
        return Plan(stand_ins, reads, len(computed - {self._last.name} if reads else computed))

    def _read(self, forward: Forward, batches: Sequence[Batch], trained: Sequence[nn.Parameter]) -> Reads | None:
        """The token that the head reads, if the last layer gives the same when it computes that one alone."""
        if self._last.attention is None:
            return None
        reads = token_read(self._model, self._last.name, forward, batches)
        last = self.last_layer(reads)
        if last is None:
            return None
        for batch in batches:
            expected = with_gradients(partial(forward, batch), trained)
            with last.installed():
                found = with_gradients(partial(_told(last, forward), batch), trained)
            if not are_close(found, expected, self._rounding):
                return None
        return reads

    def _tried(self, find: Callable[[], T | None], otherwise: str) -> T | None:
        try:
            if (found := find()) is not None:
                return found
            reason = "results would differ"
        except Exception as error:  # the code of any model, run in ways that its authors did not think of
            reason = str(error).partition("\n")[0]
        self._log.warning("%s: %s", otherwise, reason)
        return None

    def _fill(self, plan: Plan, last: LastLayer | None, forward: Forward, entries: Mapping[Kept, Entry]) -> None:
        wanted = {one.path: [kept for kept in one.kept if kept in entries] for one in plan.stand_ins}
        wanted = {path: kepts for path, kepts in wanted.items() if kepts}
        with captured(self._model, wanted, last) as run, torch.no_grad():
            for name, split in self._splits.items():
                for batch in evaluation_batches(split, FILL_ROWS):
                    moved = batch.to(self._device)
                    values = run(partial(_told(last, forward), moved))
                    for kept, entry in entries.items():
                        write(entry[name], kept, moved, values[kept.key])


def _told(last: LastLayer | None, forward: Forward) -> Forward:
    """`forward` with the last layer made ready for each batch."""

    def run(batch: Batch) -> Tensor:
        if last is not None:
            last.at(batch)
        return forward(batch)

    return run


@contextmanager
def _shaken(trained: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within it, what trains is moved a little: maps that start at zero would hide what is behind them."""
    before = [parameter.detach().clone() for parameter in trained]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trained:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.02 * noise.to(parameter))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(trained, before, strict=True):
                parameter.copy_(value)


def _examples(split: TokenisedSplit, device: torch.device) -> tuple[Batch, Batch]:
    """Two small batches, of different lengths where there are any."""
    order = split.lengths.argsort(stable=True)
    n = len(order)
    first, second = (order[[min(n - 1, int(share * n)) for share in shares]] for shares in ((0, 0.3, 0.5), (0.1, 0.8)))
    return _example(split, first).to(device), _example(split, second).to(device)


def _example(split: TokenisedSplit, rows: Tensor) -> Batch:
    """A batch in which what an encoder reads and what a decoder reads are told apart by their lengths."""
    batch = split.batch(rows)
    T = batch.input_ids.shape[1]
    if batch.decoder_input_ids is not None and batch.decoder_input_ids.shape[1] == T:
        return split.batch(rows, multiple_of=T + 1)
    return batch
