"""Specs that earlier versions wrote stay readable; the fixtures were written by those versions and never change."""

import json
from pathlib import Path

import pytest

from autopeft.errors import ExportError
from autopeft.export.migration import STEPS, migrate
from autopeft.export.reading import parse_spec, read_spec
from autopeft.export.spec import FORMAT_VERSION
from tests.export.test_spec import ARCHITECTURE

FIXTURES = Path(__file__).parent / "specs"


def test_there_is_a_step_and_a_fixture_for_every_earlier_version():
    assert set(STEPS) == set(range(1, FORMAT_VERSION))
    assert {path.name for path in FIXTURES.rglob("*.json")} == {f"version_{version}.json" for version in STEPS}


def test_version_1_is_read_with_all_that_it_said():
    old = json.loads((FIXTURES / "version_1.json").read_text())
    new = read_spec(FIXTURES / "version_1.json").spec
    assert new is not None
    assert new.version == FORMAT_VERSION
    assert new.parsed_architecture == ARCHITECTURE
    written = json.loads(new.to_text())
    assert written["base_model"] == old["base_model"] | {"layers": {}}
    assert written["evidence"] == old["evidence"] | {"seeds": None}
    assert written["origin"] is None
    same = set(old) - {"version", "base_model", "evidence"}
    assert {key: written[key] for key in same} == {key: old[key] for key in same}


def test_migration_leaves_what_it_was_given_as_it_was():
    old = json.loads((FIXTURES / "version_1.json").read_text())
    migrate(old)
    assert old == json.loads((FIXTURES / "version_1.json").read_text())


@pytest.mark.parametrize("version", [0, -1, 3, "1", None, True, 1.0, [1]])
def test_an_unknown_version_is_refused(version):
    with pytest.raises(ExportError, match="is not known"):
        migrate({"version": version})


@pytest.mark.parametrize("data", [None, 3, [], {}, {"version": 1}, {"version": 1, "base_model": 3, "evidence": []}])
def test_what_is_no_spec_is_refused_not_raised_through(data):
    with pytest.raises(ExportError, match="not an adapter spec"):
        parse_spec(data, "file.json")
