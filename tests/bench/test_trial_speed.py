"""The speed of trials: what is measured is the same work, and an engine that does other work gets no figure."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from autopeft.bench.laws import bernoulli, configurations, uniform
from autopeft.bench.matmul_limit import Product, Replay, recorded
from autopeft.bench.sentences import sentences
from autopeft.bench.speed_plot import speed_svg
from autopeft.bench.stock_trials import WAYS, StockTask, fresh_process
from autopeft.bench.trial_speed import SpeedSettings, Study, Suite, Timed, measure
from autopeft.cli import bench_trials, run
from autopeft.engine.activation_cache import ActivationCache
from autopeft.errors import AutopeftError, UnknownNameError
from autopeft.hybrid import anatomy_of
from tests.engine.checkpoints import checkpoint, recipe
from tests.models import tiny_bert

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("models") / "bert", layers=3)


def settings(folder: Path, **changes) -> SpeedSettings:
    given = SpeedSettings(
        model=str(folder),
        revision=None,
        recipe=recipe(epochs=2, batch_size=8, learning_rate=1e-3, max_length=64),
        data=sentences(24, 8),
        kinds=("lora",),
        laws=("uniform",),
        rounds=2,
        gate_steps=5,
    )
    return replace(given, **changes)


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def speeds(folder: Path):
    return measure(settings(folder), quiet)


def test_under_the_uniform_law_every_depth_stands_once():
    rng = np.random.default_rng(0)
    assert uniform(4, 6, rng) == ((0, 1, 2, 3), (1, 2, 3), (2, 3), (3,))
    assert [layers[0] for layers in uniform(24, 4, rng)] == [0, 8, 15, 23]


def test_the_coin_is_fair_and_never_leaves_all_layers_alone():
    drawn = bernoulli(6, 2000, np.random.default_rng(0))
    assert all(drawn) and drawn[:20] == bernoulli(6, 20, np.random.default_rng(0))
    shares = np.mean([[layer in layers for layer in range(6)] for layers in drawn], axis=0)
    assert np.abs(shares - 32 / 63).max() < 0.04


@pytest.mark.parametrize("kind", ["lora", "serial", "prefix", "bitfit"])
def test_a_configuration_adapts_its_layers_and_no_others(kind):
    anatomy = anatomy_of(tiny_bert(layers=3).config)
    for one in configurations(anatomy, kind, "bernoulli", 5, 0):
        assert {p.layer for p in one.architecture.placements} == set(one.layers)
        assert one.architecture.modules == {kind}


def test_sentences_are_as_long_as_those_of_glue():
    task = sentences(400, 50)
    words = [len(re.findall(r"\w+", text)) for (text,) in task.splits["train"].texts]
    assert 15 < np.mean(words) < 24 and max(words) <= 60 and min(words) < 8
    assert set(task.splits["train"].labels) == {0, 1, 2}
    assert sentences(400, 50).content_hash == task.content_hash != sentences(400, 50, seed=1).content_hash


def test_products_of_a_training_step_are_written_down_and_those_of_an_evaluation_are_not():
    linear = torch.nn.Linear(4, 6)
    x = torch.randn(5, 4, requires_grad=True)
    with recorded() as products:
        linear(x).sum().backward()
        with torch.inference_mode():
            linear(x)
    shapes = sorted((p.M, p.K, p.N) for p in products)
    assert shapes == sorted([(5, 4, 6), (5, 6, 4), (6, 5, 4)])  # y = x W', dx = dy W, dW = dy' x
    assert sum(p.flops for p in products) == 3 * 2 * 5 * 4 * 6


def test_attention_is_six_products():
    q, k, v = (torch.randn(2, 3, n, 8, requires_grad=True) for n in (1, 7, 7))
    with recorded() as products:
        torch.nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()
    assert sum(p.flops for p in products) == 6 * 2 * (2 * 3) * 1 * 7 * 8


def test_a_replay_multiplies_matrices_of_the_recorded_shapes_as_they_lay_in_memory():
    replay = Replay([Product(1, 5, 4, 6, (False, True)), Product(3, 2, 4, 2)], torch.device("cpu"))
    replay.run()
    (a, b, out), (c, d, result) = replay._calls
    assert (a.shape, b.shape, out.shape) == ((5, 4), (4, 6), (5, 6)) and b.stride() == (1, 4)
    assert (c.shape, d.shape, result.shape) == ((3, 2, 4), (3, 4, 2), (3, 2, 2))
    assert torch.equal(result, c @ d)


def test_what_a_study_pays_once_is_divided_among_its_trials_and_ratios_are_of_one_round():
    def timed(layers: tuple[int, ...], ours: list[float], theirs: list[float], filled: list[float]) -> Timed:
        (one,) = (c for c in configurations(anatomy, "lora", "uniform", 6, 0) if c.layers == layers)
        seconds = {"ours": ours, "b1": theirs}
        epochs = {name: [t - 0.5 for t in times] for name, times in seconds.items()}
        return Timed(one, 2, seconds=seconds, epochs=epochs, filled=filled)

    anatomy = anatomy_of(tiny_bert(layers=3).config)
    first = timed((0, 1, 2), [2.0, 4.0], [4.0, 4.0], [1.0, 1.0])
    second = timed((2,), [1.0, 1.0], [4.0, 4.0], [3.0, 3.0])
    first.seconds["b0"], first.epochs["b0"] = [20.0], [10.0]
    opening = {"ours": [1.0, 1.0], "b1": [2.0, 2.0], "b0": [0.0, 0.0]}
    suite = Suite("uniform", "lora", [first, second], opening)
    assert suite.ratios("b1") == [10 / 8, 10 / 10]  # two trials, as they were measured
    assert suite.ratios("b1", Study(60, 2)) == [pytest.approx(242 / 95), pytest.approx(242 / 155)]
    assert suite.ratios("b1", Study(10, 2), top_third=True) == [pytest.approx(42 / 14)] * 2
    assert suite.ratios("b1", Study(10, 6), top_third=True) == [pytest.approx(112 / 24)] * 2
    assert suite.ratios("b0", Study(10, 2)) == [pytest.approx(200 / 25)]  # beside our trial of that configuration
    assert suite.ratio("b0", Study(), top_third=True) is None
    assert (found := suite.ratio("b1")) is not None and found.median == pytest.approx((1 + 1.25) / 2)
    assert (found := first.ratio("b1", Study(1, 4))) is not None and found.low == 7.5 / 7.5


def test_all_contenders_train_all_configurations_and_the_losses_agree(speeds):
    (suite,) = speeds.suites
    assert [one.configuration.first for one in suite.timed] == [0, 1, 2]
    for one in suite.timed:
        assert {name: len(seconds) for name, seconds in one.seconds.items()} == {"ours": 2, "b1": 2, "b2": 2}
        for name, seconds in one.seconds.items():
            assert all(0 < epochs < whole for epochs, whole in zip(one.epochs[name], seconds, strict=True))
        assert one.n_steps == 2  # of 3 in the first epoch; the first is not timed
        assert one.share_of_limit.low > 0
    assert [(a.configuration, a.steps) for a in speeds.agreements] == [("lora L1+", 5)]
    assert speeds.agreements[0].largest <= 1e-5


@pytest.mark.parametrize("kind", ["serial", "prefix"])
def test_losses_of_other_kinds_agree_too(kind, folder):
    found = measure(settings(folder, kinds=(kind,), rounds=1, ways=(), n_configurations=2), quiet)
    assert found.agreements[0].largest <= 1e-5


def test_an_engine_that_trains_something_else_gets_no_figure(folder, monkeypatch):
    read = ActivationCache.read

    def wrong(self: ActivationCache, *args) -> Tensor:
        return read(self, *args) * 1.001

    monkeypatch.setattr(ActivationCache, "read", wrong)
    said: list[str] = []
    with pytest.raises(AutopeftError, match=r"lora L1\+: at step 1 the loss is .* No ratio"):
        measure(settings(folder), said.append)
    assert not said


@pytest.mark.slow
def test_a_fresh_process_trains_the_same_trial(folder):
    asked = settings(folder)
    task = StockTask(asked.model, None, asked.recipe, asked.data, ("classifier",), "cpu")
    (one, *_) = configurations(anatomy_of(tiny_bert(layers=3).config), "lora", "uniform", 3, 0)
    of_all, of_epochs = fresh_process(task, WAYS["b0"], one, 0, True)
    assert of_all > of_epochs > 0
    absent = replace(task, model=str(folder / "absent"))
    with pytest.raises(AutopeftError, match=r"b0: a fresh process failed: .*absent"):
        fresh_process(absent, WAYS["b0"], one, 0, True)


def test_text_json_and_plot_tell_the_same(speeds):
    (suite,) = speeds.suites
    ratio = suite.ratio("b1", Study(60, 20))
    text, data = bench_trials._text(speeds), json.loads(json.dumps(bench_trials._data(speeds)))
    assert f"{ratio.median:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]" in text
    assert data["suites"][0]["ratios"][0] == {
        "over": "b1", "layers": "all", "study": {"trials": 60, "epochs": 20}, **vars(ratio)
    }  # fmt: skip
    svg = speed_svg(speeds)
    assert svg.count('r="4"') == 3 * 2 + 2 and "</svg>" in svg


def test_unknown_names_list_what_there_is(folder, capsys):
    with pytest.raises(UnknownNameError, match=r"unknown baseline 'b9'.*b0, b1, b2"):
        measure(settings(folder, ways=("b9",)), quiet)
    assert run(["bench", "trials", "--model", str(folder), "--laws", "unifrom"]) == 2
    assert "uniform" in capsys.readouterr().err
