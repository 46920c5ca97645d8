"""Data sets of the Hugging Face hub, through `datasets`; a hub that cannot be reached is found out in seconds.

`datasets` would retry for half a minute. So the hub is tried first, and without it only the local cache is asked. Code
that a data set brings along is never run.
"""

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from autopeft.engine.tables import Table, one_line
from autopeft.errors import DataError

__all__ = ["read_hub"]

PATIENCE_SECONDS = 4.0


def read_hub(name: str, subset: str | None) -> dict[str, Table]:
    """The splits of a data set, with those of its columns that hold text, numbers or classes.

    Raises:
        DataError: not reachable and not in the cache, no such data set or subset, or one that brings its own code.
    """
    is_reachable = not _is_told_offline() and _reachable(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    import datasets

    title = f"{name}:{subset}" if subset else name
    # From version 4 on there is no such code any more, nor the option.
    options = {"trust_remote_code": False} if int(datasets.__version__.split(".")[0]) < 4 else {}
    try:
        if is_reachable:
            found = datasets.load_dataset(name, subset, **options)
        else:
            with _offline():
                found = datasets.load_dataset(name, subset, **options)
    except Exception as error:  # whatever datasets, its loaders and the network raise
        if not is_reachable:
            why = "HF_HUB_OFFLINE is set" if _is_told_offline() else "the hub cannot be reached"
            raise DataError(
                f"{title}: {why} and the data set is not in the local cache; download it on another machine and "
                "give its files (--data FOLDER), or use --data docstrings, which needs no download."
            ) from error
        raise DataError(f"{title}: cannot be loaded from the hub: {type(error).__name__}: {one_line(error)}") from error
    return {str(split): _table(f"{title}, split {split}", rows) for split, rows in found.items()}


def _table(name: str, rows: Any) -> Table:
    features = {column: _inner(feature) for column, feature in rows.features.items()}
    class_names = {column: feature.names for column, feature in features.items() if hasattr(feature, "names")}
    scalars = [column for column, feature in features.items() if _is_scalar(feature)]
    return Table(
        name,
        tuple(scalars),
        rows.select_columns(scalars).to_list(),
        range(1, len(rows) + 1),
        "row",
        {column: tuple(names) for column, names in class_names.items()},
    )


def _inner(feature: Any) -> Any:
    """What a list is made of; the feature itself where it is none."""
    return getattr(feature, "feature", feature)


def _is_scalar(feature: Any) -> bool:
    kind = str(getattr(feature, "dtype", ""))
    return kind.startswith(("string", "large_string", "int", "uint", "float", "bool"))


def _is_told_offline() -> bool:
    values = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
    return any(value.upper() in {"1", "ON", "YES", "TRUE"} for value in values)


def _reachable(endpoint: str) -> bool:
    """Whether anything answers; in a thread, since looking a name up has no time limit of its own."""
    answered = threading.Event()

    def ask() -> None:
        try:
            request = urllib.request.Request(endpoint, method="HEAD")
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS):
                answered.set()
        except urllib.error.HTTPError:
            answered.set()
        except (OSError, ValueError):
            return

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    return answered.is_set()


@contextmanager
def _offline() -> Iterator[None]:
    """`datasets` and the hub client as if HF_HUB_OFFLINE were set: they read the variable when they are imported."""
    import datasets
    import huggingface_hub.constants

    places: Mapping[Any, tuple[str, ...]] = {
        datasets.config: ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"),
        huggingface_hub.constants: ("HF_HUB_OFFLINE",),
    }
    before = [(place, name, getattr(place, name, False)) for place, names in places.items() for name in names]
    try:
        for place, name, _ in before:
            setattr(place, name, True)
        yield
    finally:
        for place, name, value in before:
            setattr(place, name, value)
