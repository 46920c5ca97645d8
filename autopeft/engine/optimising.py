"""What a trial optimises and how: its settings, the parameters that train, their learning rates."""

import math
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn

from autopeft.engine.recipe import ModuleTraining, TrainingSpec, TrialRecipe
from autopeft.engine.shared_model import is_of_head
from autopeft.engine.trial import NotFiniteError, TrialJob
from autopeft.errors import ConfigError
from autopeft.hybrid.layers import kinds_of_parameters

SHARED = ("max_length", "eval_batch_size", "micro_batch_size", "precision")
"""Fields of the training that all trials have in common, since they share what is made with them."""


def training_of(recipe: TrialRecipe, job: TrialJob) -> TrainingSpec:
    """The recipe's training with what the job changes.

    Raises:
        ConfigError: unknown fields, values that are not allowed, or fields that trials share.
    """
    problems = [f"training.{name}: is the same for all trials" for name, _ in job.training if name in SHARED]
    try:
        spec = TrainingSpec.model_validate(recipe.training.with_changes(dict(job.training)))
    except ValidationError as error:
        problems += [f"training.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    if problems:
        raise ConfigError(problems)
    return spec


def rate_at(step: int, n_steps: int, warmup_fraction: float) -> float:
    """The learning rate at `step`, from 1, as a share of its peak: up from 0 in the warm-up, then down to almost 0."""
    warmup = int(warmup_fraction * n_steps)
    return step / warmup if step <= warmup else (n_steps - step + 1) / (n_steps - warmup)


def trained_of(adapted: nn.Module) -> list[nn.Parameter]:
    """What trains of an adapted model."""
    return [parameter for parameter in adapted.parameters() if parameter.requires_grad]


_LORA_B = ".autopeft_lora_B."


def parameter_groups(adapted: nn.Module, spec: TrainingSpec) -> list[dict[str, Any]]:
    """What trains, in groups for AdamW, each with its `peak` learning rate; vectors (biases, norms) do not decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    kinds = kinds_of_parameters(adapted) if spec.modules else {}
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            own = spec.modules.get(kinds.get(parameter, ""), ModuleTraining())
            its_rate = spec.head_learning_rate if is_of_head(name) else own.learning_rate
            peak = spec.learning_rate if its_rate is None else its_rate
            if _LORA_B in name:
                peak *= spec.lora_plus_ratio
            its_decay = spec.weight_decay if own.weight_decay is None else own.weight_decay
            decay = its_decay if parameter.dim() >= 2 else 0.0
            groups.setdefault((peak, decay), []).append(parameter)
    return [{"params": group, "peak": peak, "weight_decay": decay} for (peak, decay), group in groups.items()]


def refuse_not_finite(loss: Tensor, step: int) -> None:
    """
    Raises:
        NotFiniteError: the loss is NaN or infinite.
    """
    if not math.isfinite(value := float(loss)):
        raise NotFiniteError(f"the loss is {value} at step {step}; is the learning rate too high?")
