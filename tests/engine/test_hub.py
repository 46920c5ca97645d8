"""Hub data sets without a network: cached ones are read, others refused within seconds."""

import socket
import time

import pytest

from autopeft.engine.data import load_data
from autopeft.engine.recipe import SplitNames, TaskSpec
from autopeft.errors import DataError

TASK = TaskSpec(dataset="no-such-org/no-such-data")


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def hub(monkeypatch, offline):
    """`datasets` with one data set in its cache."""
    import datasets

    def split(start, n, labels):
        rows = {"sentence": [f"s {start + i}" for i in range(n)], "label": [labels[i % len(labels)] for i in range(n)]}
        features = {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
        nested = {"tags": [["a", "b"]] * n}
        return datasets.Dataset.from_dict(
            rows | nested, features=datasets.Features(features | {"tags": datasets.List(datasets.Value("string"))})
        )

    asked = []

    def load_dataset(name, subset):
        asked.append((name, subset))
        return datasets.DatasetDict(
            {"train": split(0, 60, (0, 1)), "validation_x": split(100, 9, (0, 1)), "test": split(200, 5, (-1,))}
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_data_set_that_is_not_in_the_cache_is_refused_at_once_and_says_what_to_do(offline):
    import datasets  # noqa: F401  # its import is not what is timed

    began = time.monotonic()
    with pytest.raises(DataError) as error:
        load_data(TASK)
    assert time.monotonic() - began < 5
    assert "HF_HUB_OFFLINE is set and the data set is not in the local cache; download it on another machine" in str(
        error.value
    )
    assert "\n" not in str(error.value)


def test_a_hub_that_refuses_or_never_answers_is_given_up_in_seconds(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    monkeypatch.setattr("autopeft.engine.hub.PATIENCE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (silent.getsockname()[1], 9):
            monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
            began = time.monotonic()
            with pytest.raises(DataError, match="the hub cannot be reached and the data set is not in the local cache"):
                load_data(TASK)
            assert time.monotonic() - began < 10


def test_being_offline_for_one_call_leaves_no_trace(monkeypatch):
    import datasets
    import huggingface_hub.constants

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    before = (datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE)
    with pytest.raises(DataError):
        load_data(TASK)
    assert before == (datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE)


def test_class_names_scalars_and_named_splits_are_taken(hub):
    splits = SplitNames(train="train", validation="validation_x", test="test")
    data = load_data(TaskSpec(dataset="org/name", subset="sub", splits=splits))
    assert hub == [("org/name", "sub")]
    assert data.label_names == ("bad", "good")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 51, "validation": 9, "test": 9}
    assert any("org/name:sub, split test has no labels" in note for note in data.notes)


def test_a_subset_may_stand_behind_the_name(hub):
    with pytest.raises(DataError, match=r"which is the validation split: validation_x\? Name it with task\.splits"):
        load_data(TaskSpec(), "org/name:other")
    assert hub == [("org/name", "other")]


def test_whatever_datasets_raises_is_one_line(hub, monkeypatch):
    import datasets

    def broken(name, subset):
        raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']")

    monkeypatch.setattr(datasets, "load_dataset", broken)
    monkeypatch.setattr("autopeft.engine.hub._reachable", lambda endpoint: True)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(DataError) as error:
        load_data(TASK)
    assert str(error.value).startswith(
        "no-such-org/no-such-data: cannot be loaded from the hub: ValueError: Config name"
    )
    assert "['a', 'b']" in str(error.value)
    assert "\n" not in str(error.value)
