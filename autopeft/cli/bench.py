"""The bench commands: samplers side by side, tables of real trainings, optima of the synthetic suite."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from autopeft.cli.bench_trials import trials
from autopeft.cli.text import table
from autopeft.resources import atomic_write

app = typer.Typer(
    help="Samplers side by side; tables of real trainings; speed of trials.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(trials)

Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


@app.command()
def samplers(
    samplers: Annotated[
        str, typer.Option(help="Names with commas between: ours, and optuna-tpe, optuna-gp, … unrepaired; all.")
    ] = "",
    suite: Annotated[
        str, typer.Option(help="synthetic, held-out, tabular, or a file that `autopeft bench table` wrote.")
    ] = "synthetic",
    problems: Annotated[str, typer.Option(help="Names with commas between: only these of the suite.")] = "",
    seeds: Annotated[int, typer.Option(help="Runs of every sampler on every problem.")] = 10,
    trials: Annotated[int, typer.Option(help="Trials a run.")] = 100,
    jobs: Annotated[int, typer.Option(help="Runs at a time, one process and one thread each.")] = 1,
    results: Annotated[str | None, typer.Option(help="JSONL file that keeps runs; by default in the cache.")] = None,
    plot: Annotated[str | None, typer.Option(help="SVG file to write, curves of regret.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Regret of samplers after 30, 60 and 100 trials, and the seconds of a proposal.

    The same command goes on where it stopped: finished runs are kept until a sampler or a problem changes.
    """
    from autopeft.bench.comparing import compare, curves
    from autopeft.bench.plot import regret_svg

    found = compare(
        suite,
        _listed(samplers),
        _listed(problems),
        seeds=seeds,
        trials=trials,
        jobs=jobs,
        results=Path(results) if results else None,
        tell=_tell,
    )
    if plot:
        title = f"{suite} suite, {len(found.problems)} problems, {seeds} seeds: mean regret ± s.e."
        atomic_write(Path(plot), regret_svg(title, curves(found, found.problems)))
    text, data = _report(found)
    sys.stdout.write((json.dumps(data, indent=2) if as_json else text) + "\n")


@app.command("table")
def table_(
    out: Annotated[str, typer.Option(help="JSONL file to write, or to go on with.")],
    data: Annotated[
        list[str] | None, typer.Option("--data", help="A task, as `search --data`; may be repeated. docstrings.")
    ] = None,
    points: Annotated[
        str, typer.Option(help="Architectures of each space, such as hybrid=250,autopeft=150.")
    ] = "hybrid=250,autopeft=150",
    recipe: Annotated[str, typer.Option(help="What one training is: a shipped name or a YAML file.")] = "bench",
    seeds: Annotated[int, typer.Option(help="Trainings of every architecture on every task.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the architectures and the first training.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value for the recipe.")] = None,
    debug: Debug = False,
) -> None:
    """Train many architectures on several tasks and keep their scores, for the tabular suite.

    The same command goes on where it stopped. No text of the data is written.
    """
    import torch

    from autopeft.bench.table import TableSettings, make_table, parse_points

    torch.set_num_threads(1)
    tasks = tuple(data or ("docstrings",))
    settings = TableSettings(tasks, parse_points(points), recipe, seeds, seed, tuple(set_ or ()))
    n = make_table(Path(out), settings, _tell)
    sys.stdout.write(f"{out}: {n:,} trainings\n")


@app.command()
def optima(
    out: Annotated[str, typer.Option(help="JSON file to write.")],
    problems: Annotated[str, typer.Option(help="Names with commas between: only these surfaces.")] = "",
    debug: Debug = False,
) -> None:
    """Compute the best architectures of the synthetic and the held-out suite anew: an hour of one core for all."""
    from autopeft.bench.suite import SURFACES, names, solved, to_json

    found = {}
    for name in names(_listed(problems), SURFACES):
        found[name] = solved(SURFACES[name])
        _tell(f"{name}: raw {found[name].raw:.6f}; {found[name].method}")
    atomic_write(Path(out), to_json(found))


def _report(comparison: Any) -> tuple[str, dict[str, Any]]:
    from autopeft.bench.comparing import checkpoints, summaries

    at = checkpoints(comparison.trials)
    blocks, data = [], {}
    everything = ("all", comparison.problems)
    for title, problems in [*((name, (name,)) for name in comparison.problems), everything]:
        found = summaries(comparison, problems)
        rows = []
        for sampler in sorted(found, key=lambda name: found[name][at[-1]].mean):
            cells = [
                f"{s.mean:.2f} ± {s.standard_error:.2f} [{s.low:.2f}, {s.high:.2f}]" for s in found[sampler].values()
            ]
            seconds = comparison.seconds(sampler, problems)
            share = comparison.over_budget(sampler, problems)
            rows.append((sampler, *cells, f"{seconds:.3f}", f"{100 * share:.0f}%"))
        heads = (title, *(f"after {n}" for n in at), "s/proposal", "over budget")
        blocks.append(table(heads, rows))
        data[title] = {
            sampler: {
                "regret": {str(n): vars(s) for n, s in found[sampler].items()},
                "seconds_per_proposal": comparison.seconds(sampler, problems),
                "over_budget": comparison.over_budget(sampler, problems),
            }
            for sampler in found
        }
    if len(comparison.problems) == 1:
        blocks, data = blocks[:1], {comparison.problems[0]: data[comparison.problems[0]]}
    head = (
        f"regret in points, mean ± standard error over {comparison.seeds} seeds [95% bootstrap interval]; "
        f"{comparison.suite} suite, {comparison.trials} trials"
    )
    facts = {"suite": comparison.suite, "seeds": comparison.seeds, "trials": comparison.trials}
    return "\n\n".join([head, *blocks]), {**facts, "problems": data}


def _listed(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
