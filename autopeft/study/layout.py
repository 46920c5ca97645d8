"""Where things are in a run folder."""

from pathlib import Path

TRIALS_FOLDER = "trials"
LOG_FILE = "autopeft.log"


def cache_folder(run: Path) -> Path:
    """Where the activations are that several workers share, while a search runs."""
    return run / "cache"


def trial_folder(run: Path, number: int) -> Path:
    """Where a trial's weights and result are."""
    return run / TRIALS_FOLDER / f"{number:04d}"
