"""The commands. Each parses, calls one function, and renders; flags are the keys of a config file."""

import json
import sys
from typing import Annotated, Any

import typer

from autopeft.cli import bench
from autopeft.cli.options import (
    Budget,
    Config,
    Data,
    Debug,
    Device,
    Json,
    MaxLatency,
    MaxMemory,
    MaxTrained,
    Model,
    Pack,
    Recipe,
    Run,
    Set,
    SiteMap,
    Space,
)

app = typer.Typer(
    name="autopeft",
    help="Finds the best hybrid adapter for a transformer under a budget of trainable parameters.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(bench.app, name="bench")


def show_version(value: bool) -> None:
    if value:
        from autopeft import __version__

        typer.echo(f"autopeft {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Finds the best hybrid adapter for a transformer under a budget of trainable parameters."""


@app.command()
def search(
    budget: Budget = None,
    max_trained: MaxTrained = None,
    max_latency_overhead: MaxLatency = None,
    max_memory: MaxMemory = None,
    model: Model = None,
    data: Data = None,
    recipe: Recipe = None,
    space: Space = None,
    site_map: SiteMap = None,
    sampler: Annotated[
        str | None, typer.Option(help="What proposes; see `autopeft ls samplers`. Or optuna:NAME.")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help="score, or pareto: the best score for every number of stored parameters.")
    ] = None,
    baselines: Annotated[
        bool | None,
        typer.Option("--baselines/--no-baselines", help="Published configurations at this budget as first trials."),
    ] = None,
    from_: Annotated[
        list[str] | None, typer.Option("--from", help="Run folder of an earlier study to learn from; can be repeated.")
    ] = None,
    cost_aware: Annotated[
        bool | None,
        typer.Option("--cost-aware/--no-cost-aware", help="Weigh improvement against the seconds of a trial."),
    ] = None,
    pruner: Annotated[
        str | None, typer.Option(help="halving: stop trials that are not among the best on the way; or none.")
    ] = None,
    first_rung: Annotated[
        float | None, typer.Option(help="Of halving: share of the epochs before the first comparison.")
    ] = None,
    first_rung_on: Annotated[
        str | None, typer.Option(help="Of halving: epochs; or rows, for a short training on that share of them first.")
    ] = None,
    eta: Annotated[int | None, typer.Option(help="Of halving: the best 1/eta go on.")] = None,
    trials: Annotated[
        int | None, typer.Option(help="Trials in all, complete or pruned, earlier runs included.")
    ] = None,
    time: Annotated[str | None, typer.Option(help="Training in all, such as 2h, 90m or 45s.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the study.")] = None,
    run: Run = None,
    device: Device = None,
    workers: Annotated[int | None, typer.Option(help="Trials at a time, one process each.")] = None,
    pack: Pack = None,
    ahead: Annotated[int | None, typer.Option(help="Trials proposed while all workers are busy.")] = None,
    trial_timeout: Annotated[str | None, typer.Option(help="Longest a trial may take, such as 10m.")] = None,
    hang_after: Annotated[
        str | None, typer.Option(help="Replace a worker that makes no progress for at least this long; never: do not.")
    ] = None,
    worker_memory: Annotated[
        str | None, typer.Option(help="Replace a worker whose process holds more memory, such as 6GiB.")
    ] = None,
    cache_memory: Annotated[
        str | None, typer.Option(help="For the activations of frozen layers, such as 2GB; 0: no cache.")
    ] = None,
    cache_dtype: Annotated[
        str | None, typer.Option(help="Of the cache: float32, or float16 for twice as much.")
    ] = None,
    keep: Annotated[int | None, typer.Option(help="Of how many of the best trials the weights are kept.")] = None,
    set_: Set = None,
    config: Config = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Make a damaged study anew from its events.jsonl.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Search for the best adapter. The same command again goes on where it stopped.

    Without --model and --data it runs on an embedded model and task, offline.
    """
    from autopeft.cli.commands import run_search

    given = {
        "budget": budget,
        "max_trained": max_trained,
        "max_latency_overhead": max_latency_overhead,
        "max_memory": max_memory,
        "model": model,
        "data": data,
        "recipe": recipe,
        "space": space,
        "site_map": site_map,
        "sampler": sampler,
        "objective": objective,
        "baselines": baselines,
        "from": tuple(from_ or ()),
        "cost_aware": cost_aware,
        "pruner": pruner,
        "first_rung": first_rung,
        "first_rung_on": first_rung_on,
        "eta": eta,
        "trials": trials,
        "time": time,
        "seed": seed,
        "run": run,
        "device": device,
        "workers": workers,
        "pack": pack,
        "ahead": ahead,
        "trial_timeout": trial_timeout,
        "hang_after": hang_after,
        "worker_memory": worker_memory,
        "cache_memory": cache_memory,
        "cache_dtype": cache_dtype,
        "keep": keep,
        "set": tuple(set_ or ()),
    }
    return run_search(given, config, as_json, rebuild)


@app.command()
def status(run: Run = None, as_json: Json = False, debug: Debug = False) -> None:
    """The study while it runs and after: counts, best trial, who works on it."""
    from autopeft.cli.studies import study_status

    _out(study_status(run), as_json)


@app.command()
def show(
    what: Annotated[
        list[str], typer.Argument(help="best, pareto, trials, trial N; or the name of a space, recipe or module.")
    ],
    run: Run = None,
    model: Annotated[str | None, typer.Option("--model", help="Show a space as it is on this model.")] = None,
    budget: Budget = None,
    max_trained: MaxTrained = None,
    site_map: SiteMap = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the best trial, all trials, one trial; or a space, recipe or module that ships."""
    from autopeft.cli.studies import STUDY_VIEWS, show_study

    if what[0] in STUDY_VIEWS:
        _out(show_study(what, run), as_json)
    else:
        from autopeft.cli.shipped import show_shipped

        _out(show_shipped(what, model, budget, max_trained, site_map), as_json)


@app.command("ls")
def list_(
    what: Annotated[
        str | None, typer.Argument(help="spaces, recipes, modules, samplers or targets; all by default.")
    ] = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of spaces or recipes, as `autopeft schema` does.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List what ships: spaces, recipes, modules, samplers, targets."""
    from autopeft.cli.shipped import json_schema_of, list_shipped

    if schema:
        typer.echo(json.dumps(json_schema_of((what or "").removesuffix("s")), indent=2))
    else:
        _out(list_shipped(what), as_json)


@app.command()
def check(
    budget: Budget = None,
    max_trained: MaxTrained = None,
    max_latency_overhead: MaxLatency = None,
    max_memory: MaxMemory = None,
    model: Model = None,
    data: Data = None,
    recipe: Recipe = None,
    space: Space = None,
    site_map: SiteMap = None,
    set_: Set = None,
    config: Config = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check configuration, space, data, labels, model and budget; show three tokenised samples; write nothing."""
    from autopeft.cli.commands import run_check

    given = {"budget": budget, "model": model, "data": data, "recipe": recipe, "space": space, "site_map": site_map}
    limits = {
        "max_trained": max_trained,
        "max_latency_overhead": max_latency_overhead,
        "max_memory": max_memory,
    }
    _out(run_check({**given, **limits, "set": tuple(set_ or ())}, config), as_json)


@app.command()
def count(
    model: Model = None,
    space: Annotated[str | None, typer.Option("--space", help="Count the extremes of this space.")] = None,
    spec: Annotated[str | None, typer.Option("--spec", help="Count this adapter spec (a JSON file).")] = None,
    budget: Budget = None,
    site_map: SiteMap = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Exact stored and trained parameters of a spec, or of a space's extremes, from the model's config alone."""
    from autopeft.cli.commands import run_count

    _out(run_count(model, space, spec, budget, site_map), as_json)


@app.command()
def init(
    data: Data = None,
    model: Model = None,
    budget: Annotated[str, typer.Option("--budget", help="0.5% of the base model, 500k, 1.2M or 300000.")] = "0.5%",
    space: Annotated[
        str, typer.Option("--space", help="What may be varied: a shipped name or a YAML file.")
    ] = "hybrid",
    site_map: SiteMap = None,
    out: Annotated[str, typer.Option(help="File to write.")] = "autopeft.yaml",
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a commented config for your data and model, which `search --config` takes."""
    from autopeft.cli.starting import write_config

    _out(write_config(data, model, budget, space, site_map, out, force), as_json)


@app.command()
def estimate(
    budget: Budget = None,
    max_trained: MaxTrained = None,
    max_latency_overhead: MaxLatency = None,
    max_memory: MaxMemory = None,
    model: Model = None,
    data: Data = None,
    recipe: Recipe = None,
    space: Space = None,
    site_map: SiteMap = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all.")] = None,
    pruner: Annotated[str | None, typer.Option(help="halving or none, as for search.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the study.")] = None,
    device: Device = None,
    workers: Annotated[int | None, typer.Option(help="Trials at a time, one process each.")] = None,
    set_: Set = None,
    config: Config = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """What a search would take: trains a few epochs, and says size of the space, time, memory and disk."""
    from autopeft.cli.starting import run_estimate

    given = {"budget": budget, "model": model, "data": data, "recipe": recipe, "space": space, "trials": trials}
    limits = {
        "max_trained": max_trained,
        "max_latency_overhead": max_latency_overhead,
        "max_memory": max_memory,
    }
    others = {
        "pruner": pruner,
        "site_map": site_map,
        "seed": seed,
        "device": device,
        "workers": workers,
        "set": tuple(set_ or ()),
    }
    _out(run_estimate({**given, **limits, **others}, config), as_json)


@app.command()
def export(
    run: Run = None,
    target: Annotated[
        str, typer.Option(help="autopeft, peft, spec, init, merged, trainer, trl …; see `autopeft ls targets`.")
    ] = "autopeft",
    trial: Annotated[int | None, typer.Option(help="This trial instead of the best.")] = None,
    adapter: Annotated[str | None, typer.Option("--adapter", help="An exported or trained folder, not a run.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder to write; by default export/ in the run folder.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder if it exists.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the best adapter as a spec and as a folder that PEFT loads, or for another trainer."""
    from autopeft.cli.studies import export_folder, export_study

    if adapter is not None:
        _out(export_folder(adapter, target, out, force), as_json)
        return
    _out(export_study(run, target, trial, out, force), as_json)


@app.command()
def train(
    spec: Annotated[str, typer.Option("--spec", help="Adapter spec, or a folder that `autopeft export` wrote.")],
    model: Annotated[str | None, typer.Option("--model", help="By default the spec's base model.")] = None,
    data: Data = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="How to train; by default as the search that found the spec.")
    ] = None,
    site_map: SiteMap = None,
    seeds: Annotated[int | None, typer.Option(help="Trainings in all, earlier runs included.")] = None,
    seed: Annotated[int | None, typer.Option(help="The first seed.")] = None,
    device: Device = None,
    workers: Annotated[int | None, typer.Option(help="Trainings at a time, one process each.")] = None,
    out: Annotated[str | None, typer.Option(help="Folder to write; by default runs/train-….")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value for the recipe.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> int:
    """Train a found spec on this or another task or model, with one or several seeds.

    The same command again goes on where it stopped. On a model of another depth, layers are mapped proportionally.
    """
    from autopeft.cli.transfer import run_train

    given = {"model": model, "data": data, "recipe": recipe, "site_map": site_map, "seeds": seeds, "seed": seed}
    return run_train(
        spec, {**given, "device": device, "workers": workers, "out": out, "set": tuple(set_ or ())}, as_json
    )


@app.command()
def schema(
    what: Annotated[str, typer.Argument(help="spec, space, recipe or config.")],
) -> None:
    """Print the JSON Schema of a file format, for editors and other programs."""
    from autopeft.cli.shipped import json_schema_of

    typer.echo(json.dumps(json_schema_of(what), indent=2))


def _out(report: "tuple[str, Any]", as_json: bool) -> None:
    """Print a report's text, or its data as JSON."""
    text, data = report
    typer.echo(json.dumps(data, indent=2, allow_nan=False) if as_json else text)
    sys.stdout.flush()
