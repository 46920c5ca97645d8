"""A user's own names for the sites of a model, as YAML, where its layers or roles are not recognised.

version: 1
stacks: {decoder: transformer.blocks}
attention: attn
roles: {attn.q: attn.wq, attn.k: attn.wk, attn.v: attn.wv, attn.o: attn.proj, ffn.in: mlp.up, ffn.out: mlp.down}
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from autopeft.config import Frozen, load
from autopeft.errors import did_you_mean
from autopeft.space.anatomy import LINEAR_ROLES


class SiteMap(Frozen):
    """Where the layers of a model are, and what its modules are called within a layer."""

    version: Literal[1] = 1
    """Of this format."""
    stacks: Mapping[Literal["encoder", "decoder"], str] = Field(default_factory=dict)
    """Stack → end of the name of the `ModuleList` of its layers; the recognised ones where it is empty."""
    attention: str | None = None
    """The module that calls the attention function, within a layer; by default the one that holds q."""
    roles: Mapping[str, str] = Field(default_factory=dict)
    """Role → name of the linear map within a layer, `*` for any part; the recognised ones where it is empty."""
    prefix: bool | None = None
    """Whether prefix vectors reach the attention; by default as recognised."""

    @field_validator("roles")
    @classmethod
    def _known(cls, roles: Mapping[str, str]) -> Mapping[str, str]:
        problems = [
            f"unknown role '{role}'.{did_you_mean(role, LINEAR_ROLES)} Known: {', '.join(LINEAR_ROLES)}"
            for role in roles
            if role not in LINEAR_ROLES
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return roles

    def to_json(self) -> dict[str, Any] | None:
        """What files keep of it; None of the empty one."""
        return self.model_dump(mode="json") if self != NO_SITE_MAP else None

    def stack_of(self, list_name: str) -> str | None:
        """The stack whose layers the `ModuleList` of this name holds; None where it is none."""
        return next((s for s, end in self.stacks.items() if f".{list_name}".endswith(f".{end}")), None)

    def linears(self, names: Iterable[str]) -> dict[str, str]:
        """Role → the one of `names` that it matches; roles that match none or several are left out."""
        names, found = tuple(names), {}
        for role, pattern in self.roles.items():
            expression = re.escape(pattern).replace(r"\*", ".*")
            matches = [name for name in names if re.fullmatch(rf"(.*\.)?{expression}", name)]
            if len(matches) == 1:
                found[role] = matches[0]
        return found


NO_SITE_MAP = SiteMap()
"""Everything as recognised."""


def load_site_map(path: Path | str) -> SiteMap:
    """The map in a YAML file.

    Raises:
        ConfigError: everything that is wrong with the file.
    """
    return load(Path(path), SiteMap)


def find_site_map(path: Path | str | None) -> SiteMap:
    """The map in a file, the empty one where none is named.

    Raises:
        ConfigError: as `load_site_map`.
    """
    return NO_SITE_MAP if path is None else load_site_map(path)
