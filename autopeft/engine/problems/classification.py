"""One of several classes for a text or a pair of texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np

from autopeft.engine.columns import find_columns
from autopeft.engine.labels import number_classes
from autopeft.engine.problem_names import ProblemName
from autopeft.engine.problems.base import Rows, RowsAlike
from autopeft.engine.reading import read_texts, refuse_swallowed, without_unlabelled_test
from autopeft.engine.recipe import TaskSpec
from autopeft.engine.splits import Split
from autopeft.engine.tables import Table
from autopeft.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from autopeft.engine.batches import TokenisedSplit

__all__ = ["Classification"]


@final
@dataclass(frozen=True)
class Classification(RowsAlike):
    """Cross-entropy over the classes; the prediction is the number of one."""

    label_names: tuple[str, ...] = ()

    name: ClassVar[ProblemName] = "classification"
    auto: ClassVar[str] = "AutoModelForSequenceClassification"
    task_type: ClassVar[str | None] = "SEQ_CLS"
    has_head: ClassVar[bool] = True
    has_classes: ClassVar[bool] = True
    reads_one_token: ClassVar[bool] = True
    reads_images: ClassVar[bool] = False

    @property
    def n_outputs(self) -> int:
        return len(self.label_names)

    def configure(self, config: Any) -> None:
        config.num_labels = self.n_outputs
        config.problem_type = "single_label_classification"

    def recognises(self, table: Table, task: TaskSpec) -> bool:
        """What is of no other kind is taken for this."""
        return False

    def read_rows(self, tables: Mapping[str, Table], task: TaskSpec, notes: list[str]) -> Rows:
        columns = find_columns(tables["train"].columns, task, tables["train"].name)
        tables = without_unlabelled_test(tables, columns.label, notes)
        texts = {split: read_texts(table, columns.text, notes) for split, table in tables.items()}
        numbered = number_classes(tables, columns.label)
        if task.metric == "f1" and len(numbered.names) != 2:
            raise DataError(
                f"{tables['train'].name}: {len(numbered.names)} classes, but the metric f1 is for two; use macro_f1, "
                "accuracy or mcc."
            )
        notes.extend(numbered.notes)
        refuse_swallowed(tables, columns.label)
        splits = {split: Split(texts[split], numbered.labels[split]) for split in tables}
        return Rows(columns, splits, numbered.names)

    def describe(self) -> str:
        return f"{len(self.label_names)} classes"

    def label_text(self, label: Any) -> str:
        return self.label_names[label]

    def encode(self, split: Split, tokenizer: Any, max_length: int, config: Any) -> "TokenisedSplit":
        import torch

        from autopeft.engine.batches import tokenise

        return tokenise(split.texts, torch.tensor(split.labels), tokenizer, max_length)

    def losses(self, outputs: "Tensor", labels: "Tensor") -> "Tensor":
        from torch.nn import functional

        return functional.cross_entropy(outputs, labels, reduction="none")

    def predictions(self, outputs: "Tensor", labels: "Tensor") -> Sequence[Any]:
        return outputs.argmax(-1).tolist()

    def compared(self, predicted: Sequence[Any], split: "TokenisedSplit") -> tuple[Any, Any]:
        return np.asarray(predicted), split.labels.numpy()
