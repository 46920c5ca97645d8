"""A budget of adapter parameters, as users write it: `0.5%`, `500k`, `1.2M`, `300000`."""

import math
import re
from dataclasses import dataclass

from autopeft.errors import BudgetError

_FORMS = "0.5% (of the base model's parameters), 500k, 1.2M or 300000"
_PATTERN = re.compile(r"(?P<number>[0-9]{1,15}(?:\.[0-9]{1,9})?)(?P<unit>%|k|M|)", re.ASCII)


@dataclass(frozen=True)
class ParameterBudget:
    """An upper bound on stored (or trained) adapter parameters; the task head is apart."""

    text: str
    """As the user wrote it."""
    fraction: float | None
    """Of the base model's parameters, where the budget was given in per cent."""
    parameters: int | None
    option: str = "budget"
    """Where it was given; errors name it."""

    @classmethod
    def parse(cls, text: str, option: str = "budget") -> "ParameterBudget":
        """
        Raises:
            BudgetError: not one of the allowed forms, zero, or over 100 %.
        """
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise BudgetError(f"--{option}: {text[:40]!r} is not a budget. Allowed: {_FORMS}")
        number, unit = float(match["number"]), match["unit"]
        if unit == "%":
            if not 0 < number <= 100:
                raise BudgetError(f"--{option}: a percentage must be above 0% and at most 100%, got {text!r}")
            return cls(text, number / 100, None, option)
        parameters = number * {"k": 1_000, "M": 1_000_000, "": 1}[unit]
        if unit == "" and "." in text:
            raise BudgetError(f"--{option}: {text!r} is not a whole number of parameters. Allowed: {_FORMS}")
        if parameters < 1:
            raise BudgetError(f"--{option}: must be at least 1 parameter, got {text!r}")
        return cls(text, None, math.floor(parameters + 1e-6), option)

    def resolve(self, n_model_parameters: int) -> int:
        """The most parameters an architecture may have on a model of this size.

        Raises:
            BudgetError: more parameters than the base model has.
        """
        if self.fraction is not None:
            return math.floor(self.fraction * n_model_parameters + 1e-6)
        assert self.parameters is not None
        if self.parameters > n_model_parameters:
            raise BudgetError(
                f"--{self.option}: {self.text} is over 100 % of the base model ({n_model_parameters:,} parameters)"
            )
        return self.parameters
