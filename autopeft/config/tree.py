"""Values that know where they were written, and problems that say so."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

KeyPath: TypeAlias = tuple[str | int, ...]
Scalar: TypeAlias = str | int | float | bool | None


class Place(NamedTuple):
    """Where a value was written."""

    source: str
    """A file as the user named it, or `--set key`."""
    line: int | None
    """Counts from 1; None for an option of the command line."""

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


class Problem(NamedTuple):
    """One mistake, rendered as `file:line: dotted.key: what is wrong`."""

    place: Place
    path: KeyPath
    text: str

    def __str__(self) -> str:
        key = dotted(self.path)
        source = self.place.source.replace("-", "_")
        is_option = self.place.line is None and source in {f"__{key}", f"__set {key}", f"AUTOPEFT_{key.upper()}"}
        return ": ".join([str(self.place), *([key] if key and not is_option else []), self.text])


@dataclass(frozen=True, slots=True)
class Node:
    """A value and its place; for the value of a mapping, the place of its key."""

    value: "dict[str, Node] | list[Node] | Scalar"
    place: Place
    refused: bool = False
    """A problem is reported already: nothing more is to be said about this value."""

    def child(self, step: str | int) -> "Node | None":
        if isinstance(self.value, dict):
            return self.value.get(str(step))
        if isinstance(self.value, list) and isinstance(step, int) and 0 <= step < len(self.value):
            return self.value[step]
        return None

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def walk(self, path: KeyPath = ()) -> "Iterator[tuple[KeyPath, Node]]":
        """This value and all within it, each with its path."""
        yield path, self
        if isinstance(self.value, dict):
            for key, child in self.value.items():
                yield from child.walk((*path, key))
        elif isinstance(self.value, list):
            for index, child in enumerate(self.value):
                yield from child.walk((*path, index))


def set_option(key: str) -> Place:
    """The place of what `--set key=…` gave."""
    return Place(f"--set {key}", None)


def dotted(path: KeyPath) -> str:
    """A path as a reader and `--set` write it: `a.b[2].'attn.q'`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            plain = step.isprintable() and not set(step) & set(" .:='\"[]") and 0 < len(step) <= 60
            text += ("." if text else "") + (step if plain else repr(shortened(step, 60)))
    return text


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
