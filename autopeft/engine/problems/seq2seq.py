"""A text made from a text by an encoder and a decoder: summaries, translations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, ClassVar, final

from autopeft.engine.columns import LABELS, Columns, named_or_only
from autopeft.engine.problem_names import ProblemName
from autopeft.engine.problems.base import Rows
from autopeft.engine.reading import read_targets, read_texts
from autopeft.engine.recipe import TaskSpec
from autopeft.engine.splits import Split
from autopeft.engine.tables import Table
from autopeft.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from autopeft.engine.batches import Batch, TokenisedSplit

__all__ = ["Seq2Seq"]

PAIRS = (
    ("source", "target"),
    ("document", "summary"),
    ("article", "highlights"),
    ("dialogue", "summary"),
    ("article", "summary"),
)
_SOURCES = (*dict.fromkeys(source for source, _ in PAIRS), "prompt", "input", "text")
_TARGETS = (*dict.fromkeys(target for _, target in PAIRS), "completion", "output")


@final
@dataclass(frozen=True)
class Seq2Seq:
    """Cross-entropy of the target's tokens; predictions are texts, made only for the metrics that read them."""

    label_names: tuple[str, ...] = ()

    name: ClassVar[ProblemName] = "seq2seq"
    auto: ClassVar[str] = "AutoModelForSeq2SeqLM"
    task_type: ClassVar[str | None] = "SEQ_2_SEQ_LM"
    has_head: ClassVar[bool] = False
    has_classes: ClassVar[bool] = False
    reads_one_token: ClassVar[bool] = False
    reads_images: ClassVar[bool] = False

    @property
    def n_outputs(self) -> int:
        return 0

    def configure(self, config: Any) -> None:
        """The head is the model's own."""

    def recognises(self, table: Table, task: TaskSpec) -> bool:
        """A source and a target of the usual names, and no label."""
        columns = {column.lower() for column in table.columns}
        has_label = bool(columns & {*LABELS} - {*_TARGETS})
        return not has_label and any(source in columns and target in columns for source, target in PAIRS)

    def read_rows(self, tables: Mapping[str, Table], task: TaskSpec, notes: list[str]) -> Rows:
        train = tables["train"]
        text = named_or_only(task.text[0] if task.text else None, _SOURCES, "text", train.columns, train.name)
        rest = [column for column in train.columns if column != text]
        label = named_or_only(task.label, _TARGETS, "label", rest, train.name)
        splits = {
            split: Split(read_texts(table, (text,), notes), read_targets(table, label))
            for split, table in tables.items()
        }
        return Rows(Columns((text,), label), splits, ())

    def describe(self) -> str:
        return "texts to make of texts"

    def label_text(self, label: Any) -> str:
        return str(label)

    def encode(self, split: Split, tokenizer: Any, max_length: int, config: Any) -> "TokenisedSplit":
        import torch

        from autopeft.engine.batches import tokenise

        start = config.decoder_start_token_id
        if start is None:
            raise ModelError("the model's config has no decoder_start_token_id, with which its decoder begins")
        encoded = tokenise(split.texts, torch.zeros(len(split)), tokenizer, max_length)
        targets = tokenizer(text_target=list(split.labels), truncation=True, max_length=max_length)["input_ids"]
        flat = torch.tensor([token for row in targets for token in row])
        starts = torch.tensor([0, *accumulate(map(len, targets))])
        return replace(encoded.labelled(flat, starts, tuple(split.labels)), decoder_start=start)

    def inputs(self, batch: "Batch") -> dict[str, "Tensor"]:
        inputs = batch.model_inputs()
        inputs.pop("token_type_ids", None)
        return inputs

    def read(self, logits: "Tensor", batch: "Batch") -> "Tensor":
        from autopeft.engine.batches import IGNORED

        return logits.masked_fill((batch.labels == IGNORED).unsqueeze(-1), 0)

    def weights(self, labels: "Tensor") -> "Tensor":
        from autopeft.engine.batches import IGNORED

        return (labels != IGNORED).sum(-1)

    def losses(self, outputs: "Tensor", labels: "Tensor") -> "Tensor":
        from torch.nn import functional

        B, T, V = outputs.shape
        return functional.cross_entropy(outputs.view(-1, V), labels.view(-1), reduction="none").view(B, T).sum(-1)

    def predictions(self, outputs: "Tensor", labels: "Tensor") -> Sequence[Any]:
        return [None] * len(labels)

    def compared(self, predicted: Sequence[Any], split: "TokenisedSplit") -> tuple[Any, Any]:
        return predicted, list(split.truths)

    def prompts(self, split: "TokenisedSplit") -> list["Tensor"]:
        """Token ids that the encoder reads, of each row."""
        return [split.tokens[start:end] for start, end in pairwise(split.starts.tolist())]
