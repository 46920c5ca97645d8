"""Successive halving: who is stopped, that it depends on outcomes alone, and that what is stopped has no score."""

import io
import random
import subprocess
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from autopeft.cli.studies import show_study, study_status
from autopeft.cli.views import LineView, LiveView
from autopeft.engine.trial import EpochRecord, TrialResult
from autopeft.errors import ConfigError
from autopeft.space.architecture import Architecture
from autopeft.study.halving import ENOUGH, Halving
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


def ended(number: int, scores: list[float], state: str = "complete", stored: int = 10) -> TrialRecord:
    epochs = tuple(EpochRecord(n, n, 0.0, (("accuracy", s),), 1.0) for n, s in enumerate(scores, 1))
    score = max(scores) if state == "complete" else None
    cause = "killed" if state == "failed" else None
    result = TrialResult(number, state, score, 1 if score else None, epochs, 0, 0, 0, 1.0, None, cause)  # type: ignore[arg-type]
    return TrialRecord(number, state, {}, Architecture.of([]), stored, (), None, 0.0, 1.0, result)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("epochs", "first", "eta", "rungs"),
    [
        (4, 0.25, 2, (1, 2)),
        (8, 0.25, 3, (2, 6)),
        (10, 0.25, 2, (3, 6)),
        (100, 0.07, 4, (7, 28)),
        (2, 0.25, 2, (1,)),
        (1, 0.25, 2, ()),
        (3, 0.9, 2, ()),
    ],
)
def test_rungs_are_a_share_of_the_epochs_and_eta_times_as_late_each(epochs, first, eta, rungs):
    assert Halving.over(epochs, first, eta).rungs == rungs


def test_a_trial_has_to_be_among_the_best_of_those_that_reached_the_rung():
    halving = Halving((1, 2), 2)
    trials = [ended(n, [score, score + 0.1, 0.9]) for n, score in enumerate([0.1, 0.4, 0.3])]
    assert halving.thresholds(trials[: ENOUGH - 1]) == ()
    assert halving.thresholds(trials) == ((1, 0.3), (2, 0.4))
    trials += [ended(3, [0.2], "pruned"), ended(4, [0.5, 0.6], "failed"), ended(5, [0.6])]  # the last ended by patience
    assert halving.thresholds(trials) == ((1, 0.3), (2, 0.4))
    assert Halving((1,), 4).thresholds(trials) == ((1, 0.4),)


def test_a_score_that_fell_again_counts_by_its_best():
    trials = [ended(n, [0.8, 0.2]) for n in range(ENOUGH)]
    assert Halving((2,), 2).thresholds(trials) == ((2, 0.8),)


def test_for_the_front_a_trial_is_compared_with_those_that_are_as_small():
    trials = [ended(n, [0.1 * n], stored=n) for n in range(1, 7)]
    assert Halving((1,), 2).thresholds(trials[:5], stored=3) == ((1, pytest.approx(0.2)),)
    assert Halving((1,), 2).thresholds(trials, stored=2) == ()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(2, 5))
def test_what_goes_on_is_at_most_one_in_eta_but_for_equals(scores, eta):
    trials = [ended(n, [score]) for n, score in enumerate(scores[:-1])]
    thresholds = dict(Halving((1,), eta).thresholds(trials))
    goes_on = scores[-1] >= thresholds.get(1, 0.0)
    better = sum(score > scores[-1] for score in scores)
    assert goes_on == (len(trials) < ENOUGH or better < -(-len(scores) // eta))


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
            assert epochs[-1].metrics[0][1] < dict(trial.rungs)[epochs[-1].epoch]
            assert not (study / "trials" / str(trial.number)).exists()
        for rung, least in trial.rungs:
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
