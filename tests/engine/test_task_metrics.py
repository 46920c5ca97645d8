"""Metrics of tags and texts against seqeval, rouge-score and sacrebleu; metrics of other packages."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from autopeft.engine.metrics import METRICS, find_metric, interval
from autopeft.engine.recipe import TaskSpec
from autopeft.engine.tags import entities, is_iob
from autopeft.errors import ConfigError, EnvironmentProblem

TAGS = ("O", "B-X", "I-X", "B-Y", "I-Y")
rows_of_tags = st.lists(
    st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), min_size=1, max_size=8), min_size=1, max_size=8
)


@settings(max_examples=60, deadline=None)
@given(rows=rows_of_tags)
def test_entity_f1_is_that_of_seqeval(rows):
    seqeval = pytest.importorskip("seqeval.metrics")
    predicted = [[said for said, _ in row] for row in rows]
    true = [[tag for _, tag in row] for row in rows]
    expected = seqeval.f1_score(true, predicted, zero_division=0)
    assert METRICS["entity_f1"].score(predicted, true) == pytest.approx(float(expected), abs=1e-12)


def test_entities_end_where_another_begins():
    assert entities(["B-X", "I-X", "B-X", "O", "I-Y", "I-X"]) == {("X", 0, 1), ("X", 2, 2), ("Y", 4, 4), ("X", 5, 5)}
    assert entities(["B-X", "I-X", "E-X", "S-X", "U-Y"]) == {("X", 0, 2), ("X", 3, 3), ("Y", 4, 4)}
    assert entities(["B-X", None, "I-X"]) == {("X", 0, 0), ("X", 2, 2)}
    assert is_iob(["O", "B-X", "I-X"])
    assert not is_iob(["NOUN", "O"])
    assert not is_iob(["O"])


def test_words_that_were_not_seen_are_not_right():
    assert METRICS["token_accuracy"].score([["O", None]], [["O", "O"]]) == 0.5


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000))
def test_f1_of_several_labels_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    P, Y = rng.integers(0, 2, (2, 12, 3))
    P[0], Y[1] = 1, 1
    for average in ("micro", "macro"):
        expected = sklearn.metrics.f1_score(Y, P, average=average, zero_division=0)
        assert METRICS[f"{average}_f1"].score(P, Y) == pytest.approx(expected, abs=1e-12)
    assert METRICS["accuracy"].score(P, Y) == pytest.approx(sklearn.metrics.accuracy_score(Y, P))


def texts(seed: int) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    true = [
        " ".join(rng.choice(["the", "cat", "sat", "on", "a", "mat"]) for _ in range(rng.randint(4, 9)))
        for _ in range(6)
    ]
    said = [" ".join(word for word in text.split() if rng.random() < 0.8) for text in true]
    return said, true


@pytest.mark.parametrize("seed", range(4))
def test_bleu_and_rouge_are_those_of_their_libraries(seed):
    sacrebleu, scorers = pytest.importorskip("sacrebleu"), pytest.importorskip("rouge_score.rouge_scorer")
    said, true = texts(seed)
    expected = sacrebleu.corpus_bleu(said, [true]).score / 100
    assert METRICS["bleu"].score(said, true) == pytest.approx(expected, abs=1e-12)
    scorer = scorers.RougeScorer(["rougeL"], use_stemmer=True)
    each = [scorer.score(reference, text)["rougeL"].fmeasure for text, reference in zip(said, true, strict=True)]
    assert METRICS["rougeL"].score(said, true) == pytest.approx(sum(each) / len(each))


@pytest.mark.parametrize("name", ["bleu", "exact_match", "entity_f1", "perplexity"])
def test_intervals_are_over_rows_and_hold_the_score(name):
    rng = np.random.default_rng(0)
    match name:
        case "entity_f1":
            P, Y = [[list(row) for row in rng.choice(TAGS, (20, 4))] for _ in range(2)]
        case "perplexity":
            P, Y = rng.uniform(1, 9, 20), np.full(20, 3.0)
        case _:
            P, Y = (4 * part for part in texts(1))
            P = [*P[:12], *Y[12:]]
    low, high = interval(METRICS[name], P, Y, seed=0)
    assert low <= METRICS[name].score(P, Y) <= high
    assert low < high


def test_perplexity_is_of_all_tokens_and_not_the_mean_of_rows():
    score = METRICS["perplexity"].score(np.array([2.0, 30.0]), np.array([1.0, 9.0]))
    assert score == pytest.approx(math.exp(3.2))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with three metrics."""
    info = tmp_path / "their_metrics-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-metrics\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[autopeft.metrics]\nhalf_right = their_metrics:half_right\nerrors = their_metrics:errors\n"
        "broken = their_metrics_absent:x\nwords = their_metrics:words\n"
    )
    (tmp_path / "their_metrics.py").write_text(
        "def half_right(predicted, true):\n    return sum(p == t for p, t in zip(predicted, true)) / len(true) / 2\n"
        "def errors(predicted, true):\n    return sum(p != t for p, t in zip(predicted, true))\n"
        "errors.is_minimised = True\n"
        "def words(predicted, true):\n    return 'many'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("package")
def test_a_metric_of_another_package_is_used_by_its_name():
    assert TaskSpec(metric="half_right").metric == "half_right"
    metric = find_metric("half_right", "classification")
    P, Y = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])
    assert metric.score(P, Y) == 0.375
    low, high = interval(metric, P, Y, seed=0)
    assert 0 <= low <= 0.375 <= high <= 0.5
    assert not metric.is_minimised
    assert metric.reads == "predictions"
    errors = find_metric("errors", "causal_lm")
    assert errors.is_minimised
    assert errors.reads == "texts"
    assert errors.score(["a", "b"], ["a", "c"]) == 1


@pytest.mark.usefixtures("package")
def test_metrics_that_do_not_work_are_told_as_theirs():
    with pytest.raises(EnvironmentProblem, match=r"metric broken \(their_metrics_absent:x\): cannot be imported"):
        find_metric("broken", "classification")
    with pytest.raises(TypeError, match="metric words gave str, it must give a number"):
        find_metric("words", "classification").score([0], [1])
    with pytest.raises(ValueError, match=r"no metric 'half_rigth'. Did you mean 'half_right'"):
        TaskSpec(metric="half_rigth")


def test_a_recipe_does_not_name_code():
    with pytest.raises(
        ValueError, match=r"no metric 'os:getcwd'.*Code is named by an entry point of the group autopeft"
    ):
        TaskSpec(metric="os:getcwd")
    with pytest.raises(ConfigError, match="no metric 'absent' is installed"):
        find_metric("absent", "classification")
