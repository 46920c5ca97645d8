"""One of several answers to a question: the model reads the question with each answer and scores the pair."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np

from autopeft.engine.columns import LABELS, Columns, has_lists, named_or_only
from autopeft.engine.problem_names import ProblemName
from autopeft.engine.problems.base import Rows, RowsAlike
from autopeft.engine.reading import without_unlabelled_test
from autopeft.engine.recipe import TaskSpec
from autopeft.engine.splits import Split, Texts
from autopeft.engine.tables import BadRows, Table, shown
from autopeft.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from autopeft.engine.batches import Batch, TokenisedSplit

__all__ = ["MultipleChoice"]

QUESTIONS = ("question", "text", "premise", "prompt", "context", "query", "sentence", "goal", "stem")
CHOICES = ("choices", "options", "endings", "answers", "candidates")
_ANSWERS = (*LABELS, "answer", "answerkey", "gold", "correct")
_NUMBERED = re.compile(r"(choice|option|ending|answer|sol)_?([0-9])")


@final
@dataclass(frozen=True)
class MultipleChoice(RowsAlike):
    """Cross-entropy over the scores of a row's choices; the prediction is the number of one."""

    label_names: tuple[str, ...] = ()

    name: ClassVar[ProblemName] = "multiple_choice"
    auto: ClassVar[str] = "AutoModelForMultipleChoice"
    task_type: ClassVar[str | None] = None
    has_head: ClassVar[bool] = True
    has_classes: ClassVar[bool] = True
    reads_one_token: ClassVar[bool] = True
    reads_images: ClassVar[bool] = False

    @property
    def n_outputs(self) -> int:
        return 1

    def configure(self, config: Any) -> None:
        config.num_labels = 1

    def recognises(self, table: Table, task: TaskSpec) -> bool:
        """A list of choices, or a column for each of them."""
        return bool(task.choices or _choice_columns(table))

    def read_rows(self, tables: Mapping[str, Table], task: TaskSpec, notes: list[str]) -> Rows:
        train = tables["train"]
        choices = task.choices or _choice_columns(train)
        if not choices:
            raise DataError(f"{train.name}: no column is a list of choices; name it, or theirs, with task.choices.")
        rest = [column for column in train.columns if column not in choices]
        text = task.text or (named_or_only(None, QUESTIONS, "text", rest, train.name),)
        for column in (*text, *choices):
            named_or_only(column, (), "text", train.columns, train.name)
        rest = [column for column in rest if column not in text]
        label = named_or_only(task.label, _ANSWERS, "label", rest, train.name)
        tables = without_unlabelled_test(tables, label, notes)
        texts = {split: _texts(table, text, choices) for split, table in tables.items()}
        n_choices = len(texts["train"][0]) - len(text)
        for split, table in tables.items():
            _refuse_other_numbers(table, choices, [len(row) - len(text) for row in texts[split]], n_choices)
        first = _counted_from(tables, label, n_choices, notes)
        labels = {
            split: _labels(table, label, [row[len(text) :] for row in texts[split]], first)
            for split, table in tables.items()
        }
        joined = {split: tuple(_as_pairs(row, len(text)) for row in rows) for split, rows in texts.items()}
        splits = {split: Split(joined[split], labels[split]) for split in tables}
        return Rows(Columns((*text, *choices), label), splits, tuple(f"choice {i}" for i in range(n_choices)))

    def describe(self) -> str:
        return f"{len(self.label_names)} choices a row"

    def label_text(self, label: Any) -> str:
        return self.label_names[label]

    def encode(self, split: Split, tokenizer: Any, max_length: int, config: Any) -> "TokenisedSplit":
        import torch

        from autopeft.engine.batches import tokenise

        pairs = [(question, choice) for question, *choices in split.texts for choice in choices]
        labels = torch.tensor(split.labels)
        return tokenise(pairs, labels, tokenizer, max_length, per_row=len(self.label_names))

    def inputs(self, batch: "Batch") -> dict[str, "Tensor"]:
        C = len(self.label_names)
        return {name: value.view(-1, C, value.shape[-1]) for name, value in batch.model_inputs().items()}  # (B, C, T)

    def losses(self, outputs: "Tensor", labels: "Tensor") -> "Tensor":
        from torch.nn import functional

        return functional.cross_entropy(outputs, labels, reduction="none")

    def predictions(self, outputs: "Tensor", labels: "Tensor") -> Sequence[Any]:
        return outputs.argmax(-1).tolist()

    def compared(self, predicted: Sequence[Any], split: "TokenisedSplit") -> tuple[Any, Any]:
        return np.asarray(predicted), split.labels.numpy()


def _choice_columns(table: Table) -> tuple[str, ...]:
    """The one column that is a list of choices, or the columns of one stem that are numbered; else none."""
    lists = [column for column in table.columns if column.lower() in CHOICES and has_lists(table, column)]
    if len(lists) == 1:
        return (lists[0],)
    stems: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for column in table.columns:
        if match := _NUMBERED.fullmatch(column.lower()):
            stems[match[1]].append((match[2], column))
    families = [family for family in stems.values() if len(family) > 1]
    return tuple(column for _, column in sorted(families[0])) if len(families) == 1 else ()


def _texts(table: Table, text: Sequence[str], choices: Sequence[str]) -> list[Texts]:
    """Question (and what each choice begins with), then the choices."""
    bad, rows = BadRows(table.name, table.unit), []
    for line, row in zip(table.lines, table.rows, strict=True):
        given = row.get(choices[0]) if len(choices) == 1 else [row.get(column) for column in choices]
        texts = [*(row.get(column) for column in text), *(given if isinstance(given, list) else ())]
        if not isinstance(given, list):
            bad.add(line, f"'{shown(choices[0])}' must be a list of choices, found {shown(given)}")
        elif not all(isinstance(one, str) and one.strip() for one in texts):
            missing = next(one for one in texts if not (isinstance(one, str) and one.strip()))
            bad.add(line, f"question and choices must be texts, found {shown(missing) or 'an empty one'}")
        elif len(given) < 2:
            bad.add(line, f"{len(given)} choice in '{shown(choices[0])}'; at least 2 are needed")
        rows.append(tuple(texts))
    bad.refuse()
    return rows


def _refuse_other_numbers(table: Table, choices: Sequence[str], numbers: Sequence[int], expected: int) -> None:
    bad = BadRows(table.name, table.unit)
    for line, n in zip(table.lines, numbers, strict=True):
        if n != expected:
            bad.add(line, f"{n} choices in '{shown(choices[0])}', the first train row has {expected}")
    bad.refuse()


def _counted_from(tables: Mapping[str, Table], label: str, n_choices: int, notes: list[str]) -> int:
    """Whether answers are counted from 0 or from 1."""
    numbers = [n for table in tables.values() for value in table.column(label) if (n := _whole(value)) is not None]
    if numbers and min(numbers) == 1 and max(numbers) == n_choices:
        notes.append(f"the labels 1 to {n_choices} are numbered 0 to {n_choices - 1}")
        return 1
    return 0


def _whole(value: Any) -> int | None:
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        return int(value.strip()[:9])
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _labels(table: Table, column: str, choices: Sequence[Texts], first: int) -> tuple[int, ...]:
    """Numbers of the answers: given so, as letters, or as the text of a choice."""
    bad, labels = BadRows(table.name, table.unit), []
    for line, value, texts in zip(table.lines, table.column(column), choices, strict=True):
        number = _whole(value)
        place = number - first if number is not None else None
        if place is None and isinstance(value, str):
            letter = ord(value.strip()) - ord("A") if len(value.strip()) == 1 else -1
            place = texts.index(value) if value in texts else letter
        if place is None or not 0 <= place < len(texts):
            allowed = f"{first} to {first + len(texts) - 1}, A to {chr(ord('A') + len(texts) - 1)}, or its text"
            bad.add(line, f"label {shown(value)} in '{shown(column)}' is none of the {len(texts)} choices ({allowed})")
            continue
        labels.append(place)
    bad.refuse()
    return tuple(labels)


def _as_pairs(row: Texts, n_texts: int) -> Texts:
    """The question, and each choice after what it begins with."""
    question, *start = row[:n_texts]
    return (question, *(" ".join((*start, choice)) for choice in row[n_texts:]))
