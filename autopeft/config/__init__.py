"""Configuration files: YAML in, frozen and validated models out, every mistake with its file, line and key."""

from autopeft.config.dumping import json_schema, to_yaml
from autopeft.config.frozen import Frozen
from autopeft.config.loading import load
from autopeft.config.options import load_options
from autopeft.config.parsing import parse_yaml

__all__ = ["Frozen", "json_schema", "load", "load_options", "parse_yaml", "to_yaml"]
