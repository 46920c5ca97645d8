"""The Python API: what the command line does, as functions with the same names, options and results."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autopeft.config import load_options
from autopeft.errors import AutopeftError
from autopeft.export.spec import AdapterSpec, spec_of
from autopeft.study.planning import make_plan
from autopeft.study.progress import Listener, silent
from autopeft.study.record import TrialRecord, pareto_front
from autopeft.study.settings import SearchSettings, resolve_settings
from autopeft.transfer.plan import make_train_plan
from autopeft.transfer.settings import TrainSettings

if TYPE_CHECKING:
    from autopeft.study.search import SearchOutcome
    from autopeft.transfer.training import Trained

BEST_FOLDER = "best"
"""In the run folder: the best trial as `autopeft export` writes it."""


@dataclass(frozen=True)
class SearchResult:
    """What a search has found."""

    run: Path
    outcome: "SearchOutcome"

    @property
    def trials(self) -> tuple[TrialRecord, ...]:
        return self.outcome.view.trials

    @property
    def best(self) -> TrialRecord | None:
        """The highest score on validation; None where no trial completed."""
        return self.outcome.best

    @property
    def front(self) -> tuple[TrialRecord, ...]:
        """Trials that no other beats in score with as few stored parameters, smallest first."""
        return pareto_front(self.trials)

    @property
    def spec(self) -> AdapterSpec:
        """The best trial's spec; its adapter folder is `run / "best"`.

        Raises:
            AutopeftError: no trial completed.
        """
        if self.best is None:
            raise AutopeftError("no trial has completed")
        return spec_of(self.outcome.view, self.best)


def search(
    budget: str, *, listener: Listener = silent, config: str | Path | None = None, **options: Any
) -> SearchResult:
    """Search as `autopeft search` does, or go on with a search; options are its flags with underscores.

    Raises:
        AutopeftError: as the command line; `exit_code` of the class is what it would exit with.
    """
    return search_with(resolve_settings({"budget": budget, **options}, config), listener)


def train(spec: str | Path, *, tell: Callable[[str], None] = lambda line: None, **options: Any) -> "Trained":
    """Train a found architecture as `autopeft train` does; options are its flags. `tell` takes lines of progress.

    Raises:
        AutopeftError: as the command line; `exit_code` of the class is what it would exit with.
    """
    given = [(f"--{name}", name, value) for name, value in {"spec": str(spec), **options}.items()]
    settings = load_options(TrainSettings, [option for option in given if option[2] not in (None, ())])
    plan = make_train_plan(settings)
    from autopeft.transfer.training import run_training

    return run_training(plan, tell)


def search_with(settings: SearchSettings, listener: Listener = silent, *, rebuild: bool = False) -> SearchResult:
    """`search` with settings that are resolved already."""
    plan = make_plan(settings)
    from autopeft.export import export
    from autopeft.study.search import search as run_search

    outcome = run_search(plan, listener, rebuild=rebuild)
    if outcome.best is not None:
        export(outcome.view, plan.run, plan.run / BEST_FOLDER, force=True)
    return SearchResult(plan.run, outcome)
