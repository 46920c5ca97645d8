"""Commands for the time before a search: a config to start from, and what a search would take."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from autopeft.cli.shipped import space_figures
from autopeft.cli.text import duration
from autopeft.errors import UsageError
from autopeft.resources import atomic_write
from autopeft.space.budget import ParameterBudget
from autopeft.study.planning import bind_space, load_files, make_plan, resolve_task
from autopeft.study.probing import probe
from autopeft.study.settings import SearchSettings, resolve_settings

Report = tuple[str, Any]


def write_config(
    data: str | None, model: str | None, budget: str, space: str, site_map: str | None, out: str, force: bool
) -> Report:
    """A commented config for these data and this model, all of it checked before it is written.

    Raises:
        UsageError: data, model, budget or space are missing or wrong, or the file exists.
    """
    if data is None or model is None:
        raise UsageError("init: give --data and --model, such as --data train.jsonl --model bert-base-uncased")
    path = Path(out)
    if path.exists() and not force:
        raise UsageError(f"{out}: exists. Give another --out, or --force to replace it")
    settings = SearchSettings(budget=budget, model=model, data=data, space=space, site_map=site_map)
    recipe, spec, sites = load_files(settings)
    task = resolve_task(settings, recipe, sites)
    bound = bind_space(spec, task.anatomy, ParameterBudget.parse(budget))
    rows = ", ".join(f"{split} {len(split_rows):,}" for split, split_rows in task.data.splits.items())
    recipe = task.recipe
    labels = ", ".join(task.data.label_names[:6]) + (", …" if len(task.data.label_names) > 6 else "")
    columns = task.data.columns
    size = f"{task.anatomy.n_layers} layers, {task.anatomy.n_parameters:,} parameters"
    text = f"""\
# autopeft search --config {json.dumps(out)[1:-1]}
#
# Every key is also a flag: `--trials 20` overrides `trials: 20`. `autopeft check --config` looks at all of it.

# The base model: a folder, a hub id, or package:NAME; {size}
model: {json.dumps(model)}

# Where its sites are, if they are not recognised by name
{f"site_map: {json.dumps(site_map)}" if site_map else "# site_map: sites.yaml"}

# {rows} rows; {columns}
# {task.data.problem_name}: {f"labels {json.dumps(labels)}" if labels else task.data.problem.describe()}
data: {json.dumps(data)}

# Most stored adapter parameters: 0.5% of the base model, 500k, 1.2M or 300000. Here: {bound.budget:,}
budget: {json.dumps(budget)}

# Second budgets: parameters that train, time of a forward pass, memory of a training (the last two are measured)
# max_trained: 1M
# max_latency_overhead: 20%
# max_memory: 8GB

# What may be varied (autopeft ls spaces): {spec.title or space}
space: {json.dumps(space)}

# What one trial trains (autopeft ls recipes); change single values under `set`
recipe: local
set:
  - training.epochs={recipe.training.epochs}
  - training.learning_rate={recipe.training.learning_rate:g}
  - task.metric={recipe.task.metric}

# Trials in all, what proposes them, and the seed of all randomness
trials: {recipe.trials}
sampler: bo
seed: 0

# Stop trials that are not among the best third after a quarter of their epochs, or after half of them
# pruner: halving
"""
    atomic_write(path, text)
    return f"wrote {out}\nnext  autopeft search --config {out}", {"config": out}


def run_estimate(given: Mapping[str, Any], config: str | None) -> Report:
    """Train short trials with the real engine and say what a whole search would take; nothing is left behind.

    Raises:
        UsageError: whatever a search would refuse.
        AutopeftError: the probe failed, as a trial would.
    """
    settings = resolve_settings({**given, "budget": given.get("budget") or (None if config else "0.5%")}, config)
    plan = make_plan(settings)
    lines, figures = space_figures(plan.space, settings.budget)
    found = probe(plan)
    workers, n_trials = plan.n_workers, plan.n_trials
    share = plan.expected_cost(found.epochs)
    total = found.seconds_to_open + max(1.0, -(-n_trials // workers) * share) * found.seconds_per_trial
    if plan.seconds is not None:
        total = min(total, found.seconds_to_open + plan.seconds)
    disk = settings.keep * found.bytes_per_trial + n_trials * 4_096
    memory = found.peak_memory_bytes
    trial = f"{duration(found.seconds_per_trial)} for at most {found.epochs} epochs"
    less = "less where trials end early"
    if plan.halving is not None:
        less = f"with {100 * share:.0f}% of their training, as halving is expected to leave; {less}"
    parts = f"; batches in parts of {found.micro_batch_size}" if found.micro_batch_size else ""
    lines += [
        f"trial    {trial} (timed: {found.probed_epochs}, by {workers} at a time){parts}",
        f"search   {duration(total)} for {n_trials} trials, {workers} at a time, {less}",
        f"memory   {memory * workers / 2**30:.2f} GB of {found.device} at the peak" if memory else "memory   unknown",
        f"disk     {disk / 2**20:.1f} MB for the weights of the {settings.keep} best trials and the study",
    ]
    data = {
        **figures,
        **asdict(found),
        "trials": n_trials,
        "workers": workers,
        "expected_share": share,
        "total_seconds": total,
        "disk_bytes": disk,
    }
    return "\n".join(lines), data
