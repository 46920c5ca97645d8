"""What a wheel carries is what the checkout has."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def build(kind: str, source: Path, out: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    return next(out.iterdir())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Built from the checkout."""
    return zipfile.ZipFile(build("wheel", ROOT, tmp_path_factory.mktemp("wheel")))


@pytest.fixture(scope="module")
def wheel_of_sdist(tmp_path_factory) -> zipfile.ZipFile:
    """Built from the source distribution, as pip does it."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))) as archive:
        archive.extractall(unpacked, filter="data")
    return zipfile.ZipFile(build("wheel", next(unpacked.iterdir()), tmp_path_factory.mktemp("second")))


def test_a_wheel_of_the_sdist_is_the_wheel(wheel, wheel_of_sdist):
    assert sorted(wheel.namelist()) == sorted(wheel_of_sdist.namelist())


@pytest.mark.parametrize("folder", ["search_spaces", "trials"])
def test_the_wheel_has_the_yaml_of_the_checkout(wheel, folder):
    prefix = f"autopeft/_shipped/{folder}/"
    packed = {name.removeprefix(prefix): wheel.read(name) for name in wheel.namelist() if name.startswith(prefix)}
    here = {path.relative_to(ROOT / folder).as_posix(): path.read_bytes() for path in (ROOT / folder).rglob("*.yaml")}
    assert packed == here
    assert here


def test_an_unpacked_wheel_finds_its_yaml(wheel, tmp_path):
    wheel.extractall(tmp_path)
    code = "from autopeft.resources import shipped_names as n; print(n('search_spaces'), n('trials'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    from autopeft.resources import shipped_names

    assert done.stdout.strip() == f"{shipped_names('search_spaces')} {shipped_names('trials')}"


def test_every_shipped_file_opens_with_the_command_that_uses_it():
    for path in [*(ROOT / "search_spaces").rglob("*.yaml"), *(ROOT / "trials").rglob("*.yaml")]:
        if not path.name.startswith("_"):
            assert path.read_text(encoding="utf-8").startswith("# autopeft search "), path


def test_only_the_atomic_helper_writes_files():
    allowed = {"resources.py", "events.py"}
    for path in (ROOT / "autopeft").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name not in allowed:
            assert ".write_text(" not in text, path
            assert ".write_bytes(" not in text, path
