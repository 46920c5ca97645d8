"""The train command: lines on stderr while it runs, the figures over seeds on stdout."""

import json
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from autopeft.api import train
from autopeft.space.layer_map import layer_map
from autopeft.transfer.training import BEST_FOLDER, Trained

EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143}


def run_train(spec: str, options: Mapping[str, Any], as_json: bool) -> int:
    """Train, tell, and print the figures; returns the exit code."""
    trained = train(spec, tell=_tell, **options)
    if trained.signal is not None:
        again = shlex.join(["autopeft", *sys.argv[1:]])
        _tell(f"stopped by {trained.signal}; {len(trained.seeds)} seeds are finished. Go on with: {again}")
        return EXIT_CODES[trained.signal]
    sys.stdout.write((json.dumps(_data(trained), indent=2) if as_json else _text(trained)) + "\n")
    return 0


def _text(trained: Trained) -> str:
    spec = trained.spec
    assert spec is not None and spec.evidence.seeds is not None and spec.evidence.held_out is not None
    found, seeds, size = spec.evidence, spec.evidence.seeds, spec.parameters
    low, high = spec.evidence.held_out.interval
    over_seeds = "one seed: no interval over seeds"
    if seeds.interval is not None:
        over_seeds = f"95% t-interval over seeds {seeds.interval[0]:.4f} to {seeds.interval[1]:.4f}"
    lines = [
        f"held out    {found.metric} {seeds.mean:.4f}, mean of {len(seeds.figures)} seeds ({over_seeds})",
        f"saved seed  {seeds.saved_seed}, best on validation ({found.validation:.4f}): "
        f"{next(iter(spec.evidence.held_out.metrics.values())):.4f} on {spec.evidence.held_out.rows:,} held-out rows "
        f"(95% interval over rows {low:.4f} to {high:.4f})",
        f"parameters  {size.stored:,} stored, {size.trained:,} trained; head {size.head:,} apart",
        "layers      " + "; ".join(layer_map(spec.parsed_architecture)),
        f"saved in    {trained.out / BEST_FOLDER} (spec, weights, model card)",
    ]
    lines += [f"failed      seed {result.number} ({result.cause}): {result.error}" for result in trained.failed]
    return "\n".join(lines)


def _data(trained: Trained) -> dict[str, Any]:
    assert trained.spec is not None
    spec = trained.spec
    return {
        "out": str(trained.out),
        "adapter": str(trained.out / BEST_FOLDER),
        "id": spec.parsed_architecture.id,
        "parameters": spec.parameters.model_dump(mode="json"),
        "evidence": spec.evidence.model_dump(mode="json"),
        "origin": spec.origin.model_dump(mode="json") if spec.origin else None,
        "failed": [result.to_json() for result in trained.failed],
    }


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
