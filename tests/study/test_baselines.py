"""Published configurations as first trials: scaled to the budget, in the searched space, on every model."""

import json
from dataclasses import replace

import pytest

from autopeft.engine.toy import ToyBackend
from autopeft.resources import shipped_names
from autopeft.space.layer_map import layer_map
from autopeft.space.search_space import SearchSpace
from autopeft.space.spec import SpaceSpec, load_space
from autopeft.study.baselines import find_baselines
from autopeft.study.reader import read_study
from autopeft.study.search import search
from autopeft.study.store import Store
from tests.anatomies import ANATOMIES, bert_like
from tests.study.toy_search import toy_plan

BERT = bert_like()
BUDGET = 547_411
"""0.5 % of BERT-base."""


def found(space: SearchSpace, **training: float) -> dict[str, object]:
    return {baseline.name: baseline.candidate for baseline in find_baselines(space, training)[0]}


def layers(candidate) -> str:
    return "; ".join(layer_map(candidate.architecture))


def custom(exclude=(), **modules: object) -> SearchSpace:
    text = json.dumps({"version": 1, "modules": modules, "exclude": exclude})
    return SearchSpace(SpaceSpec.model_validate_json(text), BERT, BUDGET)


@pytest.mark.parametrize("anatomy", ANATOMIES)
@pytest.mark.parametrize("name", shipped_names("search_spaces"))
@pytest.mark.parametrize("share", [0.0005, 0.005, 0.05])
def test_every_baseline_of_every_space_is_a_point_of_it_within_the_budget(name, anatomy, share):
    model = ANATOMIES[anatomy]
    try:
        space = SearchSpace(load_space(name), model, int(share * model.n_parameters))
    except ValueError:
        pytest.skip("nothing of the space can stand in the model")
    baselines, absent = find_baselines(space, {"learning_rate": 1e-3})
    assert len(baselines) + len(absent) == 7
    assert all(space.is_valid(b.candidate) and b.candidate.stored <= space.budget for b in baselines)
    assert all(space.candidate(dict(b.candidate.params)) == b.candidate for b in baselines)
    assert len({b.candidate.architecture.id for b in baselines}) == len(baselines)


def test_they_are_as_published_where_the_budget_is_theirs():
    """UniPELT l=10, b=H/16, r=8 with mean gates; MAM of the GLUE script l=16, b=16, s=2; S4 as its paper groups it."""
    unipelt = found(SearchSpace(load_space("unipelt"), BERT, BERT.n_parameters // 50))["UniPELT"]
    assert layers(unipelt) == (
        "L00-L11 | attention: lora q,v r=8 gate=mean + prefix l=10 gate=mean | ffn: serial b=48 gate=mean"
    )
    mam = found(SearchSpace(load_space("mam"), BERT, 640_000))["MAM"]
    assert layers(mam) == "L00-L11 | attention: prefix l=16 | ffn: parallel b=16 s=2"
    s4 = SearchSpace(load_space("s4"), BERT, BUDGET)
    assert found(s4)["S4"].architecture == s4.named_points()["S4"].architecture


def test_each_is_as_large_as_the_budget_allows():
    for budget in (60_000, 150_000, BUDGET, 3_000_000):
        space = SearchSpace(load_space("hybrid"), BERT, budget)
        for name, candidate in found(space).items():
            sizes = {p.size for p in candidate.architecture.placements}
            if name in ("LoRA", "Pfeiffer", "parallel adapter") and max(sizes) < 64:
                assert len(sizes) == 1
                assert budget / 2.1 < candidate.stored <= budget


def test_the_learning_rate_is_the_recipe_s_or_the_nearest_of_the_space():
    space = SearchSpace(load_space("hybrid"), BERT, BUDGET)
    for given, used in ((3e-3, 3e-3), (0.5, 1e-2), (1e-6, 3e-4)):
        assert {dict(c.training)["learning_rate"] for c in found(space, learning_rate=given).values()} == {used}


def test_a_kind_with_a_learning_rate_of_its_own_starts_from_its_own_in_the_recipe():
    rates = {"low": 1e-4, "high": 1e-1, "log": True}
    own = custom(lora={"size": [0, 4], "learning_rate": rates}, serial={"size": [0, 4], "learning_rate": rates})
    recipe = {"learning_rate": 2e-3, "modules": {"lora": {"learning_rate": 5e-3}, "serial": None}}
    baselines = {b.name: dict(b.candidate.training) for b in find_baselines(own, recipe)[0]}
    assert baselines["LoRA"] == {"modules.lora.learning_rate": 5e-3}
    assert baselines["Pfeiffer"] == {"modules.serial.learning_rate": 2e-3}


def test_the_name_tells_what_the_space_has_otherwise():
    names = set(found(SearchSpace(load_space("hybrid"), BERT, BUDGET)))
    assert names == {"LoRA", "Pfeiffer", "parallel adapter", "MAM", "UniPELT (gate none)", "S4", "AutoPEFT"}
    assert list(found(custom(lora={"size": [0, 4, 8], "roles": "q,k,v,o", "alpha": 32}))) == ["LoRA (lora at q,k,v,o)"]
    assert list(found(custom(parallel={"size": [0, 4, 8], "scale": [1, 2]}))) == ["parallel adapter (scale 1)"]


def test_what_the_space_does_not_hold_is_left_out_with_the_reason():
    absent = dict(find_baselines(SearchSpace(load_space("lora"), BERT, BUDGET), {})[1])
    assert absent["MAM"] == "no parallel and prefix in all layers"
    assert (
        "encoder.0.prefix.size cannot be off"
        in dict(find_baselines(SearchSpace(load_space("noah"), BERT, BUDGET), {})[1])["LoRA"]
    )
    half = custom(lora={"per": "model", "size": [0, 4], "depth": {"first": [3, 6]}})
    assert dict(find_baselines(half, {})[1])["LoRA"] == "no lora in all layers"
    tight = SearchSpace(load_space("hybrid"), BERT, 20_000)
    assert "over the budget" in dict(find_baselines(tight, {})[1])["S4"]


def test_a_space_that_forbids_a_configuration_does_without_it():
    modules = {kind: {"size": [0, 4]} for kind in ("lora", "serial", "prefix")}
    free, forbidding = custom(**modules), custom([{"lora": "on", "serial": "on"}], **modules)
    assert "UniPELT (gate none)" in found(free)
    assert set(found(forbidding)) == {"LoRA", "Pfeiffer"}


def with_baselines(run, n_trials, workers=1, backend=None, space="hybrid"):
    plan = toy_plan(run, n_trials, backend, workers=workers, space=space)
    return replace(plan, baselines=find_baselines(plan.space, {"learning_rate": 1e-3})[0])


@pytest.mark.parametrize("workers", [1, 3])
def test_they_are_the_first_trials_also_in_pieces_and_with_several_workers(tmp_path, workers):
    whole = search(with_baselines(tmp_path / "whole", 10, workers)).view
    for n_trials in (1, 4, 10):
        pieces = search(with_baselines(tmp_path / "pieces", n_trials, workers)).view
    names = [b.name for b in with_baselines(tmp_path, 1).baselines]
    for view in (whole, pieces):
        assert [trial.baseline for trial in view.trials] == [*names, None, None, None]
        assert len({trial.architecture.id for trial in view.trials}) == 10
    assert [dict(t.params) for t in whole.trials] == [dict(t.params) for t in pieces.trials]


def test_a_baseline_that_fails_is_not_tried_again_and_one_that_was_killed_is_repeated_under_its_name(tmp_path):
    search(with_baselines(tmp_path / "run", 8, backend=ToyBackend(failures={0: "nan", 2: "kill"})))
    trials = read_study(tmp_path / "run").trials
    assert [t.baseline for t in trials[:4]] == ["LoRA", "Pfeiffer", "parallel adapter", "parallel adapter"]
    assert trials[3].retry_of == 2
    assert [t.baseline for t in trials].count("LoRA") == 1


def test_the_name_survives_a_rebuild_and_a_study_without_names_is_read_as_ever(tmp_path):
    search(with_baselines(tmp_path / "run", 3, space="lora"))
    Store.rebuild(tmp_path / "run").close()
    assert [t.baseline for t in read_study(tmp_path / "run").trials] == ["LoRA", None, None]
    search(toy_plan(tmp_path / "plain", 2))
    assert [t.baseline for t in read_study(tmp_path / "plain").trials] == [None, None]
