"""What a wheel carries is what the checkout has."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return zipfile.ZipFile(next(out.glob("*.whl")))


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
