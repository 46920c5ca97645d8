"""The kinds of problems: a file each, found from the data where the recipe does not name one."""

from collections.abc import Callable, Mapping

from autopeft.engine.problem_names import METRICS_OF
from autopeft.engine.problems.base import Problem, Rows
from autopeft.engine.problems.causal_lm import CausalLM
from autopeft.engine.problems.classification import Classification
from autopeft.engine.problems.image_classification import ImageClassification
from autopeft.engine.problems.multi_label import MultiLabel
from autopeft.engine.problems.multiple_choice import MultipleChoice
from autopeft.engine.problems.regression import Regression
from autopeft.engine.problems.seq2seq import Seq2Seq
from autopeft.engine.problems.token_classification import TokenClassification
from autopeft.engine.recipe import TaskSpec
from autopeft.engine.tables import Table
from autopeft.errors import DataError

__all__ = ["PROBLEMS", "Problem", "Rows", "find_problem"]

PROBLEMS: Mapping[str, Callable[[tuple[str, ...]], Problem]] = {
    "classification": Classification,
    "regression": Regression,
    "multi_label": MultiLabel,
    "token_classification": TokenClassification,
    "multiple_choice": MultipleChoice,
    "causal_lm": CausalLM,
    "seq2seq": Seq2Seq,
    "image_classification": ImageClassification,
}
"""By name; each is made with the label names of a data set."""


def find_problem(task: TaskSpec, table: Table) -> Problem:
    """The problem that the recipe names, or that the rows of `train` or the metric can mean; else classification.

    Raises:
        DataError: the data could be of several kinds.
    """
    if task.problem is not None:
        return PROBLEMS[task.problem](())
    found = [problem for make in PROBLEMS.values() if (problem := make(())).recognises(table, task)]
    if len(found) > 1:
        names = " and ".join(problem.name for problem in found)
        raise DataError(f"{table.name}: the columns could mean {names}; say which with task.problem.")
    if found:
        return found[0]
    fitting = [name for name, metrics in METRICS_OF.items() if task.metric in metrics]
    return PROBLEMS[fitting[0] if len(fitting) == 1 else "classification"](())
