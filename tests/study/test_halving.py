"""Successive halving: who is stopped, that it depends on outcomes alone, and that what is stopped has no score."""

import io
import random
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from autopeft.cli.studies import show_study, study_status
from autopeft.cli.views import LineView, LiveView
from autopeft.engine.rungs import SCREENING, Rung
from autopeft.engine.trial import EpochRecord, TrialResult
from autopeft.errors import ConfigError
from autopeft.space.architecture import Architecture
from autopeft.study.baselines import Baseline
from autopeft.study.halving import ENOUGH, Halving
from autopeft.study.plan import Plan
from autopeft.study.reader import read_study
from autopeft.study.record import TrialRecord, best_trial, pareto_front
from autopeft.study.search import search
from autopeft.study.settings import resolve_settings
from autopeft.study.store import Store
from tests.study.test_search import essence, start
from tests.study.toy_search import halved_plan as halved

EPOCHS = 4
N_TRIALS = 14
HALVING = Halving.over(EPOCHS, 0.25, 2)


def ended(
    number: int, scores: list[float], state: str = "complete", stored: int = 10, losses: list[float] | None = None
) -> TrialRecord:
    told = [(("accuracy", score), *((("loss", losses[n]),) if losses else ())) for n, score in enumerate(scores)]
    epochs = tuple(EpochRecord(n, n, 0.0, metrics, 1.0) for n, metrics in enumerate(told, 1))
    score = max(scores) if state == "complete" else None
    cause = "killed" if state == "failed" else None
    result = TrialResult(number, state, score, 1 if score else None, epochs, 0, 0, 0, 1.0, None, cause)  # type: ignore[arg-type]
    return TrialRecord(number, state, {}, Architecture.of([]), stored, (), None, 0.0, 1.0, result)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("epochs", "first", "eta", "rungs"),
    [
        (4, 0.25, 2, (1, 2)),
        (8, 0.25, 3, (2, 4)),
        (10, 0.25, 2, (3, 6)),
        (100, 0.07, 4, (7, 14, 28, 56)),
        (2, 0.25, 2, (1,)),
        (1, 0.25, 2, ()),
        (3, 0.9, 2, ()),
    ],
)
def test_rungs_are_a_share_of_the_epochs_and_twice_as_late_each(epochs, first, eta, rungs):
    assert Halving.over(epochs, first, eta).rungs == rungs
    on_rows = Halving.over(epochs, first, eta, on_rows=True)
    assert (on_rows.rungs, on_rows.screen) == ((SCREENING, *rungs[1:]), first)


def test_a_trial_has_to_be_among_the_best_of_those_that_reached_the_rung():
    halving = Halving((1, 2), 2)
    trials = [ended(n, [score, score + 0.1, 0.9]) for n, score in enumerate([0.1, 0.4, 0.3])]
    assert halving.thresholds(trials[: ENOUGH - 1]) == ()
    assert halving.thresholds(trials) == (Rung(1, 0.3), Rung(2, 0.4))
    trials += [ended(3, [0.2], "pruned"), ended(4, [0.5, 0.6], "failed"), ended(5, [0.6])]  # the last ended by patience
    assert halving.thresholds(trials) == (Rung(1, 0.3), Rung(2, 0.4))
    assert Halving((1,), 4).thresholds(trials) == (Rung(1, 0.4),)
    assert Halving((1,), 5).thresholds(trials) == (Rung(1, 0.6),)


def test_a_score_that_fell_again_counts_by_its_best():
    trials = [ended(n, [0.8, 0.2]) for n in range(ENOUGH)]
    assert Halving((2,), 2).thresholds(trials) == (Rung(2, 0.8),)


def test_before_scores_differ_losses_tell():
    """All at the majority class; then one leaves it, and counts for more than a loss that is a little lower."""
    trials = [ended(n, [0.5], losses=[loss]) for n, loss in enumerate([0.7, 0.6, 0.68, 0.69])]
    (rung,) = Halving((1,), 2).thresholds(trials)
    assert rung == Rung(1, 0.5 - 0.69, 1.0)
    assert rung.is_missed([(("accuracy", 0.5), ("loss", 0.695))])
    assert not rung.is_missed([(("accuracy", 0.5), ("loss", 0.67))])
    trials.append(ended(4, [0.8], losses=[0.61]))
    (rung,) = Halving((1,), 5).thresholds(trials)
    assert rung.loss_weight == pytest.approx(0.06 / 0.036)
    assert rung.least == pytest.approx(0.8 - rung.loss_weight * 0.61)


def test_a_loss_that_rose_again_counts_by_its_lowest_and_one_that_diverged_does_not_hide_the_others():
    trials = [ended(n, [0.6 + n / 50, 0.6], losses=[0.5 - n / 50, 2.0]) for n in range(6)]
    trials.append(ended(6, [0.5, 0.5], losses=[30.0, 50.0]))
    (rung,) = Halving((2,), 7).thresholds(trials)
    assert rung.least == pytest.approx(0.7 - rung.loss_weight * 0.4)


def test_published_configurations_are_never_stopped(tmp_path):
    plan = halved(tmp_path / "run", 8)
    named = tuple(Baseline(str(n), plan.space.sample(np.random.default_rng(n))) for n in range(7))
    view = search(replace(plan, baselines=named)).view
    assert [(trial.state, trial.rungs) for trial in view.trials[:7]] == [("complete", ())] * 7
    assert any(_would_stop(HALVING, view.trials[:n], view.trials[n]) for n in range(7))
    assert view.trials[7].baseline is None and view.trials[7].rungs


def _would_stop(halving: Halving, before: Sequence[TrialRecord], trial: TrialRecord) -> bool:
    assert trial.result is not None
    metrics = [epoch.metrics for epoch in trial.result.epochs]
    return any(rung.is_missed(metrics[: rung.epoch]) for rung in halving.thresholds(before))


def test_the_cost_that_is_expected_is_that_of_trials_in_any_order():
    """Three trials are trained whole, then one in `eta` goes on from each rung."""
    assert Halving((1, 2), 3).expected_cost(3, 0, 4) == 1
    assert Halving((1, 2), 3).expected_cost(60, 60, 4) == 1
    many = Halving((1, 2), 3).expected_cost(600, 0, 4)
    assert many == pytest.approx(1 / 4 + 1 / 3 / 4 + 1 / 9 / 2, abs=0.01)
    assert many < Halving((1, 2), 3).expected_cost(60, 0, 4) < Halving((1, 2), 3).expected_cost(60, 6, 4) < 0.5
    on_rows = Halving.over(4, 0.25, 3, on_rows=True)
    assert on_rows.expected_cost(3, 0, 4) == 1.25
    assert on_rows.expected_cost(600, 0, 4) == pytest.approx(1 / 4 + 1 / 3 / 2 + 1 / 9 / 2, abs=0.02)


def test_for_the_front_a_trial_is_compared_with_those_that_are_as_small():
    trials = [ended(n, [0.1 * n], stored=n) for n in range(1, 7)]
    assert Halving((1,), 2).thresholds(trials[:5], stored=3) == (Rung(1, pytest.approx(0.2)),)
    assert Halving((1,), 2).thresholds(trials, stored=2) == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(2, 5))
def test_what_goes_on_is_one_in_eta_to_the_nearest_but_for_equals(scores, eta):
    trials = [ended(n, [score]) for n, score in enumerate(scores[:-1])]
    rungs = Halving((1,), eta).thresholds(trials)
    goes_on = all(scores[-1] >= rung.least for rung in rungs)
    better = sum(score > scores[-1] for score in scores)
    assert goes_on == (len(trials) < ENOUGH or better < max(1, int(len(scores) / eta + 0.5)))


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("halved") / "run"
    search(halved(run))
    return run


def test_pruned_trials_count_and_have_neither_score_nor_place_nor_weights(study):
    view = read_study(study)
    states = [trial.state for trial in view.trials]
    assert len(states) == N_TRIALS and set(states) == {"complete", "pruned"}
    assert all(state == "complete" for state in states[:ENOUGH])
    for trial in view.trials:
        assert trial.result is not None
        epochs = trial.result.epochs
        if trial.state == "complete":
            assert len(epochs) == EPOCHS
        else:
            assert trial.score is None and trial.result.best_epoch is None
            assert epochs[-1].epoch in HALVING.rungs
            assert epochs[-1].metrics[0][1] < next(r.least for r in trial.rungs if r.epoch == epochs[-1].epoch)
            assert not (study / "trials" / str(trial.number)).exists()
        for rung, least, _ in trial.rungs:
            assert len(epochs) <= rung or epochs[rung - 1].metrics[0][1] >= least
    best = best_trial(view.trials)
    assert best is not None and view.summary["held_out"]["trial"] == best.number
    assert {trial.state for trial in pareto_front(view.trials)} == {"complete"}


def test_plain_optuna_sees_them_as_pruned_and_without_a_value(study):
    theirs = optuna.load_study(study_name="autopeft", storage=f"sqlite:///{study}/study.db")
    states = {"complete": optuna.trial.TrialState.COMPLETE, "pruned": optuna.trial.TrialState.PRUNED}
    view = read_study(study)
    assert [trial.state for trial in theirs.trials] == [states[trial.state] for trial in view.trials]
    assert [trial.value for trial in theirs.trials] == [trial.score for trial in view.trials]


def test_the_best_is_that_of_the_search_that_trains_all_to_their_end(tmp_path, study):
    """On the toy's curves, which never cross; proposals of the random sampler do not depend on scores."""
    whole = search(replace(halved(tmp_path / "whole", sampler="random"), halving=None))
    less = search(halved(tmp_path / "less", sampler="random"))
    assert less.best is not None and whole.best is not None
    assert (less.best.number, less.best.score) == (whole.best.number, whole.best.score)
    assert [dict(t.params) for t in less.view.trials] == [dict(t.params) for t in whole.view.trials]


def test_in_pieces_and_rebuilt_from_its_events_it_is_the_search_in_one(tmp_path, study):
    search(halved(tmp_path / "run", 8))
    Store.rebuild(tmp_path / "run").close()
    search(halved(tmp_path / "run"))
    pieces, whole = read_study(tmp_path / "run"), read_study(study)
    assert essence(pieces) == essence(whole)
    assert [trial.rungs for trial in pieces.trials] == [trial.rungs for trial in whole.trials]


def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(tmp_path, study):
    run, dice = tmp_path / "run", random.Random(1)
    for _ in range(2):
        process = start(run, N_TRIALS, 0.05, "halving")
        try:
            process.wait(timeout=dice.uniform(1, 3))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    search(halved(run))
    assert essence(read_study(run)) == essence(read_study(study))


def test_several_workers_prune_the_same_trials_every_time(tmp_path):
    for run, seconds in (("slow", 0.02), ("quick", 0.0)):
        search(halved(tmp_path / run, seconds=seconds, workers=3))
    slow, quick = read_study(tmp_path / "slow"), read_study(tmp_path / "quick")
    assert "pruned" in {trial.state for trial in slow.trials}
    assert essence(slow) == essence(quick)


@pytest.fixture(scope="module")
def screened(tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("screened") / "run"
    search(screened_plan(run))
    return run


def screened_plan(run: Path, n_trials: int = N_TRIALS, **given: object) -> Plan:
    return replace(halved(run, n_trials, **given), halving=Halving.over(EPOCHS, 0.25, 2, on_rows=True))


def test_a_score_on_a_part_of_the_rows_is_no_epoch_and_no_score(screened):
    view = read_study(screened)
    stopped = [trial for trial in view.trials if trial.result is not None and not trial.result.epochs]
    assert stopped and {trial.state for trial in stopped} == {"pruned"}
    for trial in view.trials:
        assert trial.result is not None and trial.result.screened is not None
        assert {rung.epoch for rung in trial.rungs} <= {SCREENING, 2}
        least = next((rung.least for rung in trial.rungs if rung.epoch == SCREENING), 0.0)
        assert (trial in stopped) == (trial.result.screened.metrics[0][1] < least)
    best = best_trial(view.trials)
    assert best is not None and best.result is not None
    assert best.score == max(epoch.metrics[0][1] for epoch in best.result.epochs)
    text, _ = show_study(["trials"], str(screened))
    assert text.count(" on a part of the rows") == len(stopped)
    text, _ = show_study(["trial", str(stopped[0].number)], str(screened))
    assert "pruned on a part of the rows: accuracy" in text and "needed; it has no score" in text


def test_screening_in_pieces_is_screening_in_one(tmp_path, screened):
    search(screened_plan(tmp_path / "run", 6))
    Store.rebuild(tmp_path / "run").close()
    search(screened_plan(tmp_path / "run"))
    assert essence(read_study(tmp_path / "run")) == essence(read_study(screened))


def test_small_trials_of_a_front_are_not_measured_by_large_ones(tmp_path):
    view = search(halved(tmp_path / "run", N_TRIALS, sampler="evolution", objective="pareto")).view
    for trial in view.trials:
        smaller = [t for t in view.trials[: trial.number] if t.stored <= trial.stored]
        assert trial.rungs == HALVING.thresholds(smaller)
    assert "pruned" in {trial.state for trial in view.trials}


def test_reports_tell_them_apart(study):
    view = read_study(study)
    pruned = [trial for trial in view.trials if trial.state == "pruned"]
    text, data = study_status(str(study))
    n_complete = N_TRIALS - len(pruned)
    assert f"14/{N_TRIALS} trials: {n_complete} complete, {len(pruned)} pruned, 0 failed, not running\n" in text
    assert (data["complete"], data["pruned"], data["failed"]) == (n_complete, len(pruned), 0)
    text, rows = show_study(["trials"], str(study))
    assert text.count("pruned at epoch ") == len(pruned)
    assert [row["state"] for row in rows] == [trial.state for trial in view.trials]
    first = rows[pruned[0].number]
    assert first["score"] is None and first["rungs"] and first["result"]["epochs"]
    text, _ = show_study(["trial", str(pruned[0].number)], str(study))
    assert " needed; it has no score" in text


def test_they_are_seen_while_the_search_runs(tmp_path):
    out, screen = io.StringIO(), Console(file=io.StringIO(), width=200, force_terminal=True)
    with LineView(Console(file=out)) as lines, LiveView(screen) as table:
        view = search(halved(tmp_path / "run", 8), lambda event: (lines(event), table(event))).view
        with screen.capture() as frame:
            screen.print(table._draw())
    n_pruned = sum(trial.state == "pruned" for trial in view.trials)
    assert n_pruned and f"8/8 trials, {n_pruned} pruned |" in frame.get()
    told = [line for line in out.getvalue().splitlines() if line.startswith("trial ")]
    assert [" 8/8 " in line for line in told] == [False] * 7 + [True]
    assert sum("pruned at epoch " in line and " needed " in line for line in told) == n_pruned
    assert "failed" not in out.getvalue()


def test_the_options_come_from_flags_files_and_variables():
    assert resolve_settings({"budget": "1k"}, environ={}).pruner == "none"
    settings = resolve_settings({"budget": "1k"}, environ={"AUTOPEFT_PRUNER": "halving", "AUTOPEFT_FIRST_RUNG": "0.3"})
    assert (settings.pruner, settings.first_rung) == ("halving", 0.3)
    for wrong in ({"pruner": "asha"}, {"first_rung": 1.0}, {"eta": 1}):
        with pytest.raises(ConfigError, match=next(iter(wrong)).replace("_", "-")):
            resolve_settings({"budget": "1k", **wrong}, environ={})
