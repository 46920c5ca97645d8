import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.engine.toy import ToyBackend, toy_score
from autopeft.engine.trial import (
    RESULT_FILE,
    EpochRecord,
    NotFiniteError,
    TrialJob,
    TrialResult,
    read_result,
    trial_seed,
    write_result,
)
from autopeft.engine.worker import run_trial
from autopeft.errors import StudyCorruptError
from autopeft.space.architecture import Architecture, place

finite = st.floats(allow_nan=False, allow_infinity=False)
epochs = st.builds(
    EpochRecord,
    epoch=st.integers(1, 100),
    steps=st.integers(1),
    train_loss=finite,
    metrics=st.dictionaries(st.text(max_size=8), finite, max_size=3).map(lambda d: tuple(d.items())),
    seconds=finite,
)
complete = st.builds(
    TrialResult,
    number=st.integers(0),
    state=st.just("complete"),
    score=finite,
    best_epoch=st.integers(1, 100),
    epochs=st.lists(epochs, max_size=3).map(tuple),
    stored=st.integers(0),
    trained=st.integers(0),
    head=st.integers(0),
    seconds=finite,
    peak_memory_bytes=st.none() | st.integers(0),
)


@given(complete)
def test_a_result_survives_json(result: TrialResult) -> None:
    assert TrialResult.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False))) == result


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(NotFiniteError, match="train_loss is"):
        EpochRecord(1, 1, value, (), 1.0)
    with pytest.raises(NotFiniteError, match="accuracy is"):
        EpochRecord(1, 1, 0.5, (("accuracy", value),), 1.0)
    with pytest.raises(NotFiniteError, match="score is"):
        TrialResult(0, "complete", value, 1, (), 0, 0, 0, 1.0, None)


@pytest.mark.parametrize(
    "damage",
    [
        {"version": 2},
        {"score": "0.5"},
        {"score": True},
        {"score": None},
        {"state": "done"},
        {"cause": "bad luck"},
        {"epochs": {}},
        {"epochs": [{"epoch": 1}]},
        {"seconds": math.nan},
        {"surplus": 1},
    ],
    ids=str,
)
def test_a_damaged_result_file_is_recognised(tmp_path: Path, damage: dict[str, object]) -> None:
    result = TrialResult(3, "complete", 0.5, 1, (EpochRecord(1, 2, 0.1, (("f1", 0.5),), 1.0),), 10, 10, 2, 3.0, None)
    write_result(tmp_path, result)
    assert read_result(tmp_path) == result
    (tmp_path / RESULT_FILE).write_text(json.dumps(result.to_json() | damage))
    with pytest.raises(StudyCorruptError, match=r"result\.json: not a trial's result"):
        read_result(tmp_path)


def test_a_torn_result_file_is_recognised(tmp_path: Path) -> None:
    (tmp_path / RESULT_FILE).write_bytes(b'{"version": 1, "number"\xff')
    with pytest.raises(StudyCorruptError):
        read_result(tmp_path)
    assert read_result(tmp_path / "none") is None


def test_trial_seeds_are_the_same_everywhere_and_differ_from_each_other() -> None:
    assert (trial_seed(0, 0), trial_seed(1, 2)) == (1427366890, 3644428911)
    seeds = {trial_seed(study, number) for study in range(20) for number in range(100)}
    assert len(seeds) == 2000 and all(0 <= seed < 2**32 for seed in seeds)


def test_the_supervisors_half_needs_no_torch() -> None:
    names = "trial worker pool toy"
    code = (
        f"import sys, importlib\nfor n in {names!r}.split(): importlib.import_module('autopeft.engine.' + n)\n"
        "assert not {'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_the_toy_scores_the_same_architecture_alike_and_others_differently(tmp_path: Path) -> None:
    trainer = ToyBackend(epochs=1).open()
    architecture = Architecture.of([place("encoder", 0, "attn.q", "lora", 8)])

    def score(seed: int, *training: tuple[str, float]) -> float | None:
        return run_trial(trainer, TrialJob(0, architecture, training, seed, tmp_path), lambda _: None).result.score

    assert score(1) == score(1) != score(2)
    assert toy_score(architecture) != toy_score(Architecture.of([place("encoder", 0, "attn.q", "lora", 9)]))
    assert abs(toy_score(Architecture()) - 0.5) < 1e-12
    assert abs(toy_score(architecture, (("learning_rate", 1e-1),)) - 0.5) < abs(toy_score(architecture) - 0.5)
