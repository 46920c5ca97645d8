"""Commands for the time before a search: a config to start from, and what a search would take."""

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autopeft.cli.shipped import space_figures
from autopeft.cli.text import duration
from autopeft.errors import AutopeftError, UsageError
from autopeft.resources import atomic_write
from autopeft.space.budget import ParameterBudget
from autopeft.study.plan import Plan
from autopeft.study.planning import bind_space, load_files, make_plan, resolve_task
from autopeft.study.settings import SearchSettings, resolve_settings

Report = tuple[str, Any]

_SHORT_PROBE = 2
"""Epochs of the probe: the first is slower than those that follow."""


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

# Stop trials that are not among the best after a quarter of their epochs, and so on
# pruner: halving
"""
    atomic_write(path, text)
    return f"wrote {out}\nnext  autopeft search --config {out}", {"config": out}


def run_estimate(given: Mapping[str, Any], config: str | None) -> Report:
    """Train one short trial with the real engine and say what a whole search would take; nothing is left behind.

    Raises:
        UsageError: whatever a search would refuse.
        AutopeftError: the probe failed, as a trial would.
    """
    settings = resolve_settings({**given, "budget": given.get("budget") or (None if config else "0.5%")}, config)
    plan = make_plan(settings)
    lines, figures = space_figures(plan.space, settings.budget)
    probe = _probe(plan)
    workers = plan.n_workers
    trial, n_trials = probe["seconds_per_trial"], plan.n_trials
    waves = -(-n_trials // workers)
    total = probe["seconds_to_open"] + waves * trial
    disk = settings.keep * probe["bytes_per_trial"] + n_trials * 4_096
    memory = probe["peak_memory_bytes"]
    lines += [
        f"trial    {duration(trial)} for at most {probe['epochs']} epochs (timed: {probe['probed_epochs']} of them)",
        f"search   {duration(total)} for {n_trials} trials, {workers} at a time; less where trials end early",
        f"memory   {memory * workers / 2**30:.2f} GB of {probe['device']} at the peak"
        if memory
        else "memory   unknown",
        f"disk     {disk / 2**20:.1f} MB for the weights of the {settings.keep} best trials and the study",
    ]
    data = {**figures, **probe, "trials": n_trials, "workers": workers, "total_seconds": total, "disk_bytes": disk}
    return "\n".join(lines), data


def _probe(plan: Plan) -> dict[str, Any]:
    """One trial of at most two epochs on a median architecture, and what the recipe's epochs would take."""
    import numpy as np

    from autopeft.engine.limits import NO_LIMITS
    from autopeft.engine.pool import Finished, Ready, WorkerPool, available_cores
    from autopeft.engine.training import TransformerBackend

    sampled = [plan.space.sample(np.random.default_rng(seed)) for seed in range(9)]
    point = sorted(sampled, key=lambda candidate: candidate.stored)[len(sampled) // 2]
    backend = plan.backend
    assert isinstance(backend, TransformerBackend)
    training = backend.recipe.training
    epochs = min(_SHORT_PROBE, training.epochs)
    recipe = backend.recipe.model_copy(update={"training": training.model_copy(update={"epochs": epochs})})
    threads = max(1, available_cores() // plan.n_workers)
    start = time.monotonic()
    opened, facts, result = 0.0, {}, None
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "probe"
        memory = replace(backend.cache, folder=backend.cache.folder and Path(folder) / "cache")
        with WorkerPool(replace(backend, recipe=recipe, limits=NO_LIMITS, cache=memory), threads=threads) as pool:
            pool.submit(replace(plan.job(0, point.architecture, point.training), folder=place))
            while result is None:
                for event in pool.wait():
                    if isinstance(event, Ready):
                        opened, facts = time.monotonic() - start, dict(event.facts)
                    elif isinstance(event, Finished):
                        result = event.result
        stored_bytes = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    if result.state == "failed":
        raise AutopeftError(f"the probe failed: {result.error}")
    done = [record.seconds for record in result.epochs]
    per_epoch = (done[-1] - done[-2]) if len(done) > 1 else done[-1]
    seconds = result.seconds + per_epoch * (training.epochs - len(done))
    return {
        "seconds_to_open": opened,
        "seconds_per_trial": seconds,
        "epochs": training.epochs,
        "probed_epochs": len(done),
        "probed_stored": point.stored,
        "peak_memory_bytes": result.peak_memory_bytes,
        "bytes_per_trial": stored_bytes,
        "device": facts.get("device", "cpu"),
    }
