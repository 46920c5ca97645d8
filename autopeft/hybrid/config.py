"""The PEFT config of a hybrid adapter: an architecture, as JSON, and little else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig
from peft.utils.constants import DUMMY_TARGET_MODULES

from autopeft.errors import ConfigError
from autopeft.space.architecture import Architecture
from autopeft.space.site_map import NO_SITE_MAP, SiteMap

PEFT_TYPE = "AUTOPEFT"


@dataclass
class HybridConfig(PeftConfig):
    """Config for `get_peft_model`; survives `adapter_config.json`.

    Raises:
        ConfigError: the architecture is malformed, or a field has a value that is not allowed.
    """

    architecture: Any = field(default_factory=dict)
    """An `Architecture` or its JSON; kept as canonical JSON."""
    dropout: float = 0.0
    """Probability with which inputs of LoRA and bottleneck adapters are dropped in training, 0 <= dropout < 1."""
    base_fingerprint: str | None = None
    """`Anatomy.fingerprint` of the model it was made for; where it is given, other models are refused."""
    site_map: Any = None
    """A `SiteMap` or its JSON, where the model's sites are not recognised; kept as JSON."""
    is_stored: bool = False
    """Set in saved configs: parts that only help training (the MLP of a prefix) are not there any more."""
    modules_to_save: list[str] | None = None
    """Modules that train and are saved whole, like the task head (with a task type PEFT adds it)."""
    target_modules: list[str] | str | None = None
    """Always None: the architecture says where. PEFT reads the field."""
    exclude_modules: list[str] | str | None = None
    """Always None, as `target_modules`."""
    target_parameters: list[str] | None = None
    """Always None, as `target_modules`."""

    def __post_init__(self) -> None:
        from autopeft.hybrid.registration import peft_type

        super().__post_init__()
        self.peft_type = peft_type()
        problems = []
        for name in ("target_modules", "exclude_modules", "target_parameters"):
            if getattr(self, name) not in (None, [], DUMMY_TARGET_MODULES):
                problems.append(f"{name}: must not be set, the architecture says where modules stand")
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            problems.append(f"dropout: must be >= 0 and < 1, got {self.dropout!r}")
        if isinstance(self.site_map, SiteMap):
            self.site_map = self.site_map.to_json()
        try:
            self.parsed_site_map()
        except ValueError as error:
            problems.append(f"site_map: {error}")
        try:
            self.architecture = self._parsed().to_json()
        except ConfigError as error:
            problems += error.problems
        if problems:
            raise ConfigError(problems)

    def _parsed(self) -> Architecture:
        given = self.architecture
        if isinstance(given, Architecture):
            return given
        if isinstance(given, Mapping) and not given:
            raise ConfigError(["architecture: is missing; for the task head alone give Architecture()"])
        return Architecture.from_json(given)

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """As in PEFT; what is saved `is_stored`."""
        was, self.is_stored = self.is_stored, True
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.is_stored = was

    def parsed_site_map(self) -> SiteMap:
        """The site map as a value; the empty one where none is given."""
        return NO_SITE_MAP if self.site_map is None else SiteMap.model_validate(self.site_map)

    def parsed_architecture(self) -> Architecture:
        """The architecture as a value."""
        return self._parsed()
