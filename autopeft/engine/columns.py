"""Which columns of a table hold the text and the label: those that the user names, else those with a common name."""

from collections.abc import Sequence
from dataclasses import dataclass

from autopeft.engine.recipe import TaskSpec
from autopeft.engine.tables import Table, shown
from autopeft.errors import DataError, did_you_mean

__all__ = ["Columns", "find_columns", "has_lists", "named_or_only"]

_LOOKED_AT = 100
"""Rows in which a value is looked for."""

TEXT_PAIRS = (
    ("text", "text_pair"),
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "context"),
    ("query", "document"),
)
TEXTS = (
    "text",
    "sentence",
    "content",
    "review",
    "review_text",
    "comment",
    "comment_text",
    "tweet",
    "question",
    "utterance",
    "document",
    "body",
    "title",
    "abstract",
)
LABELS = ("label", "labels", "class", "target", "category", "sentiment", "intent", "topic")
SCORES = ("score", "similarity_score", "rating")


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns in use: one text or two, and the label."""

    text: tuple[str, ...]
    label: str
    """Empty where the texts are all there is."""

    def __str__(self) -> str:
        return f"text from {' + '.join(self.text)}" + (f", label from {self.label}" if self.label else "")


def find_columns(columns: Sequence[str], task: TaskSpec, name: str, labels: Sequence[str] = LABELS) -> Columns:
    """The columns that `task` names, or the only ones with a common name (upper and lower case are the same).

    `labels` are the common names of a label.

    Raises:
        DataError: none or several could be meant, or a named one is not there; lists the columns of `name`.
    """
    if task.text is not None:
        text = tuple(_named(column, columns, name) for column in task.text)
    else:
        text = _only(_text_candidates(columns), "text", columns, name)
    if task.label is not None:
        label = _named(task.label, columns, name)
    else:
        candidates = [(column,) for column in columns if column.lower() in labels and column not in text]
        (label,) = _only(candidates, "label", columns, name)
    if label in text:
        raise DataError(f"{name}: column '{label}' cannot be both text and label; set task.text and task.label.")
    return Columns(text, label)


def named_or_only(given: str | None, known: Sequence[str], role: str, columns: Sequence[str], name: str) -> str:
    """The column that is named, or the only one of a common name (upper and lower case are the same).

    Raises:
        DataError: it is not there, or none or several could be meant.
    """
    if given is not None:
        return _named(given, columns, name)
    (found,) = _only([(column,) for column in columns if column.lower() in known], role, columns, name)
    return found


def has_lists(table: Table, column: str) -> bool:
    """Whether the first value of a column is a list."""
    values = (row.get(column) for row in table.rows[:_LOOKED_AT])
    return isinstance(next((value for value in values if value is not None), None), list)


def _text_candidates(columns: Sequence[str]) -> list[tuple[str, ...]]:
    """Pairs and single columns of common names; a pair stands for its members."""
    by_name = {column.lower(): column for column in columns}
    pairs = [(by_name[a], by_name[b]) for a, b in TEXT_PAIRS if a in by_name and b in by_name]
    in_pairs = {column for pair in pairs for column in pair}
    singles = [(by_name[text],) for text in TEXTS if text in by_name and by_name[text] not in in_pairs]
    return [*pairs, *singles]


def _only(candidates: Sequence[tuple[str, ...]], role: str, columns: Sequence[str], name: str) -> tuple[str, ...]:
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        found = ", ".join(shown("+".join(candidate)) for candidate in candidates)
        problem = f"several columns could be the {role} ({found})"
    else:
        problem = f"no column has a common name for the {role}"
    raise DataError(f"{name}: {problem}; name it with task.{role}. Columns: {_listed(columns)}.")


def _named(column: str, columns: Sequence[str], name: str) -> str:
    if column not in columns:
        near = did_you_mean(column, columns)
        raise DataError(f"{name}: no column '{shown(column)}'.{shown(near)} Columns: {_listed(columns)}.")
    return column


def _listed(columns: Sequence[str]) -> str:
    first = ", ".join(shown(column) for column in columns[:20])
    return f"{first} and {len(columns) - 20} more" if len(columns) > 20 else first or "none"
