"""Trials of earlier studies as a start: which are taken, how they are kept, and what a sampler makes of them."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from autopeft.engine.toy import ToyBackend
from autopeft.errors import StudyCorruptError, StudyMismatchError, UsageError
from autopeft.samplers import Ask, Earlier, find_sampler, propose
from autopeft.space.search_space import SearchSpace
from autopeft.space.spec import load_space
from autopeft.study.earlier import EARLIER_SUMMARY, find_earlier, from_json, to_json
from autopeft.study.identity import Identity
from autopeft.study.reader import read_study
from autopeft.study.search import search
from autopeft.study.settings import resolve_settings
from autopeft.study.store import Store
from tests.samplers.test_contract import observed, run
from tests.study.toy_search import ANATOMY, toy_plan


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A study of LoRA alone: eleven complete trials and a failed one."""
    folder = tmp_path_factory.mktemp("old") / "run"
    search(toy_plan(folder, 11, ToyBackend(failures={3: "nan"})))
    return folder


def plan_from(folder, old, n_trials, **given):
    plan = toy_plan(folder, n_trials, sampler="evolution", **{"space": "lora", "from": (str(old),), **given})
    earlier, _ = find_earlier(plan.settings.from_, folder, plan.space)
    return replace(plan, earlier=earlier, identity=replace(plan.identity, earlier=plan.settings.from_))


def space_of(name: str) -> SearchSpace:
    return SearchSpace(load_space(name), ANATOMY, 113_566)


def test_complete_trials_are_taken_as_points_of_the_searched_space(old, tmp_path):
    space = space_of("hybrid")
    (earlier,), notes = find_earlier([str(old)], tmp_path, space)
    taken = {t.architecture_id: t for t in earlier.trials}
    complete = {t.architecture.id: t for t in read_study(old).trials if t.state == "complete"}
    assert 0 < len(taken) <= len(complete) == 11  # sites such as q alone are in lora and not in hybrid
    assert f"{len(taken)} of 11 complete trials" in notes[0]
    for known, trial in taken.items():
        assert space.candidate(dict(trial.params)).architecture.id == known
        assert (trial.score, trial.stored) == (complete[known].score, complete[known].stored)
        assert dict(trial.params)["learning_rate"] == dict(complete[known].training)["learning_rate"]
        assert trial.curve[-1] == trial.score
    assert len(find_earlier([str(old)], tmp_path, space_of("lora"))[0][0].trials) == 11


def test_what_cannot_be_used_is_refused_with_the_reason(old, tmp_path):
    with pytest.raises(
        UsageError, match=r"none of its 11 complete trials is in the searched space.*searched lora on toy"
    ):
        find_earlier([str(old)], tmp_path, space_of("adapters_only"))
    with pytest.raises(UsageError, match="no study"):
        find_earlier([str(tmp_path / "nothing")], tmp_path, space_of("lora"))
    with pytest.raises(UsageError, match="the run folder of the search itself"):
        find_earlier([str(tmp_path / "old" / ".." / "new")], tmp_path / "new", space_of("lora"))


def test_a_resume_needs_the_earlier_run_no_more_and_proposes_the_same(old, tmp_path):
    moved = tmp_path / "old"
    shutil.copytree(old, moved)
    whole = search(plan_from(tmp_path / "whole", moved, 6)).view
    search(plan_from(tmp_path / "pieces", moved, 3))
    search(toy_plan(moved, 13, ToyBackend(failures={3: "nan"})))  # it grows: what was taken stays
    again = search(plan_from(tmp_path / "pieces", moved, 4)).view
    shutil.rmtree(moved)
    again = search(plan_from(tmp_path / "pieces", moved, 6)).view
    assert [dict(t.params) for t in again.trials] == [dict(t.params) for t in whole.trials]
    Store.rebuild(tmp_path / "pieces").close()
    assert read_study(tmp_path / "pieces").summary[EARLIER_SUMMARY] == whole.summary[EARLIER_SUMMARY]


def test_another_start_is_another_study(old, tmp_path):
    folder = tmp_path / "run"
    search(plan_from(folder, old, 2))
    with pytest.raises(StudyMismatchError, match=f"from: was {old}, now nothing"):
        search(toy_plan(folder, 3))
    assert Identity.from_json(read_study(folder).identity.to_json()) == read_study(folder).identity


def test_an_identity_of_a_study_that_started_from_nothing_is_as_ever(tmp_path):
    plain = toy_plan(tmp_path, 2).identity.to_json()
    assert "earlier" not in plain
    with pytest.raises(StudyCorruptError, match="earlier"):
        Identity.from_json({**plain, "earlier": "runs/a"})


def test_trials_survive_their_storage_and_what_is_not_theirs_is_refused(old, tmp_path):
    earlier, _ = find_earlier([str(old)], tmp_path, space_of("lora"))
    assert from_json(to_json(earlier), tmp_path) == earlier
    for broken in ([{"name": "a"}], [{"name": "a", "trials": [{"score": 1}]}], [3]):
        with pytest.raises(StudyCorruptError, match="cannot be read"):
            from_json(broken, tmp_path)


def test_flag_key_and_argument_are_one_setting(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("budget: 0.5%\nfrom: [runs/a, runs/b]\ncost_aware: true\nbaselines: false\n")
    settings = resolve_settings({}, config, environ={})
    assert (settings.from_, settings.cost_aware, settings.baselines) == (("runs/a", "runs/b"), True, False)
    assert resolve_settings({"from_": ("runs/c",)}, config, environ={}).from_ == ("runs/c",)
    environ = {"AUTOPEFT_FROM": "runs/d", "AUTOPEFT_COST_AWARE": "false"}
    settings = resolve_settings({}, config, environ=environ)
    assert (settings.from_, settings.cost_aware) == (("runs/d",), False)


@pytest.mark.parametrize("cost_aware", [False, True])
def test_the_sampler_is_told_curves_and_sizes_and_seconds_only_if_it_weighs_them(tmp_path, cost_aware):
    plan = toy_plan(tmp_path / "run", 3, ToyBackend(failures={0: "nan"}), cost_aware=cost_aware, sampler="random")
    asked = []

    def spy(ask):
        asked.append(ask)
        return plan.sampler(ask)

    view = search(replace(plan, sampler=spy)).view
    failed, complete = asked[2].past
    assert asked[2].per_second is cost_aware
    assert (failed.state, failed.score, len(failed.curve)) == ("failed", None, 1)
    assert complete.curve == tuple(epoch.metrics[0][1] for epoch in view.trials[1].result.epochs)
    assert complete.stored == view.trials[1].stored
    assert complete.seconds == (view.trials[1].result.seconds if cost_aware else None)


def test_good_earlier_trials_help_evolution_and_bad_ones_do_not_hurt_much():
    space, sampler = space_of("hybrid"), find_sampler("evolution")
    known = run(find_sampler("tpe"), space, 40)
    good = Earlier("good", tuple(o for o in known if o.state == "complete"))
    bad = Earlier("bad", tuple(replace(o, score=-o.score) for o in good.trials))

    def best(earlier: tuple[Earlier, ...], n_trials: int) -> float:
        results = []
        for seed in range(6):
            past = []
            for number in range(n_trials):
                ask = Ask(space, past, seed * 1000 + number, earlier=earlier)
                past.append(observed(propose(sampler, ask)))
            results.append(max(o.score for o in past))
        return float(np.mean(results))

    alone = best((), 10), best((), 40)
    assert best((good,), 10) > alone[0]
    assert best((bad,), 40) > 0.75 * alone[1]
