"""What an export target is, and what several of them need."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autopeft.errors import ExportError
from autopeft.export.spec import SPEC_FILE, AdapterSpec
from autopeft.resources import atomic_write

if TYPE_CHECKING:
    from autopeft.engine.problems import Problem
    from autopeft.space.anatomy import Anatomy

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Target:
    """One way out."""

    title: str
    write: Callable[[Path, AdapterSpec, Path], None]
    """(folder of the trial's adapter, spec, empty folder to fill); raises ExportError for what it cannot hold."""


def weights_of(source: Path, spec: AdapterSpec) -> Path:
    """`source`, if the adapter's weights are there.

    Raises:
        ExportError: they are not.
    """
    if not all((source / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE)):
        raise ExportError(
            f"the weights of trial {spec.evidence.trial} were not kept (only those of the best trials are: --keep). "
            "Its architecture can be exported with --target spec or init"
        )
    return source


def write_spec(source: Path, spec: AdapterSpec, folder: Path) -> None:
    """autopeft_spec.json alone."""
    atomic_write(folder / SPEC_FILE, spec.to_text())


def problem_of(spec: AdapterSpec) -> "Problem":
    """What kind of task the adapter was trained for; classification in specs that do not say."""
    from autopeft.engine.problems import PROBLEMS

    name = dict(spec.recipe.get("task", {})).get("problem") or "classification"
    if name not in PROBLEMS:
        raise ExportError(f"the spec is for a problem '{name}', which this version does not know")
    return PROBLEMS[name](spec.task.labels)


def refuse_other_problems(spec: AdapterSpec, target: str, *held: str) -> None:
    """
    Raises:
        ExportError: the adapter is not for one of the problems that `target` holds.
    """
    name = problem_of(spec).name
    if name not in held:
        raise ExportError(
            f"{target} holds {' and '.join(held)}, the adapter is for {name}. Use --target autopeft, and in your own "
            "code autopeft.load or autopeft.apply"
        )


def causal_anatomy(spec: AdapterSpec, target: str) -> "Anatomy":
    """The base model's anatomy.

    Raises:
        ExportError: the base is not causal, and `target` trains language models.
        ModelError: its config cannot be read.
    """
    from autopeft.engine.models import load_anatomy

    anatomy = load_anatomy(spec.base_model.name, spec.base_model.revision, spec.base_model.sites)
    if not anatomy.is_causal or len(anatomy.stacks) != 1:
        raise ExportError(
            f"{target} trains causal language models, {spec.base_model.name} is a {anatomy.model_type}. "
            "Use --target trainer, or train the spec on a causal model first: autopeft train --spec … --model …"
        )
    return anatomy
