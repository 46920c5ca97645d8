"""How a trial's training asks for what others compute, so that many can share a forward pass.

A trial is a generator: it says which batch it wants to learn from, or that it wants to be scored, and goes on when that
is done. Alone it is served by `alone`; with others by `autopeft.engine.packing`.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from torch import Tensor

from autopeft.engine.batches import Batch

R = TypeVar("R")

LossOf = Callable[[Tensor], tuple[Tensor, ...]]
"""The loss of the outputs for a batch, and what else is worth knowing."""


@dataclass(frozen=True)
class Learn:
    """Run the model on a batch of the train split and add the gradients of its loss to those of what trains; the
    answer is what `loss_of` gave, detached."""

    batch: Batch
    loss_of: LossOf


@dataclass(frozen=True)
class Score:
    """Run the model on a split, without dropout; the answer is what can do it."""

    split: str


@dataclass(frozen=True)
class Scored:
    """An adapted model that is to be scored."""

    forward: Callable[[Batch], Tensor]
    """Runs it on a batch of the split."""
    whole: Callable[[], AbstractContextManager[Any]]
    """A context in which there is the model itself, without anything that stands in for its parts."""


Wanted = Learn | Score
Answer = tuple[Tensor, ...] | Scored | None
Fitting = Generator[Wanted, Answer, R]
"""A training under way; its value is how it ended."""


def learned(batch: Batch, loss_of: LossOf) -> Generator[Wanted, Answer, tuple[Tensor, ...]]:
    """`yield from` it: what `loss_of` gave for the batch."""
    answer = yield Learn(batch, loss_of)
    assert isinstance(answer, tuple)
    return answer


def scored(split: str) -> Generator[Wanted, Answer, Scored]:
    """`yield from` it: the model, to be scored on the split."""
    answer = yield Score(split)
    assert isinstance(answer, Scored)
    return answer


class Shortened(Protocol):
    """Runs an adapted model on a batch of the named split, with what stands in for its frozen part."""

    def __call__(self, split: str, batch: Batch) -> Tensor: ...

    def whole(self) -> AbstractContextManager[None]:
        """A context without stand-ins."""
        ...


def alone(fitting: Fitting[R], forward: Shortened, adapted: Any, let_drop: Callable[[bool], None]) -> R:
    """Carry the training of `adapted` through; `let_drop` switches the dropout of adapters on and off.

    Raises:
        Exception: whatever the training does not handle; what a pass raises is raised within it.
    """
    answer: Answer = None
    drops = False
    go_on: Callable[[], Wanted] = partial(next, fitting)
    while True:
        try:
            wanted = go_on()
        except StopIteration as end:
            return end.value
        if drops != isinstance(wanted, Learn):
            let_drop(drops := not drops)
        try:
            if isinstance(wanted, Learn):
                told = wanted.loss_of(forward("train", wanted.batch))
                told[0].backward()
                answer = tuple(one.detach() for one in told)
            else:
                answer = Scored(partial(forward, wanted.split), partial(_whole, forward, adapted))
        except Exception as error:
            go_on = partial(fitting.throw, error)
        else:
            go_on = partial(fitting.send, answer)


@contextmanager
def _whole(forward: Shortened, adapted: Any) -> Iterator[Any]:
    with forward.whole():
        yield adapted
