"""Reading without Optuna, and without the right to write."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

from autopeft.errors import EnvironmentProblem
from autopeft.study import store
from autopeft.study.lock import RunLock
from autopeft.study.reader import read_study
from autopeft.study.store import Store
from tests.study.studies import in_child, kill_oneself, search


def test_reading_imports_neither_optuna_nor_torch(tmp_path):
    search(tmp_path, 1)
    program = (
        "import sys; from pathlib import Path; from autopeft.study.reader import read_study; "
        "assert len(read_study(Path(sys.argv[1])).trials) == 1; "
        "assert not {'optuna', 'sqlalchemy', 'torch', 'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)


@pytest.fixture
def run() -> Iterator[Path]:
    """A folder that any user may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="autopeft-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "run"


def without_rights(run: Path, function: Callable[[], object]) -> object:
    """What `function` does for a user who may read but not write in `run`."""

    def restricted() -> object:
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        return function()

    run.chmod(0o555)
    try:
        return in_child(restricted)
    finally:
        run.chmod(0o755)


def test_a_finished_study_is_read_from_a_read_only_folder(run):
    search(run, 3)
    before = sorted(p.name for p in run.iterdir())
    assert without_rights(run, lambda: len(read_study(run).trials)) == 3
    assert sorted(p.name for p in run.iterdir()) == before


def test_a_study_left_in_wal_mode_is_read_from_a_read_only_folder(run):
    def killed_search() -> None:
        with patch.object(store, "leave_wal", kill_oneself):
            search(run, 3)

    assert in_child(killed_search) is None
    assert without_rights(run, lambda: len(read_study(run).trials)) == 3
    for side in ("study.db-wal", "study.db-shm"):
        (run / side).unlink(missing_ok=True)
    assert without_rights(run, lambda: len(read_study(run).trials)) == 3


def test_a_search_in_a_read_only_folder_is_a_problem_of_the_environment(run):
    search(run, 1)
    for path in run.iterdir():
        path.chmod(0o444 if path.is_file() else 0o555)
    for function in (lambda: RunLock(run).__enter__(), lambda: Store.open(run)):
        error = without_rights(run, function)
        assert isinstance(error, EnvironmentProblem), error
        assert str(run) in str(error)


def test_a_study_that_may_not_be_read_is_a_problem_of_the_environment(run):
    search(run, 1)
    (run / "study.db").chmod(0o000)
    if os.geteuid() != 0:
        with pytest.raises(EnvironmentProblem):
            read_study(run)
    else:
        assert isinstance(without_rights(run, lambda: read_study(run)), EnvironmentProblem)
