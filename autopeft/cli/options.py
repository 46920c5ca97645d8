"""Options that several commands take."""

from collections.abc import Sequence
from typing import Annotated

import typer

Budget = Annotated[str | None, typer.Option("--budget", help="0.5% of the base model, 500k, 1.2M or 300000.")]
MaxTrained = Annotated[
    str | None, typer.Option("--max-trained", help="Most trained parameters, in the forms of --budget.")
]
MaxLatency = Annotated[
    str | None,
    typer.Option("--max-latency-overhead", help="Longest forward pass: 1.2 times the base model's, or 20% more."),
]
MaxMemory = Annotated[str | None, typer.Option("--max-memory", help="Most memory of one training: 8GB or 800MB.")]
Model = Annotated[str | None, typer.Option("--model", help="Folder, hub id, or package:NAME.")]
Data = Annotated[
    str | None, typer.Option("--data", help="JSONL, CSV, TSV or Parquet file, folder, or hub data set org/name:subset.")
]
Recipe = Annotated[str | None, typer.Option("--recipe", help="What one trial trains: a shipped name or a YAML file.")]
Space = Annotated[str | None, typer.Option("--space", help="What may be varied: a shipped name or a YAML file.")]
SiteMap = Annotated[
    str | None,
    typer.Option(
        "--site-map", envvar="AUTOPEFT_SITE_MAP", help="YAML file: where the model's sites are, if not found."
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1 or mps; by default GPUs, else the CPU.")
]
Pack = Annotated[str | None, typer.Option("--pack", help="Trials that each worker trains together: a number, or auto.")]
Run = Annotated[str | None, typer.Option("--run", help="Run folder.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="key=value for the recipe, space.key=value for the space.")
]
Config = Annotated[str | None, typer.Option("--config", help="YAML file with these options as keys.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def debug_asked(arguments: Sequence[str]) -> bool:
    return "--debug" in arguments
