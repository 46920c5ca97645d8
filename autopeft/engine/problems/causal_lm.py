"""Text that goes on: every token of plain texts, completions of prompts, or the answers in conversations.

Plain texts are read whole: what is longer than `max_length` goes into several sequences. A completion follows its
prompt as it stands, without anything between them, and ends with the end-of-text token; the loss is on it alone. Where
both are too long, the prompt loses its beginning. Conversations: see `autopeft.engine.conversations`; of their answers
the last one is compared by the metrics that compare texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, final

from autopeft.engine.columns import TEXTS, Columns, named_or_only
from autopeft.engine.conversations import (
    CONVERSATIONS,
    holds_conversations,
    read_conversations,
    spoken,
    writer_of,
)
from autopeft.engine.problem_names import GENERATED, ProblemName
from autopeft.engine.problems.base import Rows
from autopeft.engine.reading import read_targets, read_texts
from autopeft.engine.recipe import TaskSpec
from autopeft.engine.splits import Split
from autopeft.engine.tables import Table
from autopeft.errors import DataError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from autopeft.engine.batches import Batch, TokenisedSplit

__all__ = ["CausalLM"]

PROMPTS = ("prompt", "instruction")
COMPLETIONS = ("completion", "response")


@final
@dataclass(frozen=True)
class CausalLM:
    """Cross-entropy of the next token; predictions are texts, made only for the metrics that read them."""

    label_names: tuple[str, ...] = ()

    name: ClassVar[ProblemName] = "causal_lm"
    auto: ClassVar[str] = "AutoModelForCausalLM"
    task_type: ClassVar[str | None] = "CAUSAL_LM"
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
        """A conversation, a prompt and a completion, or a text and nothing else."""
        if _conversation_columns(table, task):
            return True
        columns = [column.lower() for column in table.columns]
        is_text = len(columns) == 1 and columns[0] in TEXTS and task.label is None
        return is_text or ("prompt" in columns and "completion" in columns)

    def read_rows(self, tables: Mapping[str, Table], task: TaskSpec, notes: list[str]) -> Rows:
        train = tables["train"]
        if columns := _conversation_columns(train, task):
            column = named_or_only(
                columns[0] if len(columns) == 1 else None, columns, "text", train.columns, train.name
            )
            conversations = {split: read_conversations(table, column) for split, table in tables.items()}
            return Rows(Columns((column,), ""), conversations, ())
        has_completions = task.label is not None or any(c.lower() in COMPLETIONS for c in train.columns)
        if not has_completions and task.metric in GENERATED:
            raise DataError(
                f"{train.name}: the metric {task.metric} compares completions, but no column holds any; name it with "
                "task.label, or use loss or perplexity."
            )
        known = PROMPTS if has_completions else TEXTS
        text = named_or_only(task.text[0] if task.text else None, known, "text", train.columns, train.name)
        texts = {split: read_texts(table, (text,), notes) for split, table in tables.items()}
        if not has_completions:
            splits = {split: Split(rows, ("",) * len(rows)) for split, rows in texts.items()}
            return Rows(Columns((text,), ""), splits, ())
        label = named_or_only(task.label, COMPLETIONS, "label", train.columns, train.name)
        splits = {split: Split(texts[split], read_targets(table, label)) for split, table in tables.items()}
        return Rows(Columns((text,), label), splits, ())

    def describe(self) -> str:
        return "texts to go on with"

    def label_text(self, label: Any) -> str:
        if isinstance(label, tuple):
            return " ".join(label)
        return str(label) or "the text itself"

    def encode(self, split: Split, tokenizer: Any, max_length: int, config: Any) -> "TokenisedSplit":
        import torch

        from autopeft.engine.batches import IGNORED, ragged

        rows, labels, truths = list[list[int]](), list[list[int]](), list[Any]()
        write = writer_of(tokenizer)
        if any(isinstance(label, tuple) for label in split.labels) and not tokenizer.is_fast:
            raise ModelError("conversations need a fast tokeniser, which tells where its tokens stand")
        for texts, target in zip(split.texts, split.labels, strict=True):
            if isinstance(target, tuple):
                said = spoken(texts, target, tokenizer, write, max_length)
                rows.append(said.ids)
                labels.append([i if here else IGNORED for i, here in zip(said.ids, said.is_learned, strict=True)])
                truths.append((said.n_before, said.answer))
                continue
            (text,) = texts
            ids: list[int] = tokenizer(text)["input_ids"]
            if not target:
                pieces = [ids[start : start + max_length] for start in range(0, len(ids), max_length)]
                rows += pieces or [[tokenizer.eos_token_id or 0]]
                labels += pieces or [[IGNORED]]
                continue
            end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
            completion = [*tokenizer(target, add_special_tokens=False)["input_ids"], *end][: max_length - 1]
            if ids and end == ids[-1:]:  # tokenisers that end every text
                ids = ids[:-1]
            prompt = ids[-(max_length - len(completion)) :] or [tokenizer.bos_token_id or 0]
            rows.append(prompt + completion)
            labels.append([IGNORED] * len(prompt) + completion)
            truths.append((len(prompt), target))
        encoded = ragged(rows, tokenizer)
        flat = torch.tensor([token for row in labels for token in row])
        return encoded.labelled(flat, encoded.starts, tuple(truths))

    def inputs(self, batch: "Batch") -> dict[str, "Tensor"]:
        inputs = batch.model_inputs()
        inputs.pop("token_type_ids", None)
        return inputs

    def read(self, logits: "Tensor", batch: "Batch") -> "Tensor":
        from autopeft.engine.batches import IGNORED

        is_target = batch.labels != IGNORED
        reads = is_target.roll(-1, dims=1)
        reads[:, -1] = False
        return logits.masked_fill(~reads.unsqueeze(-1), 0)

    def weights(self, labels: "Tensor") -> "Tensor":
        from autopeft.engine.batches import IGNORED

        return (labels[:, 1:] != IGNORED).sum(-1)

    def losses(self, outputs: "Tensor", labels: "Tensor") -> "Tensor":
        from torch.nn import functional

        B, T, V = outputs.shape
        each = functional.cross_entropy(
            outputs[:, :-1].reshape(-1, V), labels[:, 1:].reshape(-1), reduction="none"
        )  # 0 where it is ignored
        return each.view(B, T - 1).sum(-1)

    def predictions(self, outputs: "Tensor", labels: "Tensor") -> Sequence[Any]:
        return [None] * len(labels)

    def compared(self, predicted: Sequence[Any], split: "TokenisedSplit") -> tuple[Any, Any]:
        return predicted, [target for _, target in split.truths]

    def prompts(self, split: "TokenisedSplit") -> list["Tensor"]:
        """Token ids that a generated text begins after, of each row."""
        starts = [start for start, _ in pairwise(split.starts.tolist())]
        return [split.tokens[start : start + n] for start, (n, _) in zip(starts, split.truths, strict=True)]


def _conversation_columns(table: Table, task: TaskSpec) -> list[str]:
    """The column that is named, or those of common names, if it holds messages."""
    named = task.text or [column for column in table.columns if column.lower() in CONVERSATIONS]
    return [column for column in named if holds_conversations(table, column)]
