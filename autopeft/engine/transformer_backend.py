"""What a worker needs to train adapters on a transformer, as it is sent to its process."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from autopeft.engine.data import TaskData
from autopeft.engine.devices import choose_device, name_of
from autopeft.engine.limits import NO_LIMITS, Limits
from autopeft.engine.models import load_anatomy
from autopeft.engine.precision import allow_tf32, checked, measure_precision
from autopeft.engine.recipe import TrialRecipe
from autopeft.engine.reuse import DEFAULT_CACHE, CacheMemory
from autopeft.engine.shared_model import SharedModel, choose_dtype
from autopeft.engine.training import TransformerTrainer
from autopeft.errors import ModelError
from autopeft.space.modules import Scalar
from autopeft.space.site_map import NO_SITE_MAP, SiteMap


@dataclass(frozen=True)
class TransformerBackend:
    """What a worker needs to train on a task."""

    model: str
    """A folder, a hub id, or `package:NAME`."""
    revision: str | None
    recipe: TrialRecipe
    """Of its model only the quantisation is looked at."""
    data: TaskData
    limits: Limits = NO_LIMITS
    cache: CacheMemory = DEFAULT_CACHE
    """For what the frozen part of the model gives."""
    site_map: SiteMap = NO_SITE_MAP
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto: a GPU where there is one."""

    def __reduce__(self) -> tuple[type["TransformerBackend"], tuple[Any, ...]]:
        # A mapping proxy, as the data have for their splits, cannot be pickled.
        data = replace(self.data, splits=dict(self.data.splits))
        own = (self.model, self.revision, self.recipe, data, self.limits, self.cache, self.site_map, self.device)
        return type(self), own

    @property
    def is_settled(self) -> bool:
        return self.recipe.training.precision != "auto"

    def settle(self, worker: int = 0) -> Mapping[str, Scalar]:
        """The precision that suits the device and the model.

        Raises:
            ModelError: the model's config cannot be found or read.
            EnvironmentProblem: there is no such device.
        """
        device = choose_device(worker, self.device)
        precision, ratio = measure_precision(load_anatomy(self.model, self.revision, self.site_map), device)
        measured = {} if ratio is None else {"bfloat16_speed": round(ratio, 2)}
        return {"precision": precision, "device": name_of(device), **measured}

    def settled(self, choices: Mapping[str, object]) -> "TransformerBackend":
        """
        Raises:
            StudyCorruptError: `choices` are not of `settle`.
        """
        if self.is_settled:
            return self
        training = self.recipe.training.model_copy(update={"precision": checked(choices.get("precision"))})
        return replace(self, recipe=self.recipe.model_copy(update={"training": training}))

    def open(self, worker: int = 0) -> TransformerTrainer:
        """Load the model and tokenise the data.

        Raises:
            ModelError: the model cannot be found, read or adapted, or does not fit its tokeniser.
            EnvironmentProblem: the Python package that holds the model is not installed.
        """
        device = choose_device(worker, self.device)
        allow_tf32(self.recipe.training.precision, device)
        base = SharedModel.load(
            self.model,
            self.revision,
            problem=self.data.problem,
            device=device,
            dtype=choose_dtype(device, self.recipe.training.precision),
            site_map=self.site_map,
            quantisation=self.recipe.model.quantisation,
        )
        longest = min(self.recipe.training.max_length, base.max_tokens)
        splits = {name: base.encode(split, longest) for name, split in self.data.splits.items()}
        n_known = base.n_known_tokens
        if (n_used := max(int(split.tokens.max()) for split in splits.values()) + 1) > n_known:
            raise ModelError(
                f"{self.model}: its tokeniser gives token {n_used - 1}, the model knows {n_known:,} tokens"
            )
        return TransformerTrainer(base, self.recipe, splits, self.limits, self.cache)
