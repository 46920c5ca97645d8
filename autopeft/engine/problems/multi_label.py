"""Any number of classes for a text or a pair of texts, none included."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np

from autopeft.engine.columns import LABELS, find_columns, has_lists
from autopeft.engine.label_lists import number_lists
from autopeft.engine.problem_names import ProblemName
from autopeft.engine.problems.base import Rows, RowsAlike
from autopeft.engine.reading import read_texts, without_unlabelled_test
from autopeft.engine.recipe import TaskSpec
from autopeft.engine.splits import Split
from autopeft.engine.tables import Table

if TYPE_CHECKING:
    from torch import Tensor

    from autopeft.engine.batches import TokenisedSplit

__all__ = ["MultiLabel"]

NAMES = (*LABELS, "tags", "categories", "topics", "emotions", "genres")


@final
@dataclass(frozen=True)
class MultiLabel(RowsAlike):
    """Binary cross-entropy, the mean over classes; those with a probability over one half are predicted."""

    label_names: tuple[str, ...] = ()

    name: ClassVar[ProblemName] = "multi_label"
    auto: ClassVar[str] = "AutoModelForSequenceClassification"
    task_type: ClassVar[str | None] = "SEQ_CLS"
    has_head: ClassVar[bool] = True
    has_classes: ClassVar[bool] = False
    reads_one_token: ClassVar[bool] = True
    reads_images: ClassVar[bool] = False

    @property
    def n_outputs(self) -> int:
        return len(self.label_names)

    def configure(self, config: Any) -> None:
        config.num_labels = self.n_outputs
        config.problem_type = "multi_label_classification"

    def recognises(self, table: Table, task: TaskSpec) -> bool:
        """A label that is a list beside a text that is none."""
        names = [task.label] if task.label is not None else [c for c in table.columns if c.lower() in NAMES]
        words = [column for column in table.columns if has_lists(table, column) and column not in names]
        return len(names) == 1 and has_lists(table, names[0]) and not words

    def read_rows(self, tables: Mapping[str, Table], task: TaskSpec, notes: list[str]) -> Rows:
        columns = find_columns(tables["train"].columns, task, tables["train"].name, NAMES)
        tables = without_unlabelled_test(tables, columns.label, notes)
        texts = {split: read_texts(table, columns.text, notes) for split, table in tables.items()}
        labels, numbered = number_lists(tables, columns.label, may_be_empty=True)
        notes.extend(numbered.notes)
        return Rows(
            columns,
            {split: Split(texts[split], tuple(tuple(sorted(set(row))) for row in labels[split])) for split in tables},
            numbered.names,
        )

    def describe(self) -> str:
        return f"{len(self.label_names)} classes, any number a row"

    def label_text(self, label: Any) -> str:
        return ", ".join(self.label_names[one] for one in label) or "none"

    def encode(self, split: Split, tokenizer: Any, max_length: int, config: Any) -> "TokenisedSplit":
        import torch

        from autopeft.engine.batches import tokenise

        labels = torch.zeros(len(split), self.n_outputs)
        for row, classes in enumerate(split.labels):
            labels[row, list(classes)] = 1
        return tokenise(split.texts, labels, tokenizer, max_length)

    def losses(self, outputs: "Tensor", labels: "Tensor") -> "Tensor":
        from torch.nn import functional

        return functional.binary_cross_entropy_with_logits(outputs, labels, reduction="none").mean(-1)

    def predictions(self, outputs: "Tensor", labels: "Tensor") -> Sequence[Any]:
        return list((outputs > 0).cpu().numpy())

    def compared(self, predicted: Sequence[Any], split: "TokenisedSplit") -> tuple[Any, Any]:
        return np.stack(predicted).astype(np.int64), split.labels.numpy().astype(np.int64)
