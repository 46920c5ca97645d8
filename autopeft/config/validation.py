"""What pydantic finds wrong with a tree of values, as sentences that say what was given and what is allowed.

Pydantic reports a value that fits no member of a union once for each member, and puts the member's name into the
location. Here one mistake is one line: of the members, the one that the value was meant for is told apart by its kind
(number, list, mapping) and by how many of its keys are known.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import ErrorDetails

from autopeft.config.tree import KeyPath, Node, Problem, shortened
from autopeft.errors import UsageError, did_you_mean

T = TypeVar("T", bound=BaseModel)


def validate(root: Node, model: type[T]) -> tuple[T | None, list[Problem]]:
    """The model, or None and everything that is wrong."""
    try:
        # As JSON, where strictness means what a file can say: a list is good for a tuple, a name for an enum member.
        return model.model_validate_json(json.dumps(root.plain()), strict=True), []
    except UsageError as error:  # of a validator that calls the package: pydantic lets through what is no ValueError
        return None, [Problem(root.place, (), line) for line in str(error).splitlines()]
    except ValidationError as error:
        known = _KnownKeys(model)
        mistakes = [_mistake(root, known, details) for details in error.errors(include_url=False)]
        told_apart = _one_for_each_union(mistakes, 0)
        found = _without_echoes([_with_suggestion(root, mistake, known) for mistake in told_apart])
        return None, [problem for mistake in found if (problem := _problem(root, mistake)) is not None]


@dataclass(frozen=True)
class _Mistake:
    path: KeyPath
    """Keys and list indices; the last of them may be missing in the data."""
    members: tuple[tuple[int, str], ...]
    """Unions on the way: the length of the path to each, and the member that was tried."""
    kind: str
    text: str
    allowed: str
    """The kind of value that is wanted, if the mistake is the value's kind."""
    given: str
    suggestion: str = ""
    """The valid key that an unknown one resembles."""


def _mistake(root: Node, known: "_KnownKeys", details: ErrorDetails) -> _Mistake:
    """Pydantic's location, split into what stands in the data and the names of union members."""
    path: KeyPath = ()
    node: Node | None = root
    members: list[tuple[int, str]] = []
    last = len(details["loc"]) - 1
    for position, step in enumerate(details["loc"]):
        child = node.child(step) if node else None
        is_absent_key = details["type"] == "missing" and position == last
        if child is not None or is_absent_key or step in known.at(path):
            path, node = (*path, step), child
        elif step != "[key]":
            members.append((len(path), str(step)))
    allowed, given = _allowed_kind(details), _shown(details["input"])
    if details["type"] == "union_tag_invalid" and node and node.child(tag := details["ctx"]["discriminator"][1:-1]):
        path, given = (*path, tag), repr(details["ctx"]["tag"])
        allowed = " or ".join(details["ctx"]["expected_tags"].rsplit(", ", 1))
    text = f"must be {allowed}, got {given}" if allowed else _sentence(details, given)
    if details["loc"] and details["loc"][-1] == "[key]":
        text, allowed = f"the key {text}", ""
    return _Mistake(path, tuple(members), details["type"], text, allowed, given)


def _one_for_each_union(mistakes: Sequence[_Mistake], depth: int) -> list[_Mistake]:
    """Keep the mistakes of one member of each union, those below `depth` unions being told apart already."""
    unions: dict[KeyPath, dict[str, list[_Mistake]]] = {}
    kept: list[_Mistake] = []
    for mistake in mistakes:
        if len(mistake.members) <= depth:
            kept.append(mistake)
        else:
            length, member = mistake.members[depth]
            unions.setdefault(mistake.path[:length], {}).setdefault(member, []).append(mistake)
    for path, members in unions.items():
        tried = [_one_for_each_union(found, depth + 1) for found in members.values()]
        of_its_kind = [found for found in tried if not all(one.allowed and one.path == path for one in found)]
        closest = min(map(_strangeness, of_its_kind), default=None)
        best = [found for found in of_its_kind if _strangeness(found) == closest] or tried
        if best is tried or all(len(found) == 1 and found[0].allowed for found in best):
            kept += _joined([one for found in best for one in found])
        else:
            kept += best[0]
    return kept


def _strangeness(mistakes: list[_Mistake]) -> tuple[int, int, int]:
    """How little a value resembles a member of a union: wrong tags, unknown keys, mistakes in all."""
    tags = sum(one.kind in {"literal_error", "enum"} for one in mistakes)
    return tags, sum(one.kind == "extra_forbidden" for one in mistakes), len(mistakes)


def _joined(mistakes: list[_Mistake]) -> list[_Mistake]:
    """One mistake for each path, with all that is allowed there."""
    joined: dict[KeyPath, _Mistake] = {}
    for one in mistakes:
        first = joined.setdefault(one.path, one)
        if one.allowed not in first.allowed:
            allowed = f"{first.allowed} or {one.allowed}"
            joined[one.path] = replace(first, allowed=allowed, text=f"must be {allowed}, got {one.given}")
    return list(joined.values())


def _with_suggestion(root: Node, mistake: _Mistake, known: "_KnownKeys") -> _Mistake:
    if mistake.kind == "extra_forbidden":
        allowed = known.at(mistake.path[:-1], root)
        near = did_you_mean(str(mistake.path[-1]), sorted(allowed))
        listed = f" Allowed: {shortened(', '.join(sorted(allowed)), 200)}" if allowed else ""
        suggestion = near.removeprefix(" Did you mean '").removesuffix("'?")
        return replace(mistake, text=f"unknown key.{near or listed}", suggestion=suggestion)
    names = re.findall(r"'([^']*)'", mistake.allowed)
    if names and mistake.given.startswith("'"):
        return replace(mistake, text=f"{mistake.text}.{did_you_mean(mistake.given[1:-1], names)}".removesuffix("."))
    return mistake


def _without_echoes(mistakes: Sequence[_Mistake]) -> list[_Mistake]:
    """Without the required key that is missing because it is misspelt, and with one mistake for each path."""
    misspelt = {(*one.path[:-1], one.suggestion) for one in mistakes if one.suggestion}
    found = [one for one in mistakes if not (one.kind == "missing" and one.path in misspelt)]
    return list({one.path: one for one in reversed(found)}.values())


def _problem(root: Node, mistake: _Mistake) -> Problem | None:
    """At the innermost value that exists; None where the reader has reported this value already."""
    node = root
    for step in mistake.path:
        if node.refused or (child := node.child(step)) is None:
            break
        node = child
    return None if node.refused else Problem(node.place, mistake.path, mistake.text)


_KINDS = (
    ("a whole number", ("int_type", "int_parsing", "int_from_float", "int_parsing_size")),
    ("a number", ("float_type", "float_parsing")),
    ("true or false", ("bool_type", "bool_parsing")),
    ("text", ("string_type", "string_sub_type")),
    ("a list", ("list_type", "tuple_type", "set_type", "frozen_set_type", "iterable_type")),
    ("a mapping (key: value)", ("dict_type", "mapping_type", "model_type", "model_attributes_type", "dataclass_type")),
    ("null", ("none_required",)),
)
_KIND_OF_ERROR = {error: kind for kind, errors in _KINDS for error in errors}
_SENTENCES = {
    "missing": "required key is missing",
    "finite_number": "must be a finite number, got {given}",
    "greater_than": "must be above {gt}, got {given}",
    "greater_than_equal": "must be at least {ge}, got {given}",
    "less_than": "must be below {lt}, got {given}",
    "less_than_equal": "must be at most {le}, got {given}",
    "multiple_of": "must be a multiple of {multiple_of}, got {given}",
    "string_too_short": "must have at least {min_length} characters, got {given}",
    "string_too_long": "must have at most {max_length} characters, got {given}",
    "string_pattern_mismatch": "must be text of the form {pattern}, got {given}",
    "too_short": "must have at least {min_length} entries, got {actual_length}",
    "too_long": "must have at most {max_length} entries, got {actual_length}",
    "union_tag_not_found": "must be a mapping with the key {discriminator}, got {given}",
}


def _allowed_kind(details: ErrorDetails) -> str:
    if details["type"] in {"literal_error", "enum"}:
        return str(details["ctx"]["expected"])
    return _KIND_OF_ERROR.get(details["type"], "")


def _sentence(details: ErrorDetails, given: str) -> str:
    context = {name: _shown_limit(limit) for name, limit in details.get("ctx", {}).items()}
    if details["type"] in {"value_error", "assertion_error"}:
        return str(context["error"])
    if template := _SENTENCES.get(details["type"]):
        return template.format(**context, given=given)
    text = re.sub(r"^(Input|Value) should ", "must ", details["msg"])
    return f"{text}, got {given}" if text.startswith("must ") else text


def _shown_limit(limit: Any) -> Any:
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return f"a mapping with {shortened(', '.join(map(str, value)), 60)}" if value else "an empty mapping"
    return shortened(f"the list {value!r}" if isinstance(value, list) else repr(value), 60)


@lru_cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """Empty for a type that JSON schema cannot describe: no suggestions."""
    try:
        return model.model_json_schema()
    except PydanticUserError:
        return {}


class _KnownKeys:
    """The keys that a model allows at a path, by its JSON schema: those of all members of a union."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.schema = _schema(model)

    def at(self, path: KeyPath, root: Node | None = None) -> set[str]:
        """With `root`, without the members whose tags differ from what stands there."""
        schemas = self._members([self.schema])
        for step in path:
            schemas = self._members(child for schema in schemas for child in _children(schema, step))
            root = root and root.child(step)
        if root:
            schemas = [schema for schema in schemas if _tags_agree(schema, root)] or schemas
        return {key for schema in schemas for key in schema.get("properties", {})}

    def _members(self, schemas: Iterable[Any]) -> list[dict[str, Any]]:
        """The schemas themselves, references followed and unions opened."""
        waiting, found = [schema for schema in schemas if isinstance(schema, dict)], []
        while waiting:
            schema = waiting.pop()
            if schema in found:
                continue
            found.append(schema)
            waiting += [member for union in ("anyOf", "oneOf", "allOf") for member in schema.get(union, [])]
            if "$ref" in schema:
                waiting.append(self.schema["$defs"][schema["$ref"].rpartition("/")[2]])
        return found


def _tags_agree(schema: dict[str, Any], node: Node) -> bool:
    tags = {key: field["const"] for key, field in schema.get("properties", {}).items() if "const" in field}
    return all((given := node.child(key)) is None or given.value == tag for key, tag in tags.items())


def _children(schema: dict[str, Any], step: str | int) -> list[Any]:
    if isinstance(step, str):
        named = schema.get("properties", {})
        return [named[step] if step in named else schema.get("additionalProperties")]
    numbered = schema.get("prefixItems", [])
    return [numbered[step] if step < len(numbered) else schema.get("items")]
