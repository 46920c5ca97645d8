"""Small models with every kind of field that the project's files have, and a way to load a text into them."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, model_validator

from autopeft.config import Frozen, load
from autopeft.errors import ConfigError


class Range(Frozen):
    low: int
    high: int

    @model_validator(mode="after")
    def _ordered(self) -> "Range":
        if self.low > self.high:
            raise ValueError(f"low <= high must hold, got low={self.low}, high={self.high}.")
        return self


class Steps(Frozen):
    kind: Literal["steps"] = "steps"
    milestones: tuple[int, ...] = ()


class Cosine(Frozen):
    kind: Literal["cosine"] = "cosine"
    cycles: float = 1.0


class Precision(Enum):
    single = "fp32"
    half = "bf16"


class Training(Frozen):
    learning_rate: float = Field(gt=0)
    """Peak learning rate, reached after the warm-up."""
    epochs: int = Field(default=3, ge=1, le=1000)
    shuffle: bool = True
    direction: Literal["maximize", "minimize"] = "maximize"
    precision: Precision = Precision.single
    schedule: Steps | Cosine = Cosine()
    decay: Annotated[Steps | Cosine, Field(discriminator="kind")] = Steps()


class Recipe(Frozen):
    version: Literal[1] = 1
    name: str | None = None
    training: Training
    text: tuple[str, ...] = ()
    rank: int | list[int] | Range = 8
    sites: dict[str, Range] = Field(default={})
    weights: dict[int, float] = Field(default={})


GOOD = "training: {learning_rate: 1e-4}\n"


def recipe(folder: Path, text: str, *overrides: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load(path, Recipe, overrides)


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    """The problems of a text, without the folder."""
    with pytest.raises(ConfigError) as caught:
        recipe(folder, text, *overrides)
    return [problem.replace(f"{folder}/", "") for problem in caught.value.problems]
