"""One of several classes for an image.

Rows are known by the content of their files, not by their names: so are cuts, and what two splits share.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np

from autopeft.engine.columns import Columns
from autopeft.engine.labels import number_classes
from autopeft.engine.problem_names import ProblemName
from autopeft.engine.problems.base import Rows, RowsAlike
from autopeft.engine.recipe import TaskSpec
from autopeft.engine.splits import Split
from autopeft.engine.tables import BadRows, Table
from autopeft.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from autopeft.engine.batches import Batch, TokenisedSplit

__all__ = ["ImageClassification"]


@final
@dataclass(frozen=True)
class ImageClassification(RowsAlike):
    """Cross-entropy over the classes; the prediction is the number of one."""

    label_names: tuple[str, ...] = ()

    name: ClassVar[ProblemName] = "image_classification"
    auto: ClassVar[str] = "AutoModelForImageClassification"
    task_type: ClassVar[str | None] = None
    has_head: ClassVar[bool] = True
    has_classes: ClassVar[bool] = True
    reads_one_token: ClassVar[bool] = False
    reads_images: ClassVar[bool] = True

    @property
    def n_outputs(self) -> int:
        return len(self.label_names)

    def configure(self, config: Any) -> None:
        config.num_labels = self.n_outputs

    def recognises(self, table: Table, task: TaskSpec) -> bool:
        """A folder of images."""
        return table.holds_images

    def read_rows(self, tables: Mapping[str, Table], task: TaskSpec, notes: list[str]) -> Rows:
        if not tables["train"].holds_images:
            raise DataError(f"{tables['train'].name}: image_classification reads a folder with a sub-folder a class.")
        numbered = number_classes(tables, "label")
        notes.extend(numbered.notes)
        splits = {}
        for split, table in tables.items():
            paths = tuple(table.column("image"))
            splits[split] = Split(_contents(table, paths), numbered.labels[split], paths)
        return Rows(Columns(("image",), "folder"), splits, numbered.names)

    def describe(self) -> str:
        return f"{len(self.label_names)} classes of images"

    def label_text(self, label: Any) -> str:
        return self.label_names[label]

    def encode(self, split: Split, tokenizer: Any, max_length: int, config: Any) -> "TokenisedSplit":
        import torch

        from autopeft.engine.batches import TokenisedSplit

        n = len(split)
        rows = TokenisedSplit(
            torch.zeros(n, dtype=torch.int32), None, torch.arange(n + 1), torch.tensor(split.labels), 0
        )
        return replace(rows, pixels=tokenizer.pixels(split.paths))

    def inputs(self, batch: "Batch") -> dict[str, "Tensor"]:
        assert batch.pixel_values is not None
        return {"pixel_values": batch.pixel_values}

    def losses(self, outputs: "Tensor", labels: "Tensor") -> "Tensor":
        from torch.nn import functional

        return functional.cross_entropy(outputs, labels, reduction="none")

    def predictions(self, outputs: "Tensor", labels: "Tensor") -> Sequence[Any]:
        return outputs.argmax(-1).tolist()

    def compared(self, predicted: Sequence[Any], split: "TokenisedSplit") -> tuple[Any, Any]:
        return np.asarray(predicted), split.labels.numpy()


def _contents(table: Table, paths: Sequence[str]) -> tuple[tuple[str], ...]:
    """A digest of each file.

    Raises:
        DataError: a file cannot be read, or is no image; names it.
    """
    from autopeft.engine.images import read_image

    bad, found = BadRows(table.name, table.unit), list[tuple[str]]()
    for number, path in zip(table.lines, paths, strict=True):
        try:
            read_image(path)
            found.append((hashlib.sha256(Path(path).read_bytes()).hexdigest(),))
        except (OSError, DataError) as error:
            bad.add(number, str(error).rstrip("."))
    bad.refuse()
    return tuple(found)
