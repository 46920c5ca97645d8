"""YAML text as plain data in which every value knows its file and line.

PyYAML scans and parses; its YAML 1.1 resolver and its constructors, which can run code, are not used. Keys are always
text. Tags, anchors, aliases, merge keys, directives and further documents are refused.
"""

import re
from dataclasses import replace
from typing import Any, NoReturn

from yaml import YAMLError
from yaml.error import Mark, MarkedYAMLError
from yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    StreamEndEvent,
    StreamStartEvent,
)
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.scanner import Scanner

from autopeft.config.scalars import resolve
from autopeft.config.tree import KeyPath, Node, Place, Problem, shortened
from autopeft.errors import ConfigError

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_VALUES = 20_000
"""Keeps the slowest file that is accepted at about a second."""


def parse_yaml(text: str, source: str) -> tuple[Any, dict[KeyPath, int]]:
    """The data of a YAML text and the line (from 1) of each key and list item; `()` is the line of the root.

    Raises:
        ConfigError: all problems of the text.
    """
    problems: list[Problem] = []
    root = compose(text, source, problems)
    if root is None or problems:
        raise ConfigError(map(str, problems))
    return root.plain(), {path: node.place.line or 1 for path, node in root.walk()}


_CONTROL = re.compile("[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_UNUSABLE_IN_TEXT = re.compile("[\0\ud800-\udfff]")


def compose(text: str, source: str, problems: list[Problem]) -> Node | None:
    """The tree of a YAML text; appends what is wrong to `problems`. None: it could not be read to the end."""
    reading = _Composer(source, problems)
    try:
        return reading.document(text)
    except _UnreadableError as error:
        problems.append(error.problem)
        return None


class _UnreadableError(Exception):
    """The rest of the text cannot be read."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class _Events(Reader, Scanner, Parser):
    """The lower half of PyYAML in pure Python: the same events and marks on every machine."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)


class _Composer:
    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.source = source
        self.problems = problems
        self.n_values = 0

    def document(self, text: str) -> Node:
        text = text.removeprefix("\ufeff")
        if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
            self.give_up(1, f"over {MAX_BYTES // 1024} KB. A config file is smaller")
        if found := _CONTROL.search(text):
            line = len(re.findall("\r\n|\r|\n", text[: found.start()])) + 1
            self.give_up(
                line, f"character U+{ord(found[0]):04X} is not allowed. In double quotes it can be written \\uXXXX"
            )
        self.events = _Events(text)
        self.next(StreamStartEvent)
        if self.peek(StreamEndEvent):
            self.give_up(1, "the file is empty. Write at least one `key: value`")
        start = self.next(DocumentStartEvent)
        if start.version not in {None, (1, 2)} or start.tags:
            self.report(start, (), "directives are not allowed, but for %YAML 1.2")
        root = self.node((), None)
        self.next(DocumentEndEvent)
        if not self.peek(StreamEndEvent):
            self.report(self.next(Event), (), "a second document starts here. A file holds one")
        return root

    def node(self, path: KeyPath, place: Place | None) -> Node:
        """The value that starts at the next event; `place` is that of its key, if it has one."""
        event = self.next(Event)
        place = place or self.place(event)
        self.n_values += 1
        if self.n_values > MAX_VALUES:
            self.give_up(place, f"over {MAX_VALUES} values. A config file is smaller")
        if isinstance(event, AliasEvent):
            self.report(event, path, f"aliases (*{event.anchor}) are not allowed. Write the value out, or use include")
            return Node(None, place, refused=True)
        refused = self.is_decorated(event, path)
        node = self.scalar(event, path, place) if isinstance(event, ScalarEvent) else self.container(event, path, place)
        return replace(node, refused=True) if refused else node

    def is_decorated(self, event: Any, path: KeyPath) -> bool:
        if event.anchor is not None:
            self.report(event, path, f"anchors (&{event.anchor}) are not allowed. Write the value out, or use include")
        if event.tag is not None:
            shown = event.tag.replace("tag:yaml.org,2002:", "!!")
            self.report(event, path, f"tags ({shortened(shown, 40)}) are not allowed. Text can be put in quotes")
        return event.anchor is not None or event.tag is not None

    def scalar(self, event: ScalarEvent, path: KeyPath, place: Place) -> Node:
        try:
            return Node(_text(event.value) if event.style else resolve(_text(event.value)), place)
        except ValueError as error:
            self.report(event, path, str(error))
            return Node(None, place, refused=True)

    def container(self, event: Event, path: KeyPath, place: Place) -> Node:
        if len(path) >= MAX_DEPTH:
            self.give_up(self.place(event), f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, MappingStartEvent):
            return Node(self.mapping(path), place)
        items: list[Node] = []
        while not self.peek(SequenceEndEvent):
            items.append(self.node((*path, len(items)), None))
        self.next(SequenceEndEvent)
        return Node(items, place)

    def mapping(self, path: KeyPath) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not self.peek(MappingEndEvent):
            event = self.upcoming()
            key = self.key(path)
            value = self.node(path if key is None else (*path, key), self.place(event))
            if key is None:
                continue
            if key in entries:
                first = entries[key].place.line
                self.report(event, (*path, key), f"key given twice, first on line {first}. Keep one of them")
            else:
                entries[key] = value
        self.next(MappingEndEvent)
        return entries

    def key(self, path: KeyPath) -> str | None:
        """The text of the next key, or None where it is none, which is reported."""
        event = self.upcoming()
        if not isinstance(event, ScalarEvent):
            self.report(event, path, "a key must be text. For a value with braces or brackets use quotes")
            self.node((*path, "?"), None)
            return None
        self.next(ScalarEvent)
        refused = self.is_decorated(event, path)
        if event.style is None and event.value in {"", "<<"}:
            wrong = "merge keys (<<) are not allowed. Use include" if event.value else "a key is missing before the ':'"
            self.report(event, path, wrong)
            return None
        try:
            return None if refused else _text(event.value)
        except ValueError as error:
            self.report(event, path, str(error))
            return None

    def peek(self, kind: type[Event]) -> bool:
        return isinstance(self.upcoming(), kind)

    def upcoming(self) -> Event:
        return self.parsed(self.events.peek_event)

    def next(self, kind: type[Event]) -> Any:
        event = self.parsed(self.events.get_event)
        assert isinstance(event, kind), event
        return event

    def parsed(self, step: Any) -> Event:
        try:
            event: Event = step()
        except MarkedYAMLError as error:
            mark: Mark | None = error.problem_mark or error.context_mark
            line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            self.give_up(line, f"not valid YAML at column {column}: {_syntax(error)}")
        except (YAMLError, ValueError, OverflowError) as error:  # chr() of an escape beyond Unicode, for instance
            self.give_up(self.events.line + 1, f"not valid YAML: {shortened(str(error), 80)}")
        return event

    def place(self, event: Event) -> Place:
        assert event.start_mark is not None
        return Place(self.source, event.start_mark.line + 1)

    def report(self, event: Event, path: KeyPath, text: str) -> None:
        self.problems.append(Problem(self.place(event), path, text))

    def give_up(self, place: Place | int, text: str) -> NoReturn:
        """End the reading with a problem at a place or a line."""
        where = Place(self.source, place) if isinstance(place, int) else place
        raise _UnreadableError(Problem(where, (), text))


def _text(text: str) -> str:
    if found := _UNUSABLE_IN_TEXT.search(text):
        raise ValueError(f"text must not contain the character U+{ord(found[0]):04X}")
    return text


def _syntax(error: MarkedYAMLError) -> str:
    problem = str(error.problem or error.context)
    if "'\\t'" in problem:
        return "a tab cannot indent or separate. Use spaces"
    if "cannot start any token" in problem:
        return f"{problem}. Put the text in quotes"
    if "mapping values are not allowed here" in problem:
        return "a second ': ' on the line, or a wrong indent. Put text with ': ' in quotes"
    return shortened(problem, 120)
