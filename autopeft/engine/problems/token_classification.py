"""A tag for each word of a text: named entities, parts of speech.

A word is tagged where its first piece stands; its other pieces have no label (Devlin et al. 2019, 5.3). Pieces are told
to words by their place in the text, so that any fast tokeniser does. Words that the model does not get to see, since
the text was cut at `max_length`, count as not recognised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from autopeft.engine.columns import Columns, has_lists, named_or_only
from autopeft.engine.label_lists import number_lists
from autopeft.engine.problem_names import ProblemName
from autopeft.engine.problems.base import Rows, RowsAlike
from autopeft.engine.reading import without_unlabelled_test
from autopeft.engine.recipe import TaskSpec
from autopeft.engine.splits import Split, Texts
from autopeft.engine.tables import BadRows, Table, shown
from autopeft.engine.tags import is_iob
from autopeft.errors import DataError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from autopeft.engine.batches import Batch, TokenisedSplit

__all__ = ["TokenClassification"]

WORDS = ("tokens", "words")
TAGS = ("tags", "ner_tags", "pos_tags", "chunk_tags", "labels", "ner", "pos")


@final
@dataclass(frozen=True)
class TokenClassification(RowsAlike):
    """Cross-entropy over the tags of each word; the prediction is the tag of every word of a row."""

    label_names: tuple[str, ...] = ()

    name: ClassVar[ProblemName] = "token_classification"
    auto: ClassVar[str] = "AutoModelForTokenClassification"
    task_type: ClassVar[str | None] = "TOKEN_CLS"
    has_head: ClassVar[bool] = True
    has_classes: ClassVar[bool] = False
    reads_one_token: ClassVar[bool] = False
    reads_images: ClassVar[bool] = False

    @property
    def n_outputs(self) -> int:
        return len(self.label_names)

    def configure(self, config: Any) -> None:
        config.num_labels = self.n_outputs

    def recognises(self, table: Table, task: TaskSpec) -> bool:
        """A list of words and a list of tags."""
        lists = [column for column in table.columns if has_lists(table, column)]
        words = task.text if task.text is not None else [c for c in lists if c.lower() in WORDS]
        tags = [task.label] if task.label is not None else [c for c in lists if c.lower() in TAGS]
        return len(words) == 1 and words[0] in lists and any(tag in lists for tag in tags)

    def read_rows(self, tables: Mapping[str, Table], task: TaskSpec, notes: list[str]) -> Rows:
        train = tables["train"]
        text = named_or_only(task.text[0] if task.text else None, WORDS, "text", train.columns, train.name)
        label = named_or_only(task.label, TAGS, "label", [c for c in train.columns if c != text], train.name)
        tables = without_unlabelled_test(tables, label, notes)
        words = {split: _words(table, text) for split, table in tables.items()}
        tags, numbered = number_lists(tables, label, may_be_empty=False)
        for split, table in tables.items():
            _refuse_other_lengths(table, text, label, words[split], tags[split])
        if task.metric == "entity_f1" and not is_iob(numbered.names):
            raise DataError(
                f"{train.name}: the tags in '{shown(label)}' ({', '.join(map(shown, numbered.names[:5]))}, …) are not "
                "those of entities (B-…, I-…, O), which the metric entity_f1 reads; set task.metric=token_accuracy, "
                "or give tags by their names."
            )
        notes.extend(numbered.notes)
        splits = {split: Split(words[split], tags[split]) for split in tables}
        return Rows(Columns((text,), label), splits, numbered.names)

    def describe(self) -> str:
        return f"{len(self.label_names)} tags of words"

    def label_text(self, label: Any) -> str:
        return " ".join(self.label_names[tag] for tag in label)

    def encode(self, split: Split, tokenizer: Any, max_length: int, config: Any) -> "TokenisedSplit":
        import torch

        from autopeft.engine.batches import IGNORED, tokenise

        if not tokenizer.is_fast:
            raise ModelError("token_classification needs a fast tokeniser, which tells where its tokens stand")
        texts = [" ".join(words) for words in split.texts]
        encoded = tokenise([(text,) for text in texts], torch.zeros(len(texts)), tokenizer, max_length)
        labels = torch.full((len(encoded.tokens),), IGNORED)
        truths = []
        for row, (text, words, tags) in enumerate(zip(texts, split.texts, split.labels, strict=True)):
            offsets = tokenizer(text, truncation=True, max_length=max_length, return_offsets_mapping=True)
            firsts = _first_tokens(text, words, offsets["offset_mapping"])
            start = int(encoded.starts[row])
            for word, token in firsts.items():
                labels[start + token] = tags[word]
            truths.append((tags, tuple(firsts)))
        return encoded.labelled(labels, encoded.starts, tuple(truths))

    def read(self, logits: "Tensor", batch: "Batch") -> "Tensor":
        from autopeft.engine.batches import IGNORED

        return logits.masked_fill((batch.labels == IGNORED).unsqueeze(-1), 0)

    def weights(self, labels: "Tensor") -> "Tensor":
        from autopeft.engine.batches import IGNORED

        return (labels != IGNORED).sum(-1)

    def losses(self, outputs: "Tensor", labels: "Tensor") -> "Tensor":
        from torch.nn import functional

        return functional.cross_entropy(outputs.transpose(1, 2), labels, reduction="none").sum(-1)

    def predictions(self, outputs: "Tensor", labels: "Tensor") -> Sequence[Any]:
        from autopeft.engine.batches import IGNORED

        best, is_labelled = outputs.argmax(-1).cpu(), (labels != IGNORED).cpu()
        return [row[here].tolist() for row, here in zip(best, is_labelled, strict=True)]

    def compared(self, predicted: Sequence[Any], split: "TokenisedSplit") -> tuple[Any, Any]:
        """Tags by name of every word, `None` of words that the model has not seen."""
        found = []
        for said, (tags, seen) in zip(predicted, split.truths, strict=True):
            row: list[str | None] = [None] * len(tags)
            for word, tag in zip(seen, said, strict=True):
                row[word] = self.label_names[tag]
            found.append(row)
        return found, [[self.label_names[tag] for tag in tags] for tags, _ in split.truths]


def _words(table: Table, column: str) -> tuple[Texts, ...]:
    bad, rows = BadRows(table.name, table.unit), []
    for line, value in zip(table.lines, table.column(column), strict=True):
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            bad.add(line, f"'{shown(column)}' must be a list of words, found {shown(value)}")
            continue
        rows.append(tuple(value))
    bad.refuse()
    return tuple(rows)


def _refuse_other_lengths(
    table: Table, text: str, label: str, words: Sequence[Texts], tags: Sequence[Sequence[int]]
) -> None:
    bad = BadRows(table.name, table.unit)
    for line, of_words, of_tags in zip(table.lines, words, tags, strict=True):
        if len(of_words) != len(of_tags):
            bad.add(line, f"{len(of_words)} words in '{shown(text)}', but {len(of_tags)} tags in '{shown(label)}'")
    bad.refuse()


def _first_tokens(text: str, words: Texts, offsets: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Word → the token that begins it, for the words of `text`, joined by blanks, that have one."""
    word_at: list[int | None] = []
    for number, length in enumerate(map(len, words)):
        word_at += [None] * (number > 0) + [number] * length
    firsts: dict[int, int] = {}
    for token, (start, end) in enumerate(offsets):
        # Byte-level tokenisers may count the blank before a word to its first piece.
        place = next((at for at in range(start, end) if not text[at].isspace()), None)
        if place is not None and (word := word_at[place]) is not None:
            firsts.setdefault(word, token)
    return dict(sorted(firsts.items()))
