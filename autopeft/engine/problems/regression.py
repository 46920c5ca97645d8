"""A number on a scale for a text or a pair of texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np

from autopeft.engine.columns import LABELS, SCORES, find_columns
from autopeft.engine.labels import read_numbers
from autopeft.engine.problem_names import ProblemName
from autopeft.engine.problems.base import Rows, RowsAlike
from autopeft.engine.reading import read_texts, refuse_swallowed, without_unlabelled_test
from autopeft.engine.recipe import TaskSpec
from autopeft.engine.splits import Split
from autopeft.engine.tables import Table

if TYPE_CHECKING:
    from torch import Tensor

    from autopeft.engine.batches import TokenisedSplit

__all__ = ["Regression"]


@final
@dataclass(frozen=True)
class Regression(RowsAlike):
    """Squared error; the prediction is the head's one output."""

    label_names: tuple[str, ...] = ()

    name: ClassVar[ProblemName] = "regression"
    auto: ClassVar[str] = "AutoModelForSequenceClassification"
    task_type: ClassVar[str | None] = "SEQ_CLS"
    has_head: ClassVar[bool] = True
    has_classes: ClassVar[bool] = False
    reads_one_token: ClassVar[bool] = True
    reads_images: ClassVar[bool] = False

    @property
    def n_outputs(self) -> int:
        return 1

    def configure(self, config: Any) -> None:
        config.num_labels = 1
        config.problem_type = "regression"

    def recognises(self, table: Table, task: TaskSpec) -> bool:
        """Numbers may as well be classes: it has to be named."""
        return False

    def read_rows(self, tables: Mapping[str, Table], task: TaskSpec, notes: list[str]) -> Rows:
        columns = find_columns(tables["train"].columns, task, tables["train"].name, LABELS + SCORES)
        tables = without_unlabelled_test(tables, columns.label, notes)
        texts = {split: read_texts(table, columns.text, notes) for split, table in tables.items()}
        numbers = read_numbers(tables, columns.label)
        refuse_swallowed(tables, columns.label)
        return Rows(columns, {split: Split(texts[split], numbers[split]) for split in tables}, ())

    def describe(self) -> str:
        return "regression"

    def label_text(self, label: Any) -> str:
        return f"{label:g}"

    def encode(self, split: Split, tokenizer: Any, max_length: int, config: Any) -> "TokenisedSplit":
        import torch

        from autopeft.engine.batches import tokenise

        labels = torch.tensor(split.labels, dtype=torch.float32)
        return tokenise(split.texts, labels, tokenizer, max_length)

    def losses(self, outputs: "Tensor", labels: "Tensor") -> "Tensor":
        return (outputs.squeeze(-1) - labels).square()

    def predictions(self, outputs: "Tensor", labels: "Tensor") -> Sequence[Any]:
        return outputs.squeeze(-1).tolist()

    def compared(self, predicted: Sequence[Any], split: "TokenisedSplit") -> tuple[Any, Any]:
        return np.asarray(predicted, dtype=np.float32), split.labels.numpy()
