"""What a user may say about a search: flag = key of a config file = Python argument = `AUTOPEFT_*` variable."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from autopeft.config import Frozen, load_options
from autopeft.errors import UsageError


class SearchSettings(Frozen):
    """Settings of one search. Order of precedence: argument, environment, config file, default."""

    budget: str
    """Most stored adapter parameters, task head apart: 0.5% (of the base model), 500k, 1.2M or 300000."""
    max_trained: str | None = None
    """Most trained adapter parameters, in the forms of budget; no limit by default. More train than are stored where a
    part is dropped after training."""
    max_latency_overhead: str | None = None
    """Longest forward pass: 1.2 times the base model's, or 20% more; measured before training; no limit by default."""
    max_memory: str | None = None
    """Most memory of one training, such as 8GB or 800MB; measured before training; no limit by default."""
    model: str | None = None
    """Folder, hub id, or package:NAME of the base model; the recipe's by default."""
    data: str | None = None
    """Labelled data: a JSONL, CSV, TSV or Parquet file, a folder with train/validation/test, or a hub data set."""
    recipe: str | None = None
    """What one trial trains, a shipped name or a YAML file: `demo` without model and data, else `local`."""
    space: str = "hybrid"
    """What may be varied, a shipped name or a YAML file."""
    site_map: str | None = None
    """YAML file that says where the sites of a model are, where they are not recognised; as recognised by default."""
    sampler: str = "bo"
    """What proposes architectures: bo, random, tpe, gp, nsga2, evolution; optuna:NAME, optunahub:PACKAGE for others."""
    objective: Literal["score", "pareto"] = "score"
    """`score`: the best score within the budget; `pareto`: the best score for every number of stored parameters."""
    baselines: bool = True
    """Whether published configurations (LoRA, MAM, …), as large as the budget allows, are the first trials."""
    from_: tuple[str, ...] = Field(default=(), alias="from")
    """Run folders of earlier studies, of this task or another, whose trials the sampler learns from: bo, evolution."""
    cost_aware: bool = False
    """Whether improvement is weighed against the seconds that a trial takes: bo. Such a study is not repeatable."""
    pruner: Literal["none", "halving"] = "none"
    """halving: stop a trial that is not among the best after a part of its epochs; none: train all to their end."""
    first_rung: float = Field(default=0.25, gt=0, lt=1)
    """With pruner halving: the share of a trial's epochs, rounded up, after which it is first compared; then after
    twice as many, and so on."""
    first_rung_on: Literal["epochs", "rows"] = "epochs"
    """With pruner halving: rows trains each trial first on that share of the rows, with all epochs and a schedule of
    its own, and from the start again on all rows if it is among the best."""
    eta: int = Field(default=3, ge=2, le=100)
    """With pruner halving: the best 1/eta of the trials that have come so far go on."""
    trials: int | None = Field(default=None, ge=1, le=1_000_000)
    """Trials in all, complete or pruned, earlier runs of the study included; the recipe's by default."""
    time: str | None = None
    """Hours, minutes and seconds of training in all, such as 2h, 90m or 1h30m; no limit by default."""
    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Of the study; each trial's own seed follows from it and the trial's number."""
    run: str | None = None
    """The run folder; by default runs/ and a name made of data, model, space, budget and seed."""
    device: str = "auto"
    """Where to compute: cpu, cuda (all GPUs in turn), cuda:1, mps; auto: the GPUs where there are any, else the CPU."""
    workers: int | None = Field(default=None, ge=1, le=256)
    """Trials at a time, one process each: one a GPU, else up to four that share the cores. Proposals depend on it."""
    pack: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = "auto"
    """Trials that each worker trains together, in one forward pass; auto: 1 on a CPU, on a GPU by its size and the
    model's. Proposals depend on it as on workers."""
    ahead: int = Field(default=0, ge=0, le=256)
    """Trials proposed while all workers are busy, so that none waits for the sampler; each proposal then knows that
    many outcomes less."""
    trial_timeout: str | None = None
    """Longest a trial may take before it is stopped and counted as failed; no limit by default."""
    hang_after: str = "5m"
    """A worker that makes no progress for this long, and for 20 times as long as any before, is replaced; or never."""
    worker_memory: str | None = None
    """Most memory of a worker's process, such as 6GiB: one that holds more is replaced; no limit by default."""
    cache_memory: str | None = None
    """Memory for what the frozen layers give, so that trials need not compute it: 2GB, or 0 for none. All workers
    together; a quarter of the machine's by default."""
    cache_dtype: Literal["float32", "float16"] = "float32"
    """How they are kept: float16 takes half the memory, and losses differ in the fifth digit."""
    keep: int = Field(default=10, ge=1)
    """Of how many of the best trials the weights are kept; with objective pareto those of the front, too."""
    set: tuple[str, ...] = ()
    """key=value, changes to the recipe (training.epochs=3), or to the space (space.layers.groups=2)."""

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        return known_device(value)

    @field_validator("pack", mode="before")
    @classmethod
    def _number_of_digits(cls, value: object) -> object:
        return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value

    @field_validator("from_", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @field_validator("budget", "max_trained", "max_latency_overhead", mode="before")
    @classmethod
    def _number_as_text(cls, value: object) -> object:
        return str(value) if type(value) in (int, float) else value


def known_device(value: str) -> str:
    """
    Raises:
        ValueError: it is no device's name.
    """
    if re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", value, re.ASCII) is None:
        raise ValueError(f"{value[:40]!r} is not a device. Allowed: auto, cpu, cuda, cuda:0, mps")
    return value


def resolve_settings(
    given: Mapping[str, Any], config: str | Path | None = None, environ: Mapping[str, str] | None = None
) -> SearchSettings:
    """Settings from arguments (None = not given), `AUTOPEFT_*` variables, and a config file.

    Raises:
        ConfigError: an unknown key or a value that is not allowed, in any of them.
        UsageError: no budget is given.
    """
    environ = os.environ if environ is None else environ
    options = []
    for field_name, field in SearchSettings.model_fields.items():
        name = field.alias or field_name
        if text := environ.get(variable := f"AUTOPEFT_{name.upper()}"):
            options.append((variable, name, _value(text, field.annotation)))
    named = {name.removesuffix("_"): value for name, value in given.items() if value not in (None, ())}
    options += [(f"--{name.replace('_', '-')}", name, value) for name, value in named.items()]
    if config is None and not any(name == "budget" for _, name, _ in options):
        raise UsageError("give a budget, such as --budget 0.5% (of the base model's parameters), 500k or 300000")
    return load_options(SearchSettings, options, config)


def _value(text: str, annotation: Any) -> str | int | float | bool:
    """The text of a variable, as the number or truth value that its setting takes."""
    if annotation is bool and text in ("true", "false"):
        return text == "true"
    if annotation is float and re.fullmatch(r"\d*\.\d+", text, re.ASCII):
        return float(text)
    is_number = "int" in str(annotation) and text.isascii() and text.isdigit()
    return int(text) if is_number else text


_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", re.ASCII)


def parse_duration(option: str, text: str) -> float:
    """Seconds of `2h`, `90m`, `1h30m`, `45s`.

    Raises:
        UsageError: another form, or nothing above zero.
    """
    match = _DURATION.fullmatch(text)
    seconds = (
        sum(float(part or 0) * unit for part, unit in zip(match.groups(), (3600, 60, 1), strict=True)) if match else 0
    )
    if seconds <= 0:
        raise UsageError(f"--{option}: {text[:40]!r} is not a duration. Allowed: 2h, 90m, 45s, 1h30m")
    return float(seconds)
