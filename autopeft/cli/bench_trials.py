"""`autopeft bench trials`: finished trials an hour beside the HF Trainer, told only where the losses agree."""

import json
import sys
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from autopeft.cli.text import table
from autopeft.resources import atomic_write

_SELDOM = " (one configuration in three, in the first round)"


def trials(
    model: Annotated[str | None, typer.Option(help="Folder, hub id, or package:NAME; the embedded one.")] = None,
    data: Annotated[
        str, typer.Option(help="sentences (made up, as long as GLUE's), or a task, as `search --data`.")
    ] = "sentences",
    kinds: Annotated[str, typer.Option(help="Modules with commas between; see `autopeft ls modules`.")] = "lora",
    laws: Annotated[str, typer.Option(help="Which layers are adapted: uniform, bernoulli.")] = "uniform",
    baselines: Annotated[
        str, typer.Option(help="b0 (fresh processes), b1 (HF Trainer, tuned), b2 (by length, no dropout).")
    ] = "b0,b1,b2",
    rounds: Annotated[int, typer.Option(help="Each trains all configurations, the first some with b0.")] = 3,
    configurations: Annotated[int, typer.Option(help="Of a law, at most.")] = 6,
    rows: Annotated[int, typer.Option(help="To train on; half as many to evaluate.")] = 256,
    epochs: Annotated[int, typer.Option(help="Of a trial, each with an evaluation.")] = 2,
    batch_size: Annotated[int, typer.Option(help="Rows of a step.")] = 32,
    study_trials: Annotated[int, typer.Option(help="Of the study that ratios are told for.")] = 60,
    study_epochs: Annotated[int, typer.Option(help="Of its trials; as AutoPEFT's on GLUE.")] = 20,
    gate_steps: Annotated[int, typer.Option(help="Steps over which the losses must agree.")] = 50,
    threads: Annotated[int, typer.Option(help="Of the processor.")] = 1,
    seed: Annotated[int, typer.Option(help="Of data, first weights and order.")] = 0,
    plot: Annotated[str | None, typer.Option(help="SVG file to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Speed of trials beside the HF Trainer with PEFT, everything charged, and beside the matrix multiplications alone.

    First, the losses of both must agree over --gate-steps; if they do not, no ratio is printed.
    """
    import torch

    from autopeft.bench.trial_speed import SpeedSettings, Study, measure
    from autopeft.engine.models import DEMO_PACKAGE, PACKAGE
    from autopeft.engine.recipe import TrialRecipe

    torch.set_num_threads(threads)
    training = {"epochs": epochs, "max_length": 64, "batch_size": batch_size}
    recipe = TrialRecipe.model_validate({"version": 1, "task": {"max_train_rows": rows}, "training": training})
    settings = SpeedSettings(
        model=model or f"{PACKAGE}{DEMO_PACKAGE}",
        revision=None,
        recipe=recipe,
        data=_task(data, recipe, rows, seed),
        kinds=_listed(kinds),
        laws=_listed(laws),
        ways=_listed(baselines),
        rounds=rounds,
        n_configurations=configurations,
        study=Study(study_trials, study_epochs),
        gate_steps=gate_steps,
        seed=seed,
    )
    speeds = measure(settings, _tell)
    if plot:
        from autopeft.bench.speed_plot import speed_svg

        atomic_write(Path(plot), speed_svg(speeds))
    sys.stdout.write((json.dumps(_data(speeds), indent=2) if as_json else _text(speeds)) + "\n")


def _task(name: str, recipe: Any, rows: int, seed: int) -> Any:
    from dataclasses import replace

    from autopeft.bench.sentences import NAME, sentences
    from autopeft.engine.data import load_data

    if name == NAME:
        return sentences(rows, max(1, rows // 2), seed)
    task = load_data(recipe.task, name, seed)
    validation = task.splits["validation"]
    kept = validation.take(range(min(len(validation), max(1, rows // 2))))
    return replace(task, splits={**task.splits, "validation": kept})


def _text(speeds: Any) -> str:
    from autopeft.bench.stock_trials import WAYS
    from autopeft.bench.trial_speed import Study

    facts, ways = speeds.facts, speeds.ways
    study = Study(facts["study_trials"], facts["study_epochs"])
    lines = [
        f"{facts['model']}, {facts['data']}: {facts['train_rows']} + {facts['validation_rows']} rows of "
        f"{facts['mean_tokens']} tokens (at most {facts['longest']}), {facts['epochs']} epochs, batch "
        f"{facts['batch_size']}; {facts['device']}, {facts['precision']}, {facts['threads']} thread, load "
        f"{facts['load_average']}; {facts['seconds']}; {facts['rounds']} rounds: median [lowest, highest]",
        f"everything is charged to both, to {study.trials} trials what a study pays once; seconds of {study.epochs} "
        f"epochs are those of the {facts['epochs']} measured, as often",
        "losses agree: "
        + ", ".join(f"{a.configuration} {a.largest:.1e} in {a.steps} steps" for a in speeds.agreements),
        *(f"{way}: {WAYS[way].title}{_SELDOM if WAYS[way].fresh_process else ''}" for way in ways),
    ]
    totals = []
    for suite in speeds.suites:
        for title, top in (("all", False), ("top third", True)):
            for asked in (study, None):
                found = [suite.ratio(way, asked, top_third=top) for way in ways]
                if any(found):
                    chosen = [one for one in suite.timed if one.configuration.is_top_third or not top]
                    told = asked or Study(len(chosen), facts["epochs"])
                    what = f"{told.trials} of {told.epochs} epochs"
                    totals.append((suite.kind, suite.law, title, what, *map(_range, found)))
    blocks = ["\n".join(lines), table(("kind", "law", "layers", "trials", *(f"over {way}" for way in ways)), totals)]
    for suite in speeds.suites:
        rows = [
            (
                one.configuration.name,
                *(_range(one.ratio(way, study)) for way in ways),
                f"{median(one.seconds['ours']):.2f}",
                f"{median(one.found):.2f}",
                f"{median(one.filled):.2f}",
                f"{1000 * one.step_seconds:.1f}",
                _range(one.share_of_limit, 100, "%", 0),
            )
            for one in sorted(suite.timed, key=lambda one: one.configuration.first)
        ]
        seconds = ("trial s", "of it cut", "cache s", "step ms", "of matmul limit")
        heads = (suite.law, *(f"over {way}" for way in ways), *seconds)
        blocks.append(table(heads, rows))
    return "\n\n".join(blocks)


def _data(speeds: Any) -> dict[str, Any]:
    from autopeft.bench.trial_speed import Study

    study = Study(speeds.facts["study_trials"], speeds.facts["study_epochs"])
    suites = [
        {
            "kind": suite.kind,
            "law": suite.law,
            "opening_seconds": suite.opening,
            "ratios": [
                {
                    "over": way,
                    "layers": "top third" if top else "all",
                    "study": vars(asked) if asked else None,
                    **vars(found),
                }
                for way in speeds.ways
                for top in (False, True)
                for asked in (study, None)
                if (found := suite.ratio(way, asked, top_third=top)) is not None
            ],
            "configurations": [
                {
                    "name": one.configuration.name,
                    "layers": one.configuration.layers,
                    "trial_seconds": one.seconds,
                    "of_it_epochs": one.epochs,
                    "cut_seconds": one.found,
                    "cache_seconds": one.filled,
                    "step_seconds": one.step_seconds,
                    "share_of_matmul_limit": vars(one.share_of_limit),
                }
                for one in suite.timed
            ],
        }
        for suite in speeds.suites
    ]
    return {"facts": dict(speeds.facts), "losses": [vars(a) for a in speeds.agreements], "suites": suites}


def _range(found: Any, factor: float = 1, unit: str = "x", digits: int = 2) -> str:
    if found is None:
        return "-"
    middle, low, high = (f"{factor * value:.{digits}f}" for value in (found.median, found.low, found.high))
    return f"{middle}{unit} [{low}, {high}]"


def _listed(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
