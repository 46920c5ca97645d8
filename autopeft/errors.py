"""Every error a user can meet, as one tree; the exit code of the command line hangs on the class.

AutopeftError                 1   ran, but there is no usable result
├── UsageError                2   wrong usage, config or data: nothing was written
│   ├── ConfigError               a YAML file or an option, all problems at once
│   ├── UnknownNameError          no such space, recipe, module …; suggests the nearest
│   ├── BudgetError               not a budget, or one that no architecture fits
│   ├── DataError                 a data set that cannot be read or learned from
│   ├── ModelError                a model that cannot be loaded or adapted
│   │   └── UnknownSiteError      a placement names a site that the model does not have
│   └── ExportError               a target that cannot hold the architecture
├── EnvironmentProblem        3   a package, device or folder that is missing or unusable
├── StudyError                4   the study is busy, corrupt, or another one
│   ├── StudyBusyError
│   ├── StudyMismatchError
│   └── StudyCorruptError
├── FailurePolicyError        5   too many trials failed
└── OverLimitError            1   an architecture that is measured to be too slow or too large: its trial is rejected
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import ClassVar


class AutopeftError(Exception):
    """Base of all errors that are meant for the user: one line, no traceback."""

    exit_code: ClassVar[int] = 1


class UsageError(AutopeftError):
    exit_code = 2


class ConfigError(UsageError):
    """All problems of a configuration, each `where: key: what is wrong`."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems: tuple[str, ...] = tuple(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[tuple[str, ...]]]:
        return type(self), (self.problems,)


class UnknownNameError(UsageError):
    """`name` is not one of the `known` names of a `kind` of thing."""

    def __init__(self, kind: str, name: str, known: Sequence[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        super().__init__(f"unknown {kind} '{name}'.{did_you_mean(name, known)} Known: {', '.join(sorted(known))}")

    def __reduce__(self) -> tuple[type["UnknownNameError"], tuple[str, str, tuple[str, ...]]]:
        return type(self), (self.kind, self.name, self.known)


class BudgetError(UsageError):
    pass


class DataError(UsageError):
    pass


class ModelError(UsageError):
    pass


class UnknownSiteError(ModelError):
    pass


class ExportError(UsageError):
    pass


class EnvironmentProblem(AutopeftError):  # noqa: N818 - OSError already has the alias EnvironmentError
    exit_code = 3


class StudyError(AutopeftError):
    exit_code = 4


class StudyBusyError(StudyError):
    pass


class StudyMismatchError(StudyError):
    pass


class StudyCorruptError(StudyError):
    pass


class FailurePolicyError(AutopeftError):
    exit_code = 5


class OverLimitError(AutopeftError):
    pass


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` with the nearest known name, or an empty string where none is near."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""
