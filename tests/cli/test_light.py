"""What must be light is light: help, lists and reports import nothing heavy."""

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "optuna", "botorch", "peft", "datasets", "sklearn", "scipy", "pandas"}

PROBE = """
import sys, contextlib, io, json
from autopeft.cli import run
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    code = run({arguments!r})
print(json.dumps([code, sorted(name for name in sys.modules if "." not in name)]))
"""


def modules_after(arguments: list[str], cwd=None) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(arguments=arguments)], capture_output=True, text=True, check=True, cwd=cwd
    )
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0
    return set(modules)


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["search"],
        ["status"],
        ["show"],
        ["ls"],
        ["check"],
        ["count"],
        ["export"],
        ["train"],
        ["bench"],
        ["bench", "samplers"],
        ["bench", "trials"],
    ],
)
def test_help_imports_nothing_heavy(command):
    assert not HEAVY & modules_after([*command, "--help"])


@pytest.mark.parametrize(
    "command", [["ls"], ["show", "hybrid"], ["show", "recipe", "demo"], ["show", "module", "lora"]]
)
def test_lists_import_nothing_heavy(command):
    assert not HEAVY & modules_after(command)


def test_reports_on_a_study_import_nothing_heavy(searched):
    place, _ = searched
    for command in (["status"], ["show", "best"], ["show", "trials"], ["show", "pareto"]):
        assert not HEAVY & modules_after([*command, "--run", "runs/r"], place.folder)


def test_importing_the_package_imports_neither_torch_nor_peft():
    code = "import sys, autopeft; print([m for m in ('torch', 'peft', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("order", ["import autopeft, peft", "import peft, autopeft", "import autopeft.hybrid, peft"])
def test_the_peft_type_is_known_whatever_is_imported_first(order):
    code = f"{order}\nfrom peft import PeftType\nprint('AUTOPEFT' in PeftType.__members__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "True" in done.stdout


@pytest.mark.parametrize("name", ["spec", "space", "recipe", "config"])
def test_schemas_are_json_schemas(name):
    jsonschema = pytest.importorskip("jsonschema")
    done = subprocess.run(
        [sys.executable, "-m", "autopeft", "schema", name], capture_output=True, text=True, check=True
    )
    jsonschema.Draft202012Validator.check_schema(json.loads(done.stdout))
