"""Architectures from whatever a user has: a spec, its JSON, its file, or an exported folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from autopeft.errors import AutopeftError, ConfigError, ExportError
from autopeft.export.migration import migrate
from autopeft.export.spec import SPEC_FILE, AdapterSpec
from autopeft.export.target import CONFIG_FILE
from autopeft.space.architecture import Architecture
from autopeft.space.site_map import NO_SITE_MAP, SiteMap

SpecSource = AdapterSpec | Architecture | Mapping[str, Any] | str | Path
"""A spec or an architecture, the JSON of either, or the path of a spec file or of an exported folder."""


@dataclass(frozen=True)
class Given:
    """An architecture, and the spec that it comes from where there is one."""

    architecture: Architecture
    spec: AdapterSpec | None
    name: str
    """For messages."""
    site_map: SiteMap = NO_SITE_MAP
    """Of the model that it was made for."""


def read_spec(source: SpecSource) -> Given:
    """
    Raises:
        ExportError: no such file, or it is neither a spec nor an architecture; says what is wrong first.
    """
    match source:
        case AdapterSpec():
            return Given(source.parsed_architecture, source, "spec", source.base_model.sites)
        case Architecture():
            return Given(source, None, "architecture")
        case str() | Path():
            path = _file(Path(source).expanduser())
            return _from_json(_read(path), str(path))
        case Mapping():
            return _from_json(source, "spec")
    raise ExportError(f"spec: expected a spec, its JSON or a path, got {type(source).__name__}")


def parse_spec(data: Any, name: str) -> AdapterSpec:
    """The spec in `data`, of any version; `name` is for messages.

    Raises:
        ExportError: not a spec.
    """
    if not isinstance(data, Mapping):
        raise ExportError(f"{name}: not an adapter spec: not a mapping")
    try:
        return AdapterSpec.model_validate_json(json.dumps(migrate(data)))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ExportError(f"{name}: not an adapter spec: {where}: {first['msg']}") from error
    except (AutopeftError, TypeError, ValueError) as error:
        raise ExportError(f"{name}: not an adapter spec: {error}") from error


def _from_json(data: Any, name: str) -> Given:
    if isinstance(data, Mapping) and "kind" not in data:
        bare = data.get("architecture") if data.get("peft_type") else data
        if data.get("peft_type") not in (None, "AUTOPEFT"):
            raise ExportError(f"{name}: an adapter of type {data['peft_type']}, with no {SPEC_FILE} beside it")
        if isinstance(bare, Mapping) and "placements" in bare:
            try:
                return Given(
                    Architecture.from_json(bare), None, name, SiteMap.model_validate(data.get("site_map") or {})
                )
            except (ConfigError, ValidationError) as error:
                raise ExportError(f"{name}: {error}") from error
    spec = parse_spec(data, name)
    return Given(spec.parsed_architecture, spec, name, spec.base_model.sites)


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in (SPEC_FILE, CONFIG_FILE):
        if (path / name).is_file():
            return path / name
    raise ExportError(f"{path}: neither {SPEC_FILE} nor {CONFIG_FILE} is in this folder")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ExportError(f"{path}: no such file. Write one with: autopeft export --target spec") from error
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path}: not JSON: {str(error)[:200]}") from error
