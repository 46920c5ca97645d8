"""What makes a study another one."""

import pytest

from autopeft.errors import StudyCorruptError, StudyMismatchError
from autopeft.study.identity import Identity, Part, check
from tests.study.studies import PARTS, identity


def test_the_same_study_has_no_differences():
    assert check(identity(), identity()) == ()


@pytest.mark.parametrize("name", PARTS)
def test_another_part_is_named_in_words(name):
    with pytest.raises(StudyMismatchError, match=f"{name}: was my {name}, now yours"):
        check(identity(), identity(**{name: Part("yours", "other-hash")}))


def test_another_content_under_the_same_name_is_named():
    with pytest.raises(StudyMismatchError, match=r"data: my data has another content \(was data-hash, now changed\)"):
        check(identity(), identity(data=Part("my data", "changed")))


def test_another_name_for_the_same_content_is_the_same_study():
    assert check(identity(), identity(data=Part("/elsewhere/my data", "data-hash"))) == ()


def test_every_difference_is_named_at_once():
    other = identity(model=Part("gpt2", "g"), seed=3, objective="score and size", budget="0.1%", budget_parameters=100)
    with pytest.raises(StudyMismatchError) as caught:
        check(identity(), other)
    for line in (
        "model: was my model, now gpt2",
        "seed: was 0, now 3",
        "objective: was score, now score and size",
        "budget: was 0.5% (500 parameters), now 0.1% (100); it may only grow",
        "--run",
    ):
        assert line in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"trials": 99}, {"trials": 1}, {"time": 60.0}, {"budget": "1%", "budget_parameters": 999}]
)
def test_totals_may_change_and_the_budget_may_grow(change):
    assert check(identity(), identity(**change)) == ()


def test_second_budgets_may_be_loosened_or_dropped():
    limited = identity(limits={"max_trained": 500, "max_latency_overhead": 1.2})
    assert check(limited, identity(limits={"max_trained": 600})) == ()
    assert check(limited, identity()) == ()
    with pytest.raises(StudyMismatchError, match=r"max-latency-overhead: was 1\.2, now 1\.1; it may only grow"):
        check(limited, identity(limits={"max_latency_overhead": 1.1}))
    with pytest.raises(StudyMismatchError, match="max-memory: was no limit, now 8,000,000; it may only grow"):
        check(limited, identity(limits={"max_memory": 8_000_000}))


def test_versions_only_warn():
    warnings = check(identity(facts={"torch": "2.13", "peft": "0.21"}), identity(facts={"torch": "2.14", "new": "1"}))
    assert warnings == ("new: was absent, now 1", "peft: was 0.21, now absent", "torch: was 2.13, now 2.14")


def test_an_identity_survives_json():
    assert Identity.from_json(identity(time=7.5).to_json()) == identity(time=7.5)
    limited = identity(limits={"max_memory": 9})
    assert Identity.from_json(limited.to_json()) == limited
    assert Identity.from_json(limited.to_json()).limits == {"max_memory": 9}
    assert "limits" not in identity().to_json()  # as studies were written before there were limits


@pytest.mark.parametrize(
    "change",
    [{"seed": True}, {"model": "bert"}, {"facts": {"a": 1}}, {"unknown": 1}, {"trials": None}, {"limits": {"a": "b"}}],
)
def test_a_damaged_identity_is_refused(change):
    with pytest.raises(StudyCorruptError):
        Identity.from_json(identity().to_json() | change)
