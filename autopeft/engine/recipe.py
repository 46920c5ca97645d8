"""The YAML of a trial, as frozen values: which model, on which task, trained how.

Whatever the command line gives (`--model`, `--data`) stands over the recipe, so both may be left open here.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from autopeft.config import Frozen, load
from autopeft.engine.problem_names import METRICS_OF, ProblemName, check_metric
from autopeft.errors import did_you_mean
from autopeft.resources import find_yaml
from autopeft.space.modules import MODULES

__all__ = ["ModelSpec", "SplitNames", "TaskSpec", "TrainingSpec", "TrialRecipe", "load_recipe"]


def _listed(value: Any) -> Any:
    """`sentence` for `[sentence]`; a file's list comes here as it is, and only a tuple passes as a tuple."""
    match value:
        case str():
            return (value,)
        case list():
            return tuple(value)
        case _:
            return value


Name = Annotated[str, Field(min_length=1)]
TextColumns = Annotated[tuple[Name, ...], BeforeValidator(_listed, json_schema_input_type=Name | tuple[Name, ...])]


Quantisation = Literal["none", "int8", "nf4"]


class ModelSpec(Frozen):
    """The model that is adapted."""

    name: Name | None = None
    """A hub id, a folder, or `package:NAME` for a model that an installed package carries."""
    revision: Name | None = None
    """Branch, tag or commit of a hub model."""
    quantisation: Quantisation = "none"
    """Bits of a frozen weight, by bitsandbytes: int8 (its load_in_8bit), nf4 (load_in_4bit)."""


class SplitNames(Frozen):
    """Names of a hub data set's splits, or of the files in a folder."""

    train: Name
    """The rows that are learned from."""
    validation: Name | None = None
    """The rows that score a trial; or, where there is no test, the final result."""
    test: Name | None = None
    """The rows that the search never sees."""


class TaskSpec(Frozen):
    """The data set, the columns that matter, and the metric that the search maximises."""

    dataset: Name | None = None
    """A file, a folder, a hub id (`nyu-mll/glue`), or `docstrings`, the task that needs no download."""
    subset: Name | None = None
    """Configuration of a hub data set."""
    splits: SplitNames | None = None
    """Where the splits are not called train, validation (dev, valid, val) and test."""
    text: TextColumns | None = None
    """The column with the text, or the two of a pair; found by its name if left out."""
    choices: TextColumns | None = None
    """For multiple_choice: the column with the list of choices, or the columns that hold one each."""
    label: Name | None = None
    """The column with the label; found by its name if left out."""
    problem: ProblemName | None = None
    """What kind of task it is: `regression` for labels that are numbers on a scale; found from the data if left out."""
    metric: str | None = None
    """What the search is for; left out: the problem's first. `f1` is that of the second of two classes."""
    max_train_rows: int | None = Field(default=None, ge=2)
    """Train on this many rows only, drawn by the seed."""

    def resolved(self, problem: ProblemName) -> Self:
        """With the problem that was found, and its first metric where none is named.

        Raises:
            ValueError: the metric is not for this problem.
        """
        check_metric(self.metric_for(problem), problem)
        return self.model_copy(update={"problem": problem, "metric": self.metric_for(problem)})

    def metric_for(self, problem: ProblemName) -> str:
        """The metric that is named, or the problem's first."""
        return self.metric or METRICS_OF[problem][0]

    @field_validator("text")
    @classmethod
    def _one_or_two_columns(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and (len(value) not in {1, 2} or len(set(value)) < len(value)):
            raise ValueError(f"must be one column, or two different ones, got {list(value)}")
        return value

    @model_validator(mode="after")
    def _metric_of_the_problem(self) -> Self:
        if self.metric is not None:
            check_metric(self.metric, self.problem)
        if self.subset is not None and self.dataset is None:
            raise ValueError(f"subset {self.subset} of no dataset; give dataset too")
        return self


class ModuleTraining(Frozen):
    """What the modules of one kind have of their own; left out: as all others."""

    learning_rate: float | None = Field(default=None, gt=0, le=10)
    """Their peak learning rate, in place of `training.learning_rate`."""
    weight_decay: float | None = Field(default=None, ge=0, le=10)
    """Their decay, in place of `training.weight_decay`."""


class TrainingSpec(Frozen):
    """How one architecture is trained; the search may vary whatever the search space names."""

    epochs: int = Field(default=10, ge=1, le=10_000)
    """Passes over the train split, at most."""
    batch_size: int = Field(default=32, ge=1, le=65_536)
    """Examples per optimiser step."""
    micro_batch_size: int | None = Field(default=None, ge=1, le=65_536)
    """Examples of a step at a time; left out: all, or as many as fit into the memory. Results differ by rounding alone,
    and with `dropout` by its masks."""
    eval_batch_size: int = Field(default=128, ge=1, le=65_536)
    """Examples at a time where no gradient is needed; has no influence on results."""
    learning_rate: float = Field(default=1e-3, gt=0, le=10)
    """Peak learning rate, reached after `warmup_fraction` of the steps; falls to 0 linearly from there."""
    head_learning_rate: float | None = Field(default=None, gt=0, le=10)
    """Peak learning rate of the task head, which starts from random weights; left out: the same as `learning_rate`."""
    lora_plus_ratio: float = Field(default=1.0, gt=0, le=1000)
    """Learning rate of LoRA's B over that of its A (LoRA+, Hayou et al. 2024, advises 16); 1 is plain LoRA."""
    warmup_fraction: float = Field(default=0.06, ge=0, lt=1)
    """Share of all steps in which the learning rate rises from 0."""
    weight_decay: float = Field(default=0.0, ge=0, le=10)
    """AdamW's decay of adapter and head weights; biases and norms are spared."""
    modules: Mapping[str, ModuleTraining] = Field(default_factory=dict)
    """Kind of module → its own learning rate and decay: `{prefix: {learning_rate: 1.0e-2}}`."""
    max_length: int = Field(default=128, ge=8, le=1_000_000)
    """Tokens of a text or pair; longer ones are cut."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many epochs without a better metric; left out: never."""
    gradient_clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient of all trained weights together."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout within the adapters; the frozen model has none."""
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    """Of the frozen model; adapters stay in float32. `auto`: float32 (on GPUs by TF32 products, as `tf32`), unless
    bfloat16 is clearly faster; measured once for a study."""

    @field_validator("modules")
    @classmethod
    def _known_kinds(cls, value: Mapping[str, ModuleTraining]) -> Mapping[str, ModuleTraining]:
        for kind in value:
            if kind not in MODULES:
                raise ValueError(f"unknown module '{kind}'.{did_you_mean(kind, MODULES)} Known: {', '.join(MODULES)}")
        return value

    def with_changes(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """All fields as data, with these in their place; `modules.lora.learning_rate` is one of a kind's own."""
        data = self.content()
        for name, value in changes.items():
            inside, *path = name.split(".")
            if path and inside == "modules" and len(path) == 2:
                data.setdefault("modules", {}).setdefault(path[0], {})[path[1]] = value
            else:
                data[name] = value
        return data

    def content(self) -> dict[str, Any]:
        """What a study's identity hangs on: settings that came later only where they are used."""
        unused = {name for name in ("modules", "micro_batch_size") if not getattr(self, name)}
        return self.model_dump(mode="json", exclude=unused)


class TrialRecipe(Frozen):
    """What one trial trains."""

    version: Literal[1]
    """Version of this format."""
    title: str = ""
    """One line for lists."""
    source: str = ""
    """Paper or page that the recipe follows."""
    trials: int = Field(default=60, ge=1, le=1_000_000)
    """Completed trials of a search, where the user does not say."""
    model: ModelSpec = ModelSpec()
    task: TaskSpec = TaskSpec()
    training: TrainingSpec = TrainingSpec()


def load_recipe(name: str, overrides: Sequence[str] = ()) -> TrialRecipe:
    """The recipe of a YAML file or of a shipped name.

    Raises:
        UnknownNameError: no such file or shipped recipe.
        ConfigError: everything that is wrong with the file.
    """
    return load(find_yaml("trials", name), TrialRecipe, overrides)
