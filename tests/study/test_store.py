"""What a study holds after it has been written, and what it refuses to hold."""

import math
import resource
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState

from autopeft.errors import EnvironmentProblem, StudyBusyError, StudyCorruptError, StudyMismatchError, UsageError
from autopeft.study.events import read
from autopeft.study.reader import read_study
from autopeft.study.store import Store
from tests.study.studies import DISTRIBUTIONS, FORK, advance, identity, in_child, params, result, search, start


def optuna_study(run: Path) -> optuna.Study:
    return optuna.load_study(study_name="autopeft", storage=f"sqlite:///{run}/study.db")


def test_the_reader_agrees_with_optuna(tmp_path):
    with Store.create(tmp_path, identity()) as store:
        advance(store, 12)
        store.begin(params(12), DISTRIBUTIONS, start(12))
        store.set_summary("final", {"test": 0.5})
    view = read_study(tmp_path)
    theirs = optuna_study(tmp_path).trials
    states = {TrialState.RUNNING: "running", TrialState.COMPLETE: "complete", TrialState.FAIL: "failed"}
    assert [t.number for t in theirs] == [t.number for t in view.trials]
    assert [states[t.state] for t in theirs] == [t.state for t in view.trials]
    assert [t.params for t in theirs] == [dict(t.params) for t in view.trials]
    assert [{n: type(v) for n, v in t.params.items()} for t in theirs] == [
        {n: type(v) for n, v in t.params.items()} for t in view.trials
    ]
    assert [t.value for t in theirs] == [t.score for t in view.trials]
    assert [t.datetime_start.timestamp() for t in theirs] == pytest.approx([t.started for t in view.trials], abs=1e-3)
    assert view.summary == {"final": {"test": 0.5}}


def test_what_is_stored_is_what_was_given(tmp_path):
    with Store.create(tmp_path, identity()) as store:
        number = store.begin(params(0), DISTRIBUTIONS, start(0))
        assert number == 0
        assert [t.number for t in store.unfinished()] == [0]
        store.finish(0, result(0))
        retry = store.begin(params(1), DISTRIBUTIONS, replace(start(1), retry_of=0))
        memory = store.trials
    view = read_study(tmp_path)
    assert view.trials == memory
    assert view.identity == identity()
    first, second = view.trials
    assert (first.architecture, first.stored, first.training) == (
        start(0).architecture,
        100,
        (("learning_rate", 0.001),),
    )
    assert first.result == result(0)
    assert dict(first.params) == params(0)
    assert first.finished is not None
    assert (second.state, second.retry_of, retry) == ("running", 0, 1)


def test_a_study_is_read_while_a_search_writes_to_it(tmp_path):
    with Store.create(tmp_path, identity()) as store:
        for n_trials in range(1, 4):
            advance(store, n_trials)
            assert read_study(tmp_path).trials == store.trials


def test_a_closed_study_is_one_plain_file(tmp_path):
    search(tmp_path, 2)
    assert {p.name for p in tmp_path.iterdir()} == {"study.db", "events.jsonl", "trials", ".lock"}
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "study.db").write_bytes((tmp_path / "study.db").read_bytes())
    assert read_study(copy).trials == read_study(tmp_path).trials


@pytest.mark.parametrize("name", ["a {b}", "100%", "what?", "ü #1", "-x"])
def test_a_run_folder_may_have_any_name(tmp_path, name):
    search(tmp_path / name, 1)
    search(tmp_path / name, 2)
    assert len(read_study(tmp_path / name).trials) == 2


def test_finishing_again_with_the_same_result_changes_nothing(tmp_path):
    with Store.create(tmp_path, identity()) as store:
        advance(store, 1)
        before, events = store.trials, list(read(store.events.path))
        store.finish(0, result(0))
        assert store.trials == before
        assert list(read(store.events.path)) == events
        with pytest.raises(StudyMismatchError, match="another result"):
            store.finish(0, replace(result(0), score=0.123))


def test_a_result_without_its_trial_is_refused(tmp_path):
    with Store.create(tmp_path, identity()) as store:
        advance(store, 1)
        with pytest.raises(StudyMismatchError, match="no trial 3"):
            store.finish(3, result(3))
        with pytest.raises(StudyMismatchError, match="no trial 0"):
            store.finish(0, result(1))


@pytest.mark.parametrize("score", [math.inf, -math.inf, math.nan])
def test_a_score_that_is_not_finite_never_completes_a_trial(tmp_path, score):
    told = result(0)
    object.__setattr__(told, "score", score)  # past the checks of TrialResult
    with Store.create(tmp_path, identity()) as store:
        store.begin(params(0), DISTRIBUTIONS, start(0))
        with pytest.raises(ValueError):
            store.finish(0, told)
        assert store.trials[0].state == "running"
    assert optuna_study(tmp_path).trials[0].state == TrialState.RUNNING


def test_a_trial_outside_the_space_is_refused_and_leaves_no_trace(tmp_path):
    with Store.create(tmp_path, identity()) as store:
        advance(store, 1)
        with pytest.raises(StudyMismatchError, match="trial 1"):
            store.begin(params(1) | {"gate": "unheard of"}, DISTRIBUTIONS, start(1))
        with pytest.raises(StudyMismatchError, match="trial 1"):
            other = DISTRIBUTIONS | {"gate": CategoricalDistribution(["none", "mean", "token"])}
            store.begin(params(1), other, start(1))
        with pytest.raises(StudyMismatchError, match="trial 1"):
            store.begin({}, DISTRIBUTIONS, start(1))
        advance(store, 2)
        assert [t.number for t in store.trials] == [0, 1]
    search(tmp_path, 3)


def test_a_finished_trial_never_ends_before_it_began(tmp_path):
    times = iter([1000.0] * 4 + [10.0] * 100)
    with Store.create(tmp_path, identity(), clock=lambda: next(times)) as store:
        advance(store, 2)
        assert all(t.finished >= t.started for t in store.trials)


def test_totals_and_versions_may_change_and_are_noted(tmp_path):
    with Store.create(tmp_path, identity()) as store:
        grown = identity(trials=99, budget="1%", budget_parameters=1000, facts={"torch": "2.14"})
        assert store.extend(grown) == ("torch: was 2.13, now 2.14",)
    assert read_study(tmp_path).identity == grown
    with Store.open(tmp_path) as store:
        assert store.identity == grown
        assert store.extend(grown) == ()


def test_another_study_is_refused_and_nothing_is_written(tmp_path):
    with Store.create(tmp_path, identity()) as store:
        with pytest.raises(StudyMismatchError, match="seed: was 0, now 1"):
            store.extend(identity(seed=1))
        assert store.identity == identity()
    assert [event["kind"] for event in read(tmp_path / "events.jsonl")] == ["study_created"]


def test_a_study_is_not_made_twice(tmp_path):
    search(tmp_path, 1)
    with pytest.raises(StudyBusyError):
        Store.create(tmp_path, identity())


def test_of_several_processes_one_makes_the_study(tmp_path):
    together = FORK.Barrier(4)

    def create() -> None:
        together.wait()
        Store.create(tmp_path, identity()).close()

    answers = FORK.SimpleQueue()
    children = [FORK.Process(target=lambda: answers.put(in_child(create))) for _ in range(4)]
    for child in children:
        child.start()
    outcomes = [answers.get() for _ in children]
    for child in children:
        child.join()
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType", *["StudyBusyError"] * 3]
    assert read_study(tmp_path).identity == identity()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["events.jsonl", "study.db"]


def test_opening_what_is_not_there_says_how_to_make_it(tmp_path):
    for function in (Store.open, read_study):
        with pytest.raises(UsageError, match="autopeft search"):
            function(tmp_path / "none")


def test_optuna_keeps_its_voice_outside_the_store(tmp_path, capfd):
    before = optuna.logging.get_verbosity()
    search(tmp_path, 2)
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")


def test_a_full_disk_loses_nothing(tmp_path):
    """A limit on file sizes stands for the disk: every write past it fails, at a later point each time."""

    def fill() -> int:
        store = Store.create(tmp_path, identity())
        advance(store, 1)
        largest = max(p.stat().st_size for p in tmp_path.iterdir())
        refused = 0
        for room in range(0, 60_000, 3_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest + room, resource.RLIM_INFINITY))
            try:
                advance(store, 4)
            except EnvironmentProblem:
                refused += 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        advance(store, 4)
        store.close()
        return refused

    assert in_child(fill) > 0
    assert [t.result for t in read_study(tmp_path).trials] == [result(n) for n in range(4)]
    with Store.open(tmp_path) as store:
        assert len(store.trials) == 4


def test_a_study_is_rebuilt_from_its_events(tmp_path):
    with Store.create(tmp_path, identity()) as store:
        advance(store, 6)
        store.begin(params(6), DISTRIBUTIONS, start(6))
        store.set_summary("final", [1, 2.5])
    before = read_study(tmp_path)
    (tmp_path / "study.db").unlink()
    with pytest.raises(StudyCorruptError, match=r"7 trials.*--rebuild"):
        Store.create(tmp_path, identity())
    with pytest.raises(StudyCorruptError, match=r"7 trials.*--rebuild"):
        Store.open(tmp_path)
    Store.rebuild(tmp_path).close()
    assert read_study(tmp_path) == before
    Store.rebuild(tmp_path).close()
    assert read_study(tmp_path) == before
    assert (tmp_path / "study.db.corrupt-1").exists()
    search(tmp_path, 8)


def test_lost_events_are_written_again(tmp_path):
    search(tmp_path, 6)
    before = read_study(tmp_path)
    (tmp_path / "events.jsonl").unlink()
    search(tmp_path, 6)
    (tmp_path / "study.db").unlink()
    Store.rebuild(tmp_path).close()
    assert read_study(tmp_path) == before


def test_events_of_another_study_are_refused(tmp_path):
    for name in ("a", "b"):
        search(tmp_path / name, 2)
    (tmp_path / "a" / "events.jsonl").replace(tmp_path / "b" / "events.jsonl")
    with pytest.raises(StudyMismatchError, match="two studies"):
        Store.open(tmp_path / "b")
