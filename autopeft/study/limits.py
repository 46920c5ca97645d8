"""Second budgets of a search: trained parameters, which are counted, and time and memory, which are measured."""

from collections.abc import Callable
from typing import TypeVar

from autopeft.engine.limits import Limits, parse_memory, parse_overhead
from autopeft.errors import BudgetError, ConfigError
from autopeft.space.budget import ParameterBudget
from autopeft.space.search_space import SearchSpace
from autopeft.study.settings import SearchSettings

Value = TypeVar("Value")


def parse_limits(settings: SearchSettings) -> tuple[ParameterBudget | None, Limits]:
    """The most trained parameters, and what is measured.

    Raises:
        ConfigError: all that cannot be read.
    """
    problems: list[str] = []

    def parsed(text: str | None, parse: Callable[[str], Value]) -> Value | None:
        try:
            return None if text is None else parse(text)
        except BudgetError as error:
            problems.append(str(error))
            return None

    trained = parsed(settings.max_trained, lambda text: ParameterBudget.parse(text, "max-trained"))
    overhead = parsed(settings.max_latency_overhead, parse_overhead)
    memory = parsed(settings.max_memory, parse_memory)
    if problems:
        raise ConfigError(problems)
    return trained, Limits(overhead, memory)


def limits_of_identity(space: SearchSpace, limits: Limits) -> dict[str, int | float]:
    """By option, as a study's identity has them."""
    found = {
        "max_trained": space.max_trained,
        "max_latency_overhead": limits.latency_overhead,
        "max_memory": limits.memory_bytes,
    }
    return {name: value for name, value in found.items() if value is not None}


def limit_facts(space: SearchSpace, limits: Limits) -> tuple[tuple[str, str], ...]:
    """What the user is told of them at the start; nothing where there are none."""
    facts = []
    if space.max_trained is not None:
        facts.append(f"{space.max_trained:,} trained parameters")
    if limits.latency_overhead is not None:
        facts.append(f"{limits.latency_overhead:g} times the base model's forward pass (measured before training)")
    if limits.memory_bytes is not None:
        facts.append(f"{limits.memory_bytes / 1e6:,.0f} MB in training (measured before it)")
    return (("limits", "at most " + "; ".join(facts)),) if facts else ()
