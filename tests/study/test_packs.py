"""Studies whose workers train several trials together."""

import signal
import subprocess
import sys

import pytest

from autopeft.engine.pack_size import MOST, pack_size
from autopeft.engine.recipe import TrainingSpec
from autopeft.engine.toy import ToyBackend
from autopeft.errors import ConfigError
from autopeft.study.packs import trials_together
from autopeft.study.record import PACK_SUMMARY
from autopeft.study.search import search
from autopeft.study.settings import resolve_settings
from tests.anatomies import bert_like
from tests.engine.checkpoints import checkpoint, word_task
from tests.engine.tasks import multiple_choice, write
from tests.study.packed_search import N_TRIALS
from tests.study.test_search import check_invariants, essence
from tests.study.toy_search import toy_plan


def test_three_in_a_pack_propose_what_three_workers_do(tmp_path):
    search(toy_plan(tmp_path / "workers", 12, workers=3))
    search(toy_plan(tmp_path / "pack", 12, ToyBackend(seconds_per_epoch=0.01), pack=3))
    search(toy_plan(tmp_path / "pieces", 5, pack=3))
    search(toy_plan(tmp_path / "pieces", 12, pack="3"))
    studies = [essence(check_invariants(tmp_path / run, 12)) for run in ("workers", "pack", "pieces")]
    assert studies[0] == studies[1] == studies[2]


def test_trials_whose_worker_died_are_repeated(tmp_path):
    backend = ToyBackend(epochs=3, seconds_per_epoch=0.02, failures={4: "kill"})
    view = search(toy_plan(tmp_path / "run", 10, backend, pack=3)).view
    killed = [trial for trial in view.trials if trial.state == "failed"]
    assert 1 <= len(killed) <= 3 and all(trial.result.cause == "killed" for trial in killed)
    assert {trial.retry_of for trial in view.trials} - {None} == {trial.number for trial in killed}
    check_invariants(tmp_path / "run", 10)


def test_a_death_that_costs_many_trials_is_one_failure(tmp_path):
    backend = ToyBackend(epochs=60, seconds_per_epoch=0.01, failures={7: "kill"})
    view = search(toy_plan(tmp_path / "run", 8, backend, pack=8)).view
    assert sum(trial.state == "failed" for trial in view.trials) > 5
    check_invariants(tmp_path / "run", 8)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_real_study_in_packs_that_is_killed_twice_ends_as_the_uninterrupted_one(tmp_path):
    checkpoint(tmp_path / "model")
    write(tmp_path / "rows.jsonl", multiple_choice(48))

    def run(name: str, *death: int) -> int:
        command = [sys.executable, "-m", "tests.study.packed_search", tmp_path, tmp_path / name, *death]
        return subprocess.run(list(map(str, command)), check=False).returncode

    assert run("whole") == 0
    assert run("killed", 1, 1) == run("killed", 5, 2) == -signal.SIGKILL
    assert run("killed") == 0
    whole, killed = (check_invariants(tmp_path / name, N_TRIALS).trials for name in ("whole", "killed"))
    for one, other in zip(killed, whole, strict=True):
        assert (one.number, dict(one.params), one.architecture) == (
            other.number,
            dict(other.params),
            other.architecture,
        )
        assert one.score == pytest.approx(other.score, abs=1e-6)
        assert one.result.best_epoch == other.result.best_epoch
        for epoch, expected in zip(one.result.epochs, other.result.epochs, strict=True):
            assert epoch.train_loss == pytest.approx(expected.train_loss, abs=1e-6)


def test_a_pack_of_its_own_choice_is_kept_in_the_study(tmp_path):
    plan = toy_plan(tmp_path / "run", 2)
    assert search(plan).view.summary[PACK_SUMMARY] == 1


@pytest.mark.parametrize("wrong", [0, "many", 1.5])
def test_a_pack_is_a_number_or_auto(wrong):
    with pytest.raises(ConfigError, match="pack"):
        resolve_settings({"budget": "1%", "pack": wrong}, environ={})
    assert resolve_settings({"budget": "1%"}, environ={"AUTOPEFT_PACK": "4"}).pack == 4


def test_small_models_on_a_gpu_want_company_and_large_ones_none():
    bert, large, seven_billion = (
        pack_size(12, 768, 86_000_000, 32 * 40),
        pack_size(24, 1024, 303_000_000, 32 * 60),
        pack_size(32, 4096, 6_500_000_000, 16 * 300),
    )
    assert 16 >= bert > large > seven_billion == 1
    assert pack_size(6, 384, 10_000_000, 8 * 10) == MOST


def test_on_a_cpu_a_trial_trains_alone():
    assert trials_together(bert_like(6, 384, 22_713_216), TrainingSpec(), word_task(), "cpu") == 1
