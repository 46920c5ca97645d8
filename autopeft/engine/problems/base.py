"""What a problem is to the rest: how its rows are read and encoded, what its loss is, and what a model predicts.

The loop that trains, the reuse of the frozen part, metrics and intervals know no problem but through this protocol.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from autopeft.engine.columns import Columns
from autopeft.engine.problem_names import ProblemName
from autopeft.engine.recipe import TaskSpec
from autopeft.engine.splits import Split
from autopeft.engine.tables import Table

if TYPE_CHECKING:
    from torch import Tensor

    from autopeft.engine.batches import Batch, TokenisedSplit

__all__ = ["Problem", "Rows", "RowsAlike"]


@dataclass(frozen=True, slots=True)
class Rows:
    """A data set as one problem reads it."""

    columns: Columns
    splits: Mapping[str, Split]
    """Those that the data set has: `train`, perhaps `validation` and `test`."""
    label_names: tuple[str, ...]
    """Of the classes 0 … n-1; empty where there are none."""


class Problem(Protocol):
    """One kind of task, made for the label names of one data set.

    Nothing here imports torch before a method needs it. What a loss or a prediction is made from is `outputs`, what
    `read` gave, and `labels`, those of the same batch: pure functions, so that a batch may be cut into smaller ones,
    or hold the rows of several configurations.
    """

    name: ClassVar[ProblemName]
    auto: ClassVar[str]
    """The class of transformers that makes its models."""
    task_type: ClassVar[str | None]
    """PEFT's name for it; None where PEFT has none."""
    has_head: ClassVar[bool]
    """Whether what stands after the base model is drawn anew for each trial and trained with the adapters."""
    has_classes: ClassVar[bool]
    """Whether a label is one class: then splits are cut in the same proportion of all of them."""
    reads_one_token: ClassVar[bool]
    """Whether the head may read one token only; then the last layer is computed for that one alone, if it does."""

    reads_images: ClassVar[bool]
    """Whether rows are images: then `encode` gets an `ImageReader` where others get a tokeniser."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Of the classes 0 … n-1."""
        ...

    @property
    def n_outputs(self) -> int:
        """Width of the head."""
        ...

    def configure(self, config: Any) -> None:
        """Tell a model's config, before the model is made, what its head is for."""
        ...

    def recognises(self, table: Table, task: TaskSpec) -> bool:
        """Whether the columns of the split `train` can mean this problem only."""
        ...

    def read_rows(self, tables: Mapping[str, Table], task: TaskSpec, notes: list[str]) -> Rows:
        """The rows of all tables; what is doubtful goes to `notes`.

        Raises:
            DataError: they are not of this problem, or cannot be learned from.
        """
        ...

    def describe(self) -> str:
        """`10 classes`, for the user."""
        ...

    def label_text(self, label: Any) -> str:
        """A label of a `Split` as the user knows it."""
        ...

    def encode(self, split: Split, tokenizer: Any, max_length: int, config: Any) -> "TokenisedSplit":
        """The rows as the model of this config reads them, at most `max_length` tokens each.

        Raises:
            ModelError: the model or its tokeniser cannot do it.
        """
        ...

    def inputs(self, batch: "Batch") -> dict[str, "Tensor"]:
        """The keyword arguments of the model's `forward`, without labels."""
        ...

    def read(self, logits: "Tensor", batch: "Batch") -> "Tensor":
        """What counts of the model's logits `(B, ...)`: what stands at padding is the same in every run, 0."""
        ...

    def weights(self, labels: "Tensor") -> "Tensor":
        """How many losses each row has, `(B,)`: 1, or its number of labelled tokens."""
        ...

    def losses(self, outputs: "Tensor", labels: "Tensor") -> "Tensor":
        """The sum of each row's losses, `(B,)`; a batch's loss is their sum over that of the weights."""
        ...

    def predictions(self, outputs: "Tensor", labels: "Tensor") -> Sequence[Any]:
        """What the model says of each row, `B` of them, as `compared` takes them."""
        ...

    def prompts(self, split: "TokenisedSplit") -> list["Tensor"]:
        """Of problems with metrics that read made texts: the token ids that each row's text is made from."""
        ...

    def compared(self, predicted: Sequence[Any], split: "TokenisedSplit") -> tuple[Any, Any]:
        """Predictions of all rows of a split and what is true of them, as its metrics take them."""
        ...


class RowsAlike:
    """What most problems have in common: a model's usual inputs, all of its logits, one loss a row, no made texts."""

    def inputs(self, batch: "Batch") -> dict[str, "Tensor"]:
        return batch.model_inputs()

    def read(self, logits: "Tensor", batch: "Batch") -> "Tensor":
        return logits

    def weights(self, labels: "Tensor") -> "Tensor":
        return labels.new_ones(len(labels))

    def prompts(self, split: "TokenisedSplit") -> list["Tensor"]:
        return []
