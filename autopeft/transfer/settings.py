"""What a user may say about training a found architecture: flag = Python argument."""

from pydantic import Field, field_validator

from autopeft.config import Frozen
from autopeft.study.settings import known_device


class TrainSettings(Frozen):
    """Settings of `autopeft train`."""

    spec: str
    """An adapter spec, or a folder that `autopeft export` wrote."""
    model: str | None = None
    """Folder, hub id, or package:NAME; the spec's base model by default."""
    data: str | None = None
    """Labelled data, as for a search; the data set of the recipe by default."""
    recipe: str | None = None
    """How to train, a shipped name or a YAML file; by default as the search did that found the spec."""
    site_map: str | None = None
    """YAML file that says where the sites of the model are; the spec's, where it fits, by default."""
    seeds: int = Field(default=1, ge=1, le=1000)
    """Trainings in all, with consecutive seeds; earlier runs in the same folder count."""
    seed: int = Field(default=0, ge=0, le=2**31)
    """The first of them."""
    out: str | None = None
    """Folder to write; by default runs/ and a name made of spec, data and model."""
    device: str = "auto"
    """Where to compute: cpu, cuda (all GPUs in turn), cuda:1, mps; auto: the GPUs where there are any, else the CPU."""
    workers: int = Field(default=1, ge=1, le=256)
    """Trainings at a time, one process each."""
    set: tuple[str, ...] = ()
    """key=value, changes to the recipe (training.epochs=3)."""

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        return known_device(value)
