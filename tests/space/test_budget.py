import pytest

from autopeft.errors import BudgetError
from autopeft.space.budget import ParameterBudget

BERT_BASE = 109_482_240


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("0.5%", 547_411),
        ("100%", BERT_BASE),
        ("500k", 500_000),
        ("1.2M", 1_200_000),
        ("300000", 300_000),
        ("0.1k", 100),
    ],
)
def test_budgets_are_read_as_written(text, parameters):
    assert ParameterBudget.parse(text).resolve(BERT_BASE) == parameters


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5%\n",
        " 5%",
        "5 %",
        "５%",
        "½%",
        "٣k",
        "1" * 40,
        "0",
        "0%",
        "-1",
        "-1%",
        "nan",
        "nan%",
        "inf",
        "0,5%",
        "0.5",
    ],
)
def test_what_is_no_number_above_zero_is_refused_in_one_line(text):
    with pytest.raises(BudgetError) as caught:
        ParameterBudget.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["1e3", "1_000", "1.2m", "500K", "101%", "0.0000%", "%", "k", ".5%", "5.%", "0x10", "1.2.3M", "--5", "+5%", "5%%"],
)
def test_only_the_documented_forms_are_read(text):
    with pytest.raises(BudgetError, match="budget"):
        ParameterBudget.parse(text)


def test_more_than_the_model_is_refused():
    with pytest.raises(BudgetError, match="over 100 %"):
        ParameterBudget.parse("200M").resolve(BERT_BASE)
