"""The search loop on the toy backend: totals, resume, kills, failures, signals."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from autopeft.engine.toy import ToyBackend
from autopeft.engine.watch import Bounds
from autopeft.errors import FailurePolicyError, StudyBusyError, StudyMismatchError
from autopeft.space.search_space import SearchSpace
from autopeft.space.spec import SpaceSpec
from autopeft.study.events import read
from autopeft.study.lock import RunLock
from autopeft.study.progress import EpochEnded, TrialBegan, TrialEnded, WorkerReady
from autopeft.study.reader import read_study
from autopeft.study.record import StudyView, pareto_front
from autopeft.study.search import search
from tests.engine.test_pool import Undecided
from tests.study.toy_search import ANATOMY, toy_plan


def essence(view: StudyView) -> list[tuple[object, ...]]:
    """What two equal studies agree in: not the clock."""
    return [(t.number, dict(t.params), t.architecture.id, t.state, t.score) for t in view.trials]


def check_invariants(run: Path, n_trials: int) -> StudyView:
    """I1 to I6: a whole database, no lost or repeated trial, no unfinished one, no partial file."""
    with sqlite3.connect(run / "study.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    view = read_study(run)
    assert [t.number for t in view.trials] == list(range(len(view.trials)))
    assert sum(t.state == "complete" for t in view.trials) == n_trials
    assert all(t.state != "running" for t in view.trials)
    trained = [t.architecture.id for t in view.trials if t.state == "complete"]
    assert len(set(trained)) == len(trained)
    finished = [e["number"] for e in read(run / "events.jsonl") if e["kind"] == "trial_finished"]
    assert sorted(finished) == [t.number for t in view.trials]
    assert not list(run.rglob("*.tmp"))
    return view


def start(run: Path, n_trials: int, seconds: float = 0.0, *pruner: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.study.toy_search", str(run), str(n_trials), str(seconds), *pruner]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> StudyView:
    run = tmp_path_factory.mktemp("whole") / "run"
    search(toy_plan(run, 14))
    return check_invariants(run, 14)


def test_trials_is_a_total_and_a_finished_search_is_not_run_again(tmp_path):
    run = tmp_path / "run"
    assert len(search(toy_plan(run, 3)).view.trials) == 3
    seen = []
    outcome = search(toy_plan(run, 5), seen.append)
    assert [e.trial.number for e in seen if isinstance(e, TrialBegan)] == [3, 4]
    assert outcome.reason == "trials"
    assert outcome.view.summary["held_out"]["trial"] == outcome.best.number
    search(toy_plan(run, 5), seen.append)
    assert len([e for e in seen if isinstance(e, TrialEnded)]) == 2
    check_invariants(run, 5)


def test_a_search_in_pieces_is_the_search_in_one(tmp_path, uninterrupted):
    for n_trials in (2, 11, 14):
        search(toy_plan(tmp_path / "run", n_trials))
    assert essence(check_invariants(tmp_path / "run", 14)) == essence(uninterrupted)


def test_killed_at_any_moment_it_goes_on_and_loses_nothing(tmp_path, uninterrupted):
    run, dice = tmp_path / "run", random.Random(0)
    kills = 0
    while kills < 5:
        process = start(run, 14, 0.2)
        try:
            process.wait(timeout=dice.uniform(0.5, 4))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    end = start(run, 14)
    _, errors = end.communicate(timeout=120)
    assert end.returncode == 0, errors
    assert kills >= 2
    assert essence(check_invariants(run, 14)) == essence(uninterrupted)


def test_a_result_that_was_not_recorded_is_taken_from_its_file(tmp_path):
    run = tmp_path / "run"
    process = start(run, 60, 0.3)
    assert process.stdout is not None
    while not list(run.glob("trials/*/result.json")):
        assert process.poll() is None
    process.kill()
    process.wait()
    done = len(list(run.glob("trials/*/result.json")))
    seen = []
    search(toy_plan(run, done + 1), seen.append)
    assert len([e for e in seen if isinstance(e, EpochEnded)]) == 2  # one trial of two epochs is trained
    check_invariants(run, done + 1)


@pytest.mark.parametrize("failure", ["raise", "nan", "exit", "hang"])
def test_a_failed_trial_is_kept_with_its_cause_and_the_search_goes_on(tmp_path, failure):
    run = tmp_path / "run"
    bounds = Bounds(silence_seconds=0.05)
    outcome = search(toy_plan(run, 4, ToyBackend(failures={1: failure}), bounds=bounds))
    view = check_invariants(run, 4)
    assert view.trials[1].state == "failed"
    assert view.trials[1].result.cause == {"raise": "bug", "nan": "NaN", "exit": "killed", "hang": "hang"}[failure]
    assert outcome.reason == "trials"
    if failure in ("exit", "hang"):
        assert view.trials[2].retry_of == 1
        assert view.trials[2].architecture == view.trials[1].architecture
    else:
        assert view.trials[1].architecture.id not in {t.architecture.id for t in view.trials if t.number != 1}


def test_what_was_measured_once_holds_for_all_sessions_of_the_study(tmp_path):
    run = tmp_path / "run"
    search(toy_plan(run, 1, Undecided()))
    measured = read_study(run).summary["settled"]
    ready = []
    view = search(toy_plan(run, 3, Undecided()), ready.append).view
    assert view.summary["settled"] == measured
    facts = [event.facts for event in ready if isinstance(event, WorkerReady)]
    assert facts == [(("decided", str(measured["decided"])),)]


def test_a_worker_that_dies_twice_on_a_trial_is_not_tried_a_third_time(tmp_path):
    search(toy_plan(tmp_path / "run", 3, ToyBackend(failures={0: "kill", 1: "kill"})))
    view = check_invariants(tmp_path / "run", 3)
    assert [t.state for t in view.trials[:2]] == ["failed", "failed"]
    assert view.trials[2].architecture != view.trials[0].architecture


def test_equal_failures_in_a_row_end_the_search_with_the_cause(tmp_path):
    with pytest.raises(FailurePolicyError, match="3 trials in a row"):
        search(toy_plan(tmp_path / "run", 9, ToyBackend(failures=dict.fromkeys(range(9), "nan"))))
    assert len(read_study(tmp_path / "run").trials) == 3


def test_architectures_over_a_limit_are_no_failures_and_are_not_tried_again(tmp_path):
    rejected = dict.fromkeys(range(1, 12), "limit")
    outcome = search(toy_plan(tmp_path / "run", 3, ToyBackend(failures=rejected)))
    view = check_invariants(tmp_path / "run", 3)
    assert outcome.reason == "trials"
    assert [t.result.cause for t in view.trials if t.state == "failed"] == ["over a limit"] * 11
    assert len({t.architecture.id for t in view.trials}) == len(view.trials) == 14


def test_a_limit_that_nothing_keeps_ends_the_search_with_the_advice_to_loosen_it(tmp_path):
    with pytest.raises(FailurePolicyError, match=r"50 architectures in a row were rejected.*Loosen the limit"):
        search(toy_plan(tmp_path / "run", 9, ToyBackend(failures=dict.fromkeys(range(60), "limit"))))
    assert len(read_study(tmp_path / "run").trials) == 50


def test_only_the_best_weights_are_kept(tmp_path):
    run = tmp_path / "run"
    outcome = search(toy_plan(run, 6, keep=2))
    kept = {int(path.parent.name) for path in run.glob("trials/*/toy.json")}
    ranked = sorted(outcome.view.trials, key=lambda t: -t.score)
    assert kept == {t.number for t in ranked[:2]}
    assert len(list(run.glob("trials/*/result.json"))) == 6


def test_the_front_is_searched_and_its_weights_are_kept(tmp_path):
    run, asked = tmp_path / "run", []
    plan = toy_plan(run, 12, ToyBackend(anatomy=ANATOMY), keep=1, sampler="evolution", objective="pareto")

    def spy(ask):
        asked.append(ask.objective)
        return plan.sampler(ask)

    outcome = search(replace(plan, sampler=spy))
    assert asked == ["pareto"] * 12
    front = {t.number for t in pareto_front(outcome.view.trials)}
    assert len(front) > 1
    assert {int(path.parent.name) for path in run.glob("trials/*/toy.json")} == front
    with pytest.raises(StudyMismatchError, match="objective: was pareto, now score"):
        search(toy_plan(run, 13))


def test_the_space_is_searched_to_its_end(tmp_path):
    plan = toy_plan(tmp_path / "run", 50)
    spec = SpaceSpec.model_validate({"version": 1, "modules": {"lora": {"per": "model", "size": (0, 1, 2)}}})
    outcome = search(replace(plan, space=SearchSpace(spec, ANATOMY, 113_566)))
    assert outcome.reason == "exhausted"
    assert len(outcome.view.trials) == 2
    assert "all 2 architectures" in outcome.message


def test_another_space_is_refused_with_the_difference_and_nothing_changes(tmp_path):
    run = tmp_path / "run"
    search(toy_plan(run, 2))
    before = (run / "study.db").read_bytes()
    with pytest.raises(StudyMismatchError, match="space: was lora, now mam"):
        search(toy_plan(run, 2, space="mam"))
    assert (run / "study.db").read_bytes() == before


def test_a_second_search_in_the_same_folder_is_told_who_is_there(tmp_path):
    with RunLock(tmp_path / "run"), pytest.raises(StudyBusyError, match=f"pid {os.getpid()}"):
        search(toy_plan(tmp_path / "run", 2))


def test_several_workers_train_exactly_the_total_and_the_same_trials_every_time(tmp_path):
    for run in ("one", "two"):
        search(toy_plan(tmp_path / run, 16, ToyBackend(seconds_per_epoch=0.01), workers=3))
    search(toy_plan(tmp_path / "pieces", 7, workers=3))
    search(toy_plan(tmp_path / "pieces", 16, workers=3))
    studies = [essence(check_invariants(tmp_path / run, 16)) for run in ("one", "two", "pieces")]
    assert studies[0] == studies[1] == studies[2]


def test_a_trial_proposed_ahead_knows_as_little_as_one_more_worker_would(tmp_path):
    search(toy_plan(tmp_path / "three", 12, workers=3))
    search(toy_plan(tmp_path / "ahead", 12, ToyBackend(seconds_per_epoch=0.01), workers=2, ahead=1))
    search(toy_plan(tmp_path / "pieces", 5, workers=1, ahead=2))
    search(toy_plan(tmp_path / "pieces", 12, workers=1, ahead=2))
    studies = [essence(check_invariants(tmp_path / run, 12)) for run in ("three", "ahead", "pieces")]
    assert studies[0] == studies[1] == studies[2]


@pytest.mark.parametrize("ahead", [0, 2])
def test_proposals_are_made_while_the_workers_train(tmp_path, ahead):
    run, proposed = tmp_path / "run", []

    def listener(event):
        if isinstance(event, EpochEnded):
            proposed.append(len(read_study(run).trials) - event.number - 1)

    search(toy_plan(run, 6, ToyBackend(epochs=2), ahead=ahead), listener)
    assert proposed == [min(ahead, 5 - number) for number in range(6) for _ in range(2)]


@pytest.mark.parametrize(("sent", "reason"), [(signal.SIGINT, "SIGINT"), (signal.SIGTERM, "SIGTERM")])
def test_a_signal_ends_the_search_and_the_next_one_completes_it(tmp_path, sent, reason):
    run = tmp_path / "run"
    process = start(run, 60, 0.2)
    while not list(run.glob("trials/*/result.json")):
        assert process.poll() is None
    process.send_signal(sent)
    output, errors = process.communicate(timeout=60)
    assert output.split()[0] == reason, errors
    unfinished = [t for t in read_study(run).trials if t.state == "running"]
    assert len(unfinished) <= (1 if sent == signal.SIGTERM else 0)
    total = len(read_study(run).trials) + 1
    search(toy_plan(run, total))
    check_invariants(run, total)
