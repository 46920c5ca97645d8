"""Runs of samplers: what is counted, what is kept, what is told."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest

from autopeft.bench.comparing import compare, curves, problem_names, read_runs, summary
from autopeft.bench.plot import regret_svg
from autopeft.bench.running import run_sampler, sampler_version
from autopeft.bench.suite import load_problem
from autopeft.bench.users import USERS, OptunaStudy, violation
from autopeft.cli import run
from autopeft.errors import StudyCorruptError, UnknownNameError

PROBLEM = "lora-12-patchy"


def test_regret_is_that_of_the_best_true_score_so_far():
    done = run_sampler("random", load_problem(PROBLEM), seed=0, n_trials=12)
    regrets = np.array(done.regrets)
    assert len(regrets) == 12 and (np.diff(regrets) <= 0).all() and (regrets >= 0).all()
    assert done.over_budget == 0
    again = run_sampler("random", load_problem(PROBLEM), seed=0, n_trials=12)
    other = run_sampler("random", load_problem(PROBLEM), seed=1, n_trials=12)
    assert again.regrets == done.regrets != other.regrets


@pytest.mark.parametrize("name", ["optuna-tpe", "optuna-tpe-multivariate", "optuna-nsga2"])
def test_users_of_optuna_waste_trials_over_the_budget(name):
    problem = load_problem(PROBLEM)
    study = OptunaStudy(USERS[name], problem.space, seed=0)
    over = 0
    for _ in range(14):
        candidate = study.ask()
        over += violation(problem.space, candidate) > 0
        assert (violation(problem.space, candidate) > 0) == (not problem.space.is_valid(candidate))
        study.tell(candidate, 80.0)
    assert over > 0
    assert run_sampler(name, problem, seed=0, n_trials=14).over_budget > 0


def test_optunas_gaussian_process_gets_past_its_random_trials():
    done = run_sampler("optuna-gp", load_problem(PROBLEM), seed=0, n_trials=11)
    assert len(done.regrets) == 11


def test_before_anything_fits_the_model_without_adapters_stands():
    problem = load_problem(PROBLEM)
    done = run_sampler("optuna-tpe", problem, seed=3, n_trials=20)
    assert max(done.regrets) <= problem.best - problem.without


def test_finished_runs_are_kept_and_a_cut_line_is_run_again(tmp_path):
    file = tmp_path / "runs.jsonl"
    told = []
    options = {"seeds": 2, "trials": 5, "results": file}
    first = compare("synthetic", ["random"], [PROBLEM], **options)
    lines = file.read_text().splitlines()
    assert len(lines) == 2
    file.write_text(lines[0] + "\n" + lines[1][:40])
    again = compare("synthetic", ["random"], [PROBLEM], **options, tell=told.append)
    assert told[0].startswith("1 of 2 runs")
    assert {r.regrets for r in again.runs} == {r.regrets for r in first.runs}
    file.write_text(lines[0][:40] + "\n" + lines[1] + "\n")
    with pytest.raises(StudyCorruptError, match=r"runs\.jsonl:1"):
        list(read_runs(file))


def test_the_held_out_suite_holds_other_surfaces(tmp_path):
    held = set(problem_names("held-out"))
    assert len(held) == 8 and not held & set(problem_names("synthetic"))
    found = compare("held-out", ["random"], ["held-lora-24-patchy"], seeds=1, trials=5, results=tmp_path / "r.jsonl")
    assert found.runs[0].regrets != run_sampler("random", load_problem(PROBLEM), seed=0, n_trials=5).regrets
    with pytest.raises(UnknownNameError, match="held-lora-24-patchy"):
        problem_names("held-out", ["lora-24-patchy"])


def test_a_changed_sampler_has_another_version():
    versions = {name: sampler_version(name) for name in ("random", "tpe", "optuna-tpe")}
    assert len(set(versions.values())) == 3
    with pytest.raises(UnknownNameError, match="'optuna-tp'"):
        sampler_version("optuna-tp")


def test_the_interval_holds_the_mean_and_narrows_with_seeds():
    rng = np.random.default_rng(0)
    few, many = summary(rng.normal(3, 1, 5)), summary(rng.normal(3, 1, 500))
    assert few.low < few.mean < few.high
    assert many.high - many.low < few.high - few.low
    assert many.standard_error == pytest.approx(1 / np.sqrt(500), rel=0.15)


def test_the_plot_is_svg_with_a_line_for_every_sampler(tmp_path):
    found = compare("synthetic", ["random", "tpe"], [PROBLEM], seeds=2, trials=4, results=tmp_path / "r.jsonl")
    tree = ElementTree.fromstring(regret_svg("a < b", curves(found, found.problems)))
    lines = [element for element in tree.iter() if element.tag.endswith("polyline")]
    assert [len(line.attrib["points"].split()) for line in lines] == [4, 4]
    assert any(element.text == "a < b" for element in tree.iter())


def test_the_command_prints_a_table_and_json(tmp_path, capsys):
    arguments = ["bench", "samplers", "--samplers", "random", "--problems", PROBLEM, "--seeds", "2", "--trials", "3"]
    arguments += ["--results", str(tmp_path / "r.jsonl"), "--plot", str(tmp_path / "p.svg")]
    assert run(arguments) == 0
    assert "after 3" in capsys.readouterr().out
    assert run([*arguments, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["problems"][PROBLEM]["random"]["regret"]["3"]["mean"] >= 0
    assert (tmp_path / "p.svg").exists()
    assert run(["bench", "samplers", "--samplers", "randm"]) == 2
    assert "Did you mean 'random'" in capsys.readouterr().err
