"""Where a task's rows come from: a file, a folder of files, a hub data set, or the embedded docstrings."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from autopeft.engine.delimited import read_csv, read_tsv
from autopeft.engine.docstrings import docstring_rows
from autopeft.engine.hub import read_hub
from autopeft.engine.image_folders import image_tables
from autopeft.engine.recipe import SplitNames, TaskSpec
from autopeft.engine.tables import LONGEST_PATH, Table, read_json, read_jsonl, read_parquet, shown
from autopeft.engine.text_files import TEXT_SUFFIX, read_columns, read_text, text_tables
from autopeft.errors import DataError, did_you_mean

__all__ = ["EMBEDDED", "READERS", "read_source"]

EMBEDDED = "docstrings"
"""The task that needs no data; a folder of that name is given as `./docstrings`."""

READERS: Mapping[str, Callable[[Path], Table]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    **dict.fromkeys((".conll", ".iob", ".iob2", ".bio"), read_columns),
    TEXT_SUFFIX: read_text,
}

T = TypeVar("T")

_ROLES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
_HUB_ID = re.compile(r"([\w][\w.-]*/[\w][\w.-]*)(?::([\w.+-]+))?", re.ASCII)


def read_source(given: str, task: TaskSpec, *, is_of_recipe: bool) -> dict[str, Table]:
    """The tables that `given` stands for: `train`, and where there are any `validation` and `test`.

    The recipe's subset and split names are the recipe's data set's: with other data they are not looked at.

    Raises:
        DataError: nothing there, not readable, without rows, or without a train split.
    """
    names = task.splits if is_of_recipe else None
    path = Path(given).expanduser()
    if given == EMBEDDED:
        tables = _docstring_tables()
    elif _exists(path):
        if path.is_file() and names is not None:
            raise DataError(f"{shown(path, LONGEST_PATH)}: is one file, but task.splits names splits; leave them out.")
        tables = _read_folder(path, names) if path.is_dir() else {"train": _read_file(path)}
    elif hub := _HUB_ID.fullmatch(given):
        if path.suffix.lower() in READERS:
            raise DataError(f"{shown(given, LONGEST_PATH)}: no such file.{_near(path)}")
        title, subset = hub[1], hub[2] or (task.subset if is_of_recipe else None)
        tables = _by_role(read_hub(title, subset), names, given)
    else:
        raise DataError(f"{shown(given, LONGEST_PATH)}: no such file or folder.{_near(path)}")
    for table in tables.values():
        if not table.rows:
            raise DataError(f"{table.name}: has no rows.")
    return tables


def _docstring_tables() -> dict[str, Table]:
    by_split: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in docstring_rows():
        by_split[row.split].append({"text": row.text, "label": row.library})
    return {
        split: Table(f"{EMBEDDED}, split {split}", ("text", "label"), rows, range(1, len(rows) + 1), "row")
        for split, rows in by_split.items()
    }


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or one that no file can have
        return False


def _read_file(path: Path) -> Table:
    name = shown(path, LONGEST_PATH)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{name}: files of this kind are not read; give {', '.join(READERS)}, or a folder of them.")
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise DataError(f"{name}: the file is empty.")
        return reader(path)
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or type(error).__name__}.") from error


def _read_folder(folder: Path, names: SplitNames | None) -> dict[str, Table]:
    """`train.*`, `validation.*` and `test.*` of a folder, or the files that `names` gives with or without suffix; in a
    folder of images, folders; in a folder of texts, a document each, all files. Texts beside tables are not read."""
    name = shown(folder, LONGEST_PATH)
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in READERS and file.is_file())
        tables = [file for file in files if file.suffix.lower() != TEXT_SUFFIX]
        if not tables and (found := image_tables(folder) or text_tables(folder)):
            return _by_role(found, names, str(folder))
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or type(error).__name__}.") from error
    by_name: dict[str, list[Path]] = defaultdict(list)
    for file in tables or files:
        by_name[file.stem].append(file)
    for stem, same in by_name.items():
        if len(same) > 1 and (names or stem in {alias for aliases in _ROLES.values() for alias in aliases}):
            listed = " and ".join(shown(file.name) for file in same)
            raise DataError(f"{name}: {listed} both stand for one split; remove one of them.")
    chosen = _by_role({stem: same[0] for stem, same in by_name.items()}, _stems(names), str(folder))
    return {role: _read_file(file) for role, file in chosen.items()}


def _stems(names: SplitNames | None) -> SplitNames | None:
    """Split names without the suffixes of files."""
    if names is None:
        return None
    given = {role: name for role, name in names.model_dump().items() if name is not None}
    return SplitNames(
        **{role: Path(name).stem if Path(name).suffix.lower() in READERS else name for role, name in given.items()}
    )


def _by_role(found: Mapping[str, T], names: SplitNames | None, where: str) -> dict[str, T]:
    """What plays the parts of train, validation and test, by the given names or by the usual ones."""
    where, known = shown(where, LONGEST_PATH), shown(", ".join(sorted(found)) or "nothing", 200)
    if names is not None:
        given = {role: name for role, name in names.model_dump().items() if name is not None}
        for role, name in given.items():
            if name not in found:
                raise DataError(f"{where}: no split '{name}' for task.splits.{role}. Found: {known}.")
        return {role: found[name] for role, name in given.items()}
    roles: dict[str, T] = {}
    for role, aliases in _ROLES.items():
        usual = [name for name in found if name.lower() in aliases]
        similar = [name for name in found if name.lower().startswith(aliases) and role == "validation"]
        if len(usual) > 1 or (not usual and similar):
            several = ", ".join(usual or similar)
            raise DataError(f"{where}: which is the {role} split: {several}? Name it with task.splits.")
        if usual:
            roles[role] = found[usual[0]]
    if "train" not in roles:
        raise DataError(f"{where}: no train split (train.jsonl, train.csv, ...). Found: {known}.")
    return roles


def _near(path: Path) -> str:
    """What the user may have meant: a file beside it, or the embedded task."""
    try:
        beside = [file.name for file in path.parent.iterdir()]
    except (OSError, ValueError):
        beside = []
    if near := did_you_mean(path.name, [*beside, EMBEDDED]):
        return shown(near, 120)
    could_be_hub = path.suffix.lower() not in READERS and not path.is_absolute()
    return " A hub data set is written org/name." if could_be_hub else ""
