"""A task's rows as train, validation and test, from a file, a folder, a hub data set or installed packages.

The search may look at train and validation only; `test` is for the final figure. Where the data have no test with
labels, their validation becomes the test and a validation is cut from train; where there is one file, it is cut in
three. Everything that is changed or doubtful is said in `TaskData.notes`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from autopeft.engine.columns import Columns
from autopeft.engine.overlap import describe_overlap, refuse_identical
from autopeft.engine.problem_names import ProblemName
from autopeft.engine.problems import PROBLEMS, Problem, find_problem
from autopeft.engine.recipe import TaskSpec
from autopeft.engine.sources import EMBEDDED, read_source
from autopeft.engine.splits import Split, cut, draw
from autopeft.engine.tables import LONGEST_PATH, shown
from autopeft.errors import DataError

__all__ = ["SPLITS", "Split", "TaskData", "load_data"]

SPLITS = ("train", "validation", "test")

LEAST_ROWS = 10
"""Fewer are not cut into splits."""
HELD_OUT = 0.15
"""Share of the rows in a split that is cut off."""
MOST_HELD_OUT = 1000
"""Rows in a validation that is cut from train."""


@dataclass(frozen=True, slots=True)
class TaskData:
    """A task, ready to be tokenised."""

    name: str
    splits: Mapping[str, Split]
    """`train`, `validation`, `test`."""
    label_names: tuple[str, ...]
    """Of the classes 0 … n-1; empty where there are none."""
    columns: Columns
    notes: tuple[str, ...]
    """What was renumbered, cut or found doubtful, each a sentence for the user."""
    content_hash: str
    """SHA-256 of all texts, labels and splits: one changed letter changes it, the name of the file does not."""

    problem_name: ProblemName
    """What kind of task it is."""

    @property
    def problem(self) -> Problem:
        """How it is encoded, learned and scored."""
        return PROBLEMS[self.problem_name](self.label_names)

    @property
    def n_labels(self) -> int:
        """Outputs that a head needs: the number of classes, or 1 for regression."""
        return self.problem.n_outputs


def load_data(task: TaskSpec, path_or_name: str | Path | None = None, seed: int = 0) -> TaskData:
    """Read, check and split the data of a task.

    `path_or_name` stands over `task.dataset`: a file or folder, `org/name` or `org/name:subset` of the hub, or
    `docstrings`. `seed` draws the rows for `task.max_train_rows`; the splits do not depend on it.

    Raises:
        DataError: the data cannot be read or learned from; one line with the place and what to do.
        EnvironmentProblem: the embedded task lacks the libraries it is made of.
    """
    given = str(path_or_name) if path_or_name is not None else task.dataset
    if given is None:
        raise DataError(f"no data: give --data FILE, a folder, a hub data set org/name, or {EMBEDDED}.")
    tables = read_source(given, task, is_of_recipe=path_or_name is None)
    notes = [note for table in tables.values() for note in table.notes]
    problem = find_problem(task, tables["train"])
    try:
        task = task.resolved(problem.name)
    except ValueError as error:
        raise DataError(f"{tables['train'].name}: {error} (task.metric).") from error
    rows = problem.read_rows(tables, task, notes)
    refuse_identical(rows.splits, {split: table.name for split, table in tables.items()})
    splits = _three_splits(rows.splits, tables["train"].name, problem, notes)
    notes.extend(describe_overlap(splits, of_classes=problem.has_classes))
    if task.max_train_rows is not None and task.max_train_rows < len(splits["train"]):
        splits["train"] = _drawn(splits["train"], problem, task.max_train_rows, seed)
        notes.append(f"train is a draw of {task.max_train_rows:,} rows (seed {seed})")
    return TaskData(
        name=shown(given, LONGEST_PATH),
        splits=MappingProxyType(splits),
        label_names=rows.label_names,
        columns=rows.columns,
        notes=tuple(dict.fromkeys(notes)),
        content_hash=_content_hash(splits, rows.label_names),
        problem_name=problem.name,
    )


def _three_splits(found: Mapping[str, Split], name: str, problem: Problem, notes: list[str]) -> dict[str, Split]:
    """Train, validation and test from what there is; the search never sees what the data set holds out itself."""
    train = found["train"]
    if len(found) == 3:
        return {split: found[split] for split in SPLITS}
    strata = train.labels if problem.has_classes else (0.0,) * len(train)
    held_out = next((split for split in ("test", "validation") if split in found), None)
    if held_out is None:
        fractions: tuple[float, ...] = (HELD_OUT, HELD_OUT)
    else:
        fractions = (min(HELD_OUT, MOST_HELD_OUT / len(train)),)
    parts = [train.take(part) for part in cut(train.texts, strata, *fractions)]
    if len(train) < LEAST_ROWS or not all(parts) or _has_one_label(parts[0], problem):
        rows = "1 row is" if len(train) == 1 else f"{len(train)} rows are"
        raise DataError(
            f"{name}: {rows} too few to cut a validation from; at least {LEAST_ROWS}, "
            "and 3 different texts of each label."
        )
    if held_out is None:
        splits = dict(zip(SPLITS, parts, strict=True))
        sizes = " / ".join(f"{len(split):,}" for split in splits.values())
        notes.append(f"the {len(train):,} rows are cut into train / validation / test by a hash of the text: {sizes}")
        return splits
    if held_out == "validation":
        notes.append(f"the given validation ({len(found[held_out]):,} rows) is kept as the test, unseen by the search")
    notes.append(f"{len(parts[1]):,} of {len(train):,} train rows are cut off as validation, by a hash of the text")
    return {"train": parts[0], "validation": parts[1], "test": found[held_out]}


def _drawn(train: Split, problem: Problem, n: int, seed: int) -> Split:
    drawn = train.take(draw(train.texts, n, seed))
    if _has_one_label(drawn, problem):
        raise DataError(f"task.max_train_rows={n} leaves rows of one label only; raise it.")
    return drawn


def _has_one_label(split: Split, problem: Problem) -> bool:
    """Whether there is nothing for a head to tell apart."""
    return problem.has_head and len(set(split.labels)) == 1


def _content_hash(splits: Mapping[str, Split], label_names: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps(list(label_names)).encode())
    for name, split in splits.items():
        digest.update(json.dumps([name, split.texts, split.labels]).encode())
    return digest.hexdigest()
