"""All checks, as CI runs them: format, lint, types, import contracts, tests. `python -m tests`.

The tests run in a process a core, each with one thread. What needs other trainers runs apart: they change the libraries
that they import.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests import peers

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
PYTEST = [sys.executable, "-m", "pytest"]
PARALLEL = ["-n", "auto", "--dist", "loadscope"]
ENVIRON = {**os.environ, "OMP_NUM_THREADS": "1"}

CHECKS = {
    "format": [BIN / "ruff", "format", "--check", "."],
    "lint": [BIN / "ruff", "check", "."],
    "types": [BIN / "mypy"],
    "imports": [BIN / "lint-imports"],
    "tests": [*PYTEST, *PARALLEL],
    "slow tests": [*PYTEST, *PARALLEL, "-m", "slow"],
}


def passes(name: str, command: list[str | Path], environ: Mapping[str, str] = ENVIRON) -> bool:
    print(f"== {name}", flush=True)
    return subprocess.run(list(map(str, command)), cwd=ROOT, check=False, env=dict(environ)).returncode == 0


def main() -> int:
    failed = [name for name, command in CHECKS.items() if not passes(name, command)]
    trainers = {**ENVIRON, "PYTHONPATH": os.pathsep.join([str(ROOT), str(peers.ROOT / "trainers")])}
    if not (peers.install() and passes("other trainers", [*PYTEST, "-m", "peers"], trainers)):
        failed.append("other trainers")
    print(f"failed: {', '.join(failed)}" if failed else "all checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
