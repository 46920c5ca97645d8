"""Settings from several sources laid over one another, each mistake named after the source it came from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from autopeft.config.loading import Reading, merge
from autopeft.config.tree import Node, Place

T = TypeVar("T", bound=BaseModel)


def load_options(model: type[T], options: Sequence[tuple[str, str, Any]], path: str | Path | None = None) -> T:
    """The model made of a YAML file, if there is one, and `(source, key, value)` options, the last of which wins.

    Raises:
        ConfigError: all problems of the file and of the options, each with its file and line or its source.
    """
    reading = Reading()
    root: Node | None = Node({}, Place("the command line", None))
    if path is not None:
        root = reading.file(Path(path), Place(str(path), None), ())
    for source, key, value in options:
        place = Place(source, None)
        root = root and merge(root, Node({key: _node(value, place)}, place))
    return reading.validated(root, model)


def _node(value: Any, place: Place) -> Node:
    if isinstance(value, Mapping):
        return Node({str(key): _node(child, place) for key, child in value.items()}, place)
    if isinstance(value, list | tuple):
        return Node([_node(child, place) for child in value], place)
    return Node(value, place)
