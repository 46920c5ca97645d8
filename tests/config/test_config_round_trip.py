"""What `to_yaml` writes, `load` and other YAML readers read back."""

from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import computed_field

from autopeft.config import Frozen, json_schema, load, parse_yaml, to_yaml
from autopeft.errors import ConfigError

from .examples import Cosine, Precision, Range, Recipe, Steps, Training

WHOLE = st.integers(-(2**63), 2**63 - 1)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    st.sampled_from(["1e-5", "no", "010", "089", "12:30", ".nan", "null", "", " ", "<<", "=", "a: b", "- a", "a #b"]),
    st.sampled_from(["\u2028", "\x85", "\ufeff", "\n a\n", "a \n\n", "\r\n", "\U0010ffff", "\x1b[31m", "x " * 99]),
    st.from_regex(r"[-+]?[0-9.:_eExo]{1,6}", fullmatch=True),
)  # fmt: skip
RANGES = st.tuples(WHOLE, WHOLE).map(lambda pair: Range(low=min(pair), high=max(pair)))
SCHEDULES = st.one_of(
    st.builds(Steps, milestones=st.lists(WHOLE, max_size=3).map(tuple)), st.builds(Cosine, cycles=NUMBERS)
)
RECIPES = st.builds(
    Recipe,
    name=st.none() | TEXT,
    training=st.builds(
        Training,
        learning_rate=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
        epochs=st.integers(1, 1000),
        shuffle=st.booleans(),
        direction=st.sampled_from(["maximize", "minimize"]),
        precision=st.sampled_from(Precision),
        schedule=SCHEDULES,
        decay=SCHEDULES,
    ),
    text=st.lists(TEXT, max_size=4).map(tuple),
    rank=st.one_of(WHOLE, st.lists(WHOLE, max_size=3), RANGES),
    sites=st.dictionaries(TEXT, RANGES, max_size=3),
    weights=st.dictionaries(WHOLE, NUMBERS, max_size=3),
)


@settings(max_examples=25)
@given(RECIPES)
def test_a_resolved_file_satisfies_the_schema(recipe: Recipe) -> None:
    jsonschema.validate(parse_yaml(to_yaml(recipe), "x")[0], json_schema(Recipe))


@given(RECIPES)
def test_a_model_survives_its_file(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    path = tmp_path_factory.getbasetemp() / "resolved.yaml"
    path.write_text(to_yaml(recipe), encoding="utf-8")
    assert load(path, Recipe) == recipe


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), WHOLE, NUMBERS, TEXT),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


class Holder(Frozen):
    value: Any


@given(JSON)
def test_data_reads_the_same_in_yaml_1_1_and_here(value: Any) -> None:
    text = to_yaml(Holder(value=value))
    assert parse_yaml(text, "x")[0] == {"value": value}
    assert yaml.safe_load(text) == {"value": value}


def test_a_resolved_file_is_grouped_and_complete() -> None:
    recipe = Recipe(
        training=Training(learning_rate=1e-5), text=("no", "premise"), sites={"attn.q": Range(low=1, high=8)}
    )
    assert to_yaml(recipe) == (
        "version: 1\n"
        "name: null\n"
        "training:\n"
        "  learning_rate: 1.0e-05\n"
        "  epochs: 3\n"
        "  shuffle: true\n"
        "  direction: maximize\n"
        "  precision: fp32\n"
        "  schedule: {kind: cosine, cycles: 1.0}\n"
        "  decay:\n"
        "    kind: steps\n"
        "    milestones: []\n"
        "text: ['no', premise]\n"
        "rank: 8\n"
        "sites:\n"
        "  attn.q: {low: 1, high: 8}\n"
        "weights: {}\n"
    )


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 2**63, "a\0", "\ud800", {"a": [2**70]}])
def test_a_value_that_no_file_can_hold_is_not_written(value: object) -> None:
    with pytest.raises(ConfigError):
        to_yaml(Holder(value=value))


def test_a_computed_field_is_not_written() -> None:
    class Doubled(Frozen):
        n: int

        @computed_field  # type: ignore[prop-decorator]
        @property
        def twice(self) -> int:
            return 2 * self.n

    assert to_yaml(Doubled(n=2)) == "n: 2\n"
