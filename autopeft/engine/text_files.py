"""Files of plain text, for language models, and files in columns as CoNLL's, for tags of words.

A plain text is read paragraph by paragraph where blank lines part them, else line by line. A file in columns has a word
a line, what is said of it after blanks or tabs (the last column is its tag), and a blank line after each sentence;
lines of `-DOCSTART-` are left out (Tjong Kim Sang & De Meulder 2003).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from autopeft.engine.tables import LONGEST_PATH, BadRows, Row, Table, decode, shown
from autopeft.engine.tags import is_iob

__all__ = ["TEXT_SUFFIX", "read_columns", "read_text", "text_tables"]

TEXT_SUFFIX = ".txt"
_DOCUMENT = "-DOCSTART-"
_BLANKS = re.compile(r"[ \t]+")
_PARTS = ("train", "training", "validation", "valid", "val", "dev", "test")

Line = tuple[int, str]
"""Its number, counted from 1, and what stands in it."""


def read_text(path: Path) -> Table:
    """A row for each paragraph, or for each line where no blank line parts any; but where every line is a word with
    the tag of an entity, as `read_columns`."""
    name = shown(path, LONGEST_PATH)
    blocks = list(_blocks(decode(name, path.read_bytes())))
    if _holds_entities(blocks):
        return read_columns(path)
    unit = "paragraphs" if len(blocks) > 1 else "lines"
    if len(blocks) == 1:
        blocks = [[line] for line in blocks[0]]
    rows = [{"text": "\n".join(text for _, text in block)} for block in blocks]
    notes = (f"{name}: {len(rows):,} {unit}, each a text of its own",)
    return Table(name, ("text",), rows, [block[0][0] for block in blocks], notes=notes)


def read_columns(path: Path) -> Table:
    """A row for each sentence: lists of the words (`tokens`), of their tags (`tags`), and of what stands between them
    (`column 2`, …).

    Raises:
        DataError: a line has more or fewer columns than the first, or a word no tag.
    """
    name = shown(path, LONGEST_PATH)
    blocks = list(_sentences(_blocks(decode(name, path.read_bytes()))))
    split = _splitter(blocks)
    width = len(split(blocks[0][0][1])) if blocks else 0
    columns = ("tokens", *(f"column {number}" for number in range(2, width)), "tags")
    bad, rows = BadRows(name), list[Row]()
    for block in blocks:
        fields = [(number, split(line)) for number, line in block]
        for number, found in fields:
            if len(found) < 2:
                bad.add(number, f"a word without a tag: {shown(found[0])}")
            elif len(found) != width:
                bad.add(number, f"{len(found)} columns where the first line has {width}")
            elif not all(found):
                bad.add(number, "a column is empty")
        rows.append(dict(zip(columns, map(list, zip(*(found for _, found in fields), strict=False)), strict=False)))
    bad.refuse()
    return Table(name, columns, rows, [block[0][0] for block in blocks])


def text_tables(folder: Path) -> dict[str, Table]:
    """Of a folder of documents, a file each, perhaps within `train`, `validation` and `test`; empty where there are
    none. Files that are named as splits are no documents.

    Raises:
        DataError: a file is no text.
    """
    documents = _documents(folder)
    if documents and not any(file.stem.lower() in _PARTS for file in documents):
        return {"train": _of_documents(folder, documents)}
    within = {part.name: files for part in sorted(folder.iterdir()) if part.is_dir() and (files := _documents(part))}
    return {part: _of_documents(folder / part, files) for part, files in within.items() if part.lower() in _PARTS}


def _documents(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() == TEXT_SUFFIX and file.is_file())


def _of_documents(folder: Path, files: Sequence[Path]) -> Table:
    texts = [decode(shown(file, LONGEST_PATH), file.read_bytes()).strip() for file in files]
    rows = [{"text": text} for text in texts if text]
    name, n_empty = shown(folder, LONGEST_PATH), len(texts) - len(rows)
    left_out = f", {n_empty} empty ones apart" if n_empty else ""
    notes = (f"{name}: {len(rows):,} files, each a text of its own{left_out}",)
    return Table(name, ("text",), rows, [n for n, text in enumerate(texts, start=1) if text], "file", notes=notes)


def _blocks(text: str) -> Iterator[list[Line]]:
    """The lines of each paragraph."""
    lines = enumerate((line.removesuffix("\r") for line in text.split("\n")), start=1)
    for is_blank, block in groupby(lines, key=lambda line: not line[1].strip()):
        if not is_blank:
            yield list(block)


def _sentences(blocks: Iterable[list[Line]]) -> Iterator[list[Line]]:
    for block in blocks:
        if words := [line for line in block if not line[1].startswith(_DOCUMENT)]:
            yield words


def _splitter(blocks: Sequence[Sequence[Line]]) -> Callable[[str], list[str]]:
    """Cuts a line into its columns: at tabs alone where there are any, so that words may hold blanks."""
    at_tabs = bool(blocks) and "\t" in blocks[0][0][1]
    return lambda line: [field.strip() for field in line.split("\t")] if at_tabs else _BLANKS.split(line.strip(" \t"))


def _holds_entities(blocks: Sequence[list[Line]]) -> bool:
    lines = [_BLANKS.split(line.strip(" \t")) for block in _sentences(blocks) for _, line in block]
    return all(len(fields) > 1 for fields in lines) and is_iob([fields[-1] for fields in lines])
