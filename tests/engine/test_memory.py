import pytest

from autopeft.engine.memory import default_cache_memory, parse_memory
from autopeft.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("2GB", 2 * 10**9), ("500 MB", 5 * 10**8), ("1.5gb", 15 * 10**8), ("64", 64), ("6GiB", 6 << 30)],
)
def test_amounts_of_memory_are_read(text: str, expected: int) -> None:
    assert parse_memory("cache-memory", text) == expected


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "2 G", "many", "2GB 3"])
def test_other_forms_are_refused_with_the_allowed_ones(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"--cache-memory: .* is not an amount of memory\. Allowed: 2GB, 500MB, 6GiB, 0"
    ):
        parse_memory("cache-memory", text)


def test_the_default_does_not_depend_on_what_is_free() -> None:
    assert default_cache_memory() == default_cache_memory() > 10**7
