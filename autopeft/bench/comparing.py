"""Samplers side by side: all runs that are asked for, made once and kept, and what they say.

Results are JSON lines, one a run, appended when the run ends. A run is made again only when the sampler's code, the
problem or Optuna has changed, or when more trials are asked for than it has.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from autopeft.bench.running import Problem, Run, run_sampler, sampler_names, sampler_version
from autopeft.bench.surface import Array, stream
from autopeft.errors import StudyCorruptError, UnknownNameError, UsageError
from autopeft.resources import cache_folder

CHECKPOINTS = (30, 60, 100)
_RESAMPLES = 2000


@dataclass(frozen=True)
class Comparison:
    """What is compared."""

    suite: str
    samplers: tuple[str, ...]
    problems: tuple[str, ...]
    seeds: int
    trials: int
    runs: tuple[Run, ...]

    def regrets(self, sampler: str, problems: Sequence[str], n_trials: int) -> Array:
        """Regret after `n_trials` of every seed `(seeds,)`, averaged over the problems."""
        found = np.full((self.seeds, len(problems)), np.nan)
        for run in self.runs:
            if run.sampler == sampler and run.problem in problems and n_trials <= len(run.regrets):
                found[run.seed, problems.index(run.problem)] = run.regrets[n_trials - 1]
        return np.asarray(found.mean(axis=1))

    def seconds(self, sampler: str, problems: Sequence[str]) -> float:
        """Median seconds of a proposal."""
        mine = [run for run in self.runs if run.sampler == sampler and run.problem in problems]
        return float(np.median([s for run in mine for s in run.proposal_seconds[: self.trials]]))

    def over_budget(self, sampler: str, problems: Sequence[str]) -> float:
        """Share of the trials that were over the budget."""
        mine = [run for run in self.runs if run.sampler == sampler and run.problem in problems]
        return sum(run.over_budget for run in mine) / sum(len(run.regrets) for run in mine)


@dataclass(frozen=True)
class Summary:
    mean: float
    standard_error: float
    low: float
    high: float
    """95 % bootstrap interval of the mean over seeds."""


def summary(regrets: Array, seed: int = 0) -> Summary:
    """Of one figure per seed `(seeds,)`."""
    n = len(regrets)
    error = float(regrets.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    means = regrets[stream("bootstrap", seed).integers(n, size=(_RESAMPLES, n))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Summary(float(regrets.mean()), error, float(low), float(high))


def compare(
    suite: str,
    samplers: Sequence[str],
    problems: Sequence[str],
    *,
    seeds: int,
    trials: int,
    jobs: int = 1,
    results: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Run what is not known yet, and gather.

    Raises:
        UnknownNameError: no such suite, sampler or problem.
        UsageError: seeds, trials or jobs below 1.
        StudyCorruptError: the file of results is none.
    """
    if min(seeds, trials, jobs) < 1:
        raise UsageError("bench samplers: --seeds, --trials and --jobs must be at least 1")
    chosen = tuple(samplers) or sampler_names()
    for name in chosen:
        if name not in sampler_names():
            raise UnknownNameError("sampler", name, sampler_names())
    named = {name: load(suite, name) for name in problem_names(suite, problems)}
    file = results or default_results(suite)
    known = {run.key: run for run in read_runs(file)} if file.exists() else {}
    found: list[Run] = []
    wanted: list[tuple[str, str, str, int, int]] = []
    for seed in range(seeds):
        for name, problem in named.items():
            for sampler in chosen:
                run = known.get((sampler, sampler_version(sampler), name, problem.version, seed))
                if run is not None and len(run.regrets) >= trials:
                    found.append(run)
                else:
                    wanted.append((suite, sampler, name, seed, trials))
    tell(f"{len(found)} of {len(found) + len(wanted)} runs are in {file}")
    for number, run in enumerate(_runs(wanted, jobs), start=1):
        _append(file, run)
        found.append(run)
        tell(
            f"{number}/{len(wanted)}  {run.sampler}  {run.problem}  seed {run.seed}  "
            f"regret {run.regrets[-1]:.3f} after {len(run.regrets)}  {run.seconds:.1f} s"
        )
    return Comparison(suite, chosen, tuple(named), seeds, trials, tuple(found))


_TABLES = (".jsonl", ".gz")


def problem_names(suite: str, given: Sequence[str] = ()) -> tuple[str, ...]:
    """`suite` is `synthetic`, `held-out`, `tabular` or the file of a table.

    Raises:
        UnknownNameError: no such suite or problem.
        UsageError: no such table.
    """
    from autopeft.bench import suite as synthetic
    from autopeft.bench import tabular

    if suite in synthetic.SUITES:
        return synthetic.names(given, synthetic.SUITES[suite])
    if suite != "tabular" and not suite.endswith(_TABLES):
        raise UnknownNameError("suite", suite, (*synthetic.SUITES, "tabular"))
    return tabular.names(given, _table_of(suite))


def load(suite: str, name: str) -> Problem:
    """The problem of a suite; errors as in `problem_names`."""
    from autopeft.bench import suite as synthetic
    from autopeft.bench import tabular

    if suite in synthetic.SUITES:
        return synthetic.load_problem(name)
    return tabular.load_problem(name, _table_of(suite))


def _table_of(suite: str) -> Path | None:
    return None if suite == "tabular" else Path(suite)


def default_results(suite: str) -> Path:
    return cache_folder() / "bench" / f"samplers-{Path(suite).name.split('.')[0]}.jsonl"


def read_runs(file: Path) -> Iterator[Run]:
    """
    Raises:
        StudyCorruptError: a line that is no run; a last line that was cut off is left out.
    """
    lines = file.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            yield Run.from_json(json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            if number < len(lines):
                raise StudyCorruptError(f"{file}:{number}: not a result of bench samplers: {error}") from error


def checkpoints(trials: int) -> tuple[int, ...]:
    """Numbers of trials after which regret is told."""
    return tuple(n for n in CHECKPOINTS if n <= trials) or (trials,)


def summaries(comparison: Comparison, problems: Sequence[str]) -> Mapping[str, Mapping[int, Summary]]:
    """Sampler → number of trials → regret over these problems."""
    return {
        sampler: {n: summary(comparison.regrets(sampler, problems, n)) for n in checkpoints(comparison.trials)}
        for sampler in comparison.samplers
    }


def _runs(wanted: Sequence[tuple[str, str, str, int, int]], jobs: int) -> Iterator[Run]:
    if jobs == 1 or len(wanted) < 2:
        yield from (_run(*one) for one in wanted)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        for future in as_completed([pool.submit(_run, *one) for one in wanted]):
            yield future.result()


def _run(suite: str, sampler: str, problem: str, seed: int, trials: int) -> Run:
    return run_sampler(sampler, load(suite, problem), seed, trials)


def _one_thread() -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"


def _append(file: Path, run: Run) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    is_cut = file.exists() and not _ends_a_line(file)
    with file.open("a", encoding="utf-8") as out:
        out.write(("\n" if is_cut else "") + json.dumps(run.to_json(), separators=(",", ":")) + "\n")


def _ends_a_line(file: Path) -> bool:
    content = file.read_bytes()
    return not content or content.endswith(b"\n")


def curves(comparison: Comparison, problems: Sequence[str]) -> Mapping[str, Array]:
    """Sampler → regret of every seed after every trial `(seeds, trials)`, averaged over the problems."""
    found: dict[str, Array] = {}
    for sampler in comparison.samplers:
        columns: Iterable[Array] = (comparison.regrets(sampler, problems, n) for n in range(1, comparison.trials + 1))
        found[sampler] = np.stack(list(columns), axis=1)
    return found
