import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.space.groups import PATTERNS, group_of_layers, group_sizes
from tests.anatomies import bert_like


@given(st.integers(1, 100), st.integers(1, 12), st.sampled_from(PATTERNS))
def test_groups_cover_all_layers_with_at_least_one_each(n_layers, n_groups, pattern):
    sizes = group_sizes(n_layers, n_groups, pattern)
    assert sum(sizes) == n_layers
    assert min(sizes) >= 1
    assert len(sizes) == min(n_groups, n_layers)


@pytest.mark.parametrize(
    ("pattern", "sizes"),
    [
        ("uniform", (3, 3, 3, 3)),
        ("increasing", (1, 2, 4, 5)),
        ("decreasing", (5, 4, 2, 1)),
        ("spindle", (2, 4, 4, 2)),
        ("bottleneck", (4, 2, 2, 4)),
    ],
)
def test_the_patterns_on_twelve_layers(pattern, sizes):
    assert group_sizes(12, 4, pattern) == sizes


def test_layers_are_grouped_in_order():
    groups = group_of_layers(bert_like(6), 4, "spindle")
    assert [groups["encoder", i] for i in range(6)] == [1, 2, 2, 3, 3, 4]
