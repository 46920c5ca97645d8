"""From a YAML file, the files it includes and `--set` options to one validated model.

Precedence: option, then the file, then what it includes, the last of several first. Mappings are merged key by key;
everything else, lists too, is replaced whole.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from autopeft.config.parsing import MAX_BYTES, MAX_DEPTH, compose
from autopeft.config.tree import Node, Place, Problem, dotted, set_option
from autopeft.config.validation import validate
from autopeft.errors import ConfigError, did_you_mean

T = TypeVar("T", bound=BaseModel)

MAX_FILES = 32
MAX_PROBLEMS = 50


def load(path: str | Path, model: type[T], overrides: Sequence[str] = ()) -> T:
    """Read a YAML file into a model.

    `include` at the top level of a file names a sibling, or a list of them, relative to that file; `..` may stand in
    it, an absolute path may not. `overrides` are `key.key=value`, the value a YAML scalar, `[list]` or `{mapping}`; a
    key that contains dots stands in quotes.

    Raises:
        ConfigError: all problems of the file, of what it includes and of the overrides.
    """
    reading = Reading()
    root = reading.file(Path(path), Place(str(path), None), ())
    for override in overrides:
        option = reading.override(override)
        if root is not None and option is not None:
            root = merge(root, option)
    return reading.validated(root, model)


def rendered(problems: Sequence[Problem]) -> list[str]:
    """In the order of the files and lines, then of the options; none twice."""
    sources = list(dict.fromkeys(place.source for place, _, _ in problems if place.line))
    in_files = [problem for problem in problems if problem.place.line]
    in_files.sort(key=lambda problem: (sources.index(problem.place.source), problem.place.line))
    of_options = sorted((problem for problem in problems if not problem.place.line), key=str)
    lines = list(dict.fromkeys(map(str, [*in_files, *of_options])))
    rest = len(lines) - MAX_PROBLEMS
    return lines if rest <= 0 else [*lines[:MAX_PROBLEMS], f"… and {rest} more problems"]


def merge(base: Node, over: Node) -> Node:
    """`over` laid upon `base`; each value keeps its place, a mapping of both that in the file which is laid on top."""
    if not isinstance(base.value, dict) or not isinstance(over.value, dict):
        return over
    merged = dict(base.value)
    for key, node in over.value.items():
        merged[key] = merge(merged[key], node) if key in merged else node
    return Node(merged, over.place if over.place.line else base.place, base.refused or over.refused)


class Reading:
    """The problems of all texts of one `load`."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.is_incomplete = False
        """A part could not be read: what the rest lacks may stand there."""
        self.n_files = 0

    def file(self, path: Path, named_at: Place, includers: tuple[Path, ...]) -> Node | None:
        """The tree of a file with its includes; `named_at` is where it was asked for."""
        self.n_files += 1
        text = self.text(path, named_at)
        root = None if text is None else compose(text, str(path), self.problems)
        if root is None:
            self.is_incomplete = True
            return None
        if not isinstance(root.value, dict):
            if not root.refused:
                self.report(root.place, "must be a mapping (key: value). A file is not a single value or a list")
            self.is_incomplete = True
            return None
        own = dict(root.value)
        include = own.pop("include", None)
        merged = Node(own, root.place, root.refused)
        if include is None or include.refused:
            return merged
        below = Node({}, root.place)
        for name, place in self.included(include):
            if included := self.include(path, name, place, (*includers, path)):
                below = merge(below, included)
        return merge(below, merged)

    def included(self, include: Node) -> list[tuple[str, Place]]:
        entries = include.value if isinstance(include.value, list) else [include]
        names = [(entry.value, entry.place) for entry in entries if isinstance(entry.value, str)]
        if len(names) < len(entries) or not names:
            self.report(include.place, "must be a file name or a list of file names", "include")
            self.is_incomplete = True
        return names

    def include(self, includer: Path, name: str, place: Place, includers: tuple[Path, ...]) -> Node | None:
        path = includer.parent / name
        wrong = None
        if Path(name).is_absolute() or Path(name).suffix not in {".yaml", ".yml"}:
            wrong = f"must be a .yaml file relative to the folder of this one, got {name!r}"
        elif _same_file(path, includers):
            wrong = f"a file cannot include itself: {' → '.join(map(str, (*includers, path)))}"
        elif self.n_files >= MAX_FILES:
            wrong = f"over {MAX_FILES} files are included"
        if wrong:
            self.is_incomplete = True
            self.report(place, wrong, "include")
            return None
        return self.file(path, place, includers)

    def text(self, path: Path, named_at: Place) -> str | None:
        key = "include" if named_at.line else ""
        try:
            if not path.is_file():
                near = did_you_mean(path.stem, sorted(sibling.stem for sibling in path.parent.glob("*.yaml")))
                wrong = "is not a file{}" if path.exists() else f"no such file{{}}{near and '.' + near}"
                self.report(named_at, wrong.format(f": {path}" if key else ""), key)
                return None
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
            # A file over the limit is cut here, perhaps within a character, and refused for its length below.
            return content.decode("utf-8", "strict" if len(content) <= MAX_BYTES else "replace")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            wrong = f"not UTF-8 text (byte 0x{content[error.start]:02x}). Save the file as UTF-8"
            self.report(Place(str(path), line), wrong)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self.report(named_at, f"cannot be read{f': {path}' if key else ''}: {reason}", key)
        return None

    def override(self, text: str) -> Node | None:
        """`a.b=c` as the tree {a: {b: c}}."""
        keys, value = _split(text)
        place = set_option(dotted(keys) or repr(text[:60]))
        if not keys or len(keys) > MAX_DEPTH:
            self.report(place, "must have the form key=value, such as training.epochs=3")
            return None
        if keys[0] == "include":
            self.report(place, "include can stand only in a file")
            return None
        if not value.strip():
            self.report(place, "has no value. Write null for nothing, '' for empty text")
            return None
        found: list[Problem] = []
        node = compose(value, place.source, found)
        if node is not None and (wrong := _not_in_one_line(value, node)):
            found = [Problem(place, (), wrong)]
        self.problems += [Problem(place, (*keys, *problem.path), problem.text) for problem in found]
        if node is None or found:
            node = Node(None, place, refused=True)
        node = _at(node, place)
        for key in reversed(keys):
            node = Node({key: node}, place)
        return node

    def validated(self, root: Node | None, model: type[T]) -> T:
        """The model that `root` describes.

        Raises:
            ConfigError: all problems, those of reading and those of the values.
        """
        problems = list(self.problems)
        if root is not None and not self.is_incomplete:
            value, invalid = validate(root, model)
            if value is not None and not problems:
                return value
            problems += invalid
        raise ConfigError(rendered(problems))

    def report(self, place: Place, text: str, key: str = "") -> None:
        self.problems.append(Problem(place, (key,) if key else (), text))


def _same_file(path: Path, others: Sequence[Path]) -> bool:
    try:
        return path.resolve() in {other.resolve() for other in others}
    except (OSError, RuntimeError):  # a loop of links: reported when the file is opened
        return False


_SEGMENT = r"""(?:"[^"]*"|'[^']*'|[^.=\s"']+)"""
_OVERRIDE = re.compile(rf"({_SEGMENT}(?:\.{_SEGMENT})*)=(.*)", re.DOTALL)


def _split(override: str) -> tuple[tuple[str, ...], str]:
    """The keys and the text of the value; no keys: it has not the form `a.b=c`."""
    match = _OVERRIDE.fullmatch(override)
    if match is None:
        return (), ""
    return tuple(key.strip("\"'") for key in re.findall(_SEGMENT, match[1])), match[2]


def _not_in_one_line(value: str, node: Node) -> str | None:
    if "\n" in value.strip():
        return "the value must stand on one line, as text, [a, b] or {a: b}"
    if isinstance(node.value, dict | list) and value.strip()[0] not in "[{":
        return "a list is written [a, b], a mapping {a: b}, text with ': ' or a leading '- ' in quotes"
    if re.search(r"(^|\s)#", value) and (not isinstance(node.value, str) or "#" not in node.value):
        return "what follows a # is a comment. Put the text in quotes"
    return None


def _at(node: Node, place: Place) -> Node:
    if isinstance(node.value, dict):
        return Node({key: _at(child, place) for key, child in node.value.items()}, place, node.refused)
    if isinstance(node.value, list):
        return Node([_at(child, place) for child in node.value], place, node.refused)
    return Node(node.value, place, node.refused)
