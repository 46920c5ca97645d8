"""A search, resolved and checked, before anything is written: what will be searched, on what, and how far."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autopeft.engine.rungs import Rungs
from autopeft.engine.trial import Backend, TrialJob, trial_seed
from autopeft.engine.watch import DEFAULT_BOUNDS, Bounds
from autopeft.samplers import Earlier, Sampler
from autopeft.space.architecture import Architecture
from autopeft.space.budget import ParameterBudget
from autopeft.space.modules import Scalar
from autopeft.space.search_space import SearchSpace
from autopeft.study.baselines import Baseline
from autopeft.study.halving import Halving
from autopeft.study.identity import Identity
from autopeft.study.layout import trial_folder
from autopeft.study.settings import SearchSettings

HELD_OUT = "test"
"""The split that the search never sees."""


@dataclass(frozen=True)
class Plan:
    """Everything a search needs; made by `autopeft.study.planning.make_plan`, or by hand for other backends."""

    run: Path
    settings: SearchSettings
    identity: Identity
    space: SearchSpace
    sampler: Sampler
    backend: Backend
    budget: ParameterBudget
    n_trials: int
    """In all, those that are pruned included."""
    seconds: float | None
    """Training in all, over all workers; None: no limit."""
    bounds: Bounds = DEFAULT_BOUNDS
    """When a worker is ended."""
    n_workers: int = 1
    n_pack: int = 1
    """Trials that each worker trains together."""
    files: tuple[tuple[str, str], ...] = ()
    """Name and text of what is written into a new run folder: the resolved configuration."""
    context: Mapping[str, Any] = field(default_factory=dict)
    """What all trials share and exports need: base model, task, recipe; JSON, kept in the study's summary."""
    facts: tuple[tuple[str, str], ...] = ()
    """What the user is told at the start: model, data, protocol."""
    notes: tuple[str, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    """The first trials, before the sampler is asked."""
    earlier: tuple[Earlier, ...] = ()
    """Trials of earlier studies, for samplers that learn from them."""
    halving: Halving | None = None
    """Which trials are stopped early; None: none."""

    @property
    def budget_parameters(self) -> int:
        assert self.space.budget is not None
        return self.space.budget

    def expected_cost(self, epochs: int) -> float:
        """Share of the training of trials of so many epochs that is done on average; 1 where none is stopped early."""
        if self.halving is None:
            return 1.0
        return self.halving.expected_cost(self.n_trials, min(len(self.baselines), self.n_trials), epochs)

    def job(
        self, number: int, architecture: Architecture, training: tuple[tuple[str, Scalar], ...], rungs: Rungs = ()
    ) -> TrialJob:
        """The job of trial `number`; its seed and folder follow from the number."""
        seed = trial_seed(self.settings.seed, number)
        screen = self.halving.screen if self.halving else None
        return TrialJob(number, architecture, training, seed, trial_folder(self.run, number), rungs, screen)
