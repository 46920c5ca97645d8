"""A model as YAML that `load` reads back, and as a JSON schema."""

import sys
from typing import Any

import yaml
from pydantic import BaseModel

from autopeft.config.parsing import parse_yaml
from autopeft.config.scalars import resolve

JSON_SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def to_yaml(model: BaseModel) -> str:
    """A resolved config, defaults included: `load` of this text gives an equal model.

    Raises:
        ConfigError: a value that no config file can hold: NaN, infinity, an integer over 64 bits, text with a NUL.
    """
    data = model.model_dump(mode="json", by_alias=True, round_trip=True)
    text = yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=sys.maxsize
    )
    parse_yaml(text, type(model).__name__)
    return text


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a resolved config; the docstring under a field is its description."""
    return {"$schema": JSON_SCHEMA_DIALECT, **model.model_json_schema()}


class _Dumper(yaml.SafeDumper):
    """Writes what YAML 1.1 and 1.2 readers agree on."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def serialize(self, node: yaml.Node) -> None:
        if isinstance(node, yaml.MappingNode) and node.value:
            node.flow_style = False  # the root: one key a line, even where all values are scalars
        super().serialize(node)


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML quotes what YAML 1.1 reads as something else (no, 12:30); what only 1.2 does (1e-5) is quoted here.
    # Double quotes escape all that is not printable, and keep line breaks as they are.
    if not text.isprintable():
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
    try:
        is_text = isinstance(resolve(text), str)
    except ValueError:
        is_text = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_text else "'")


_Dumper.add_representer(str, _text)
