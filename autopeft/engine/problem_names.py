"""The kinds of problems and the metrics of each, as names: what a recipe may say, without the code behind it."""

from collections.abc import Mapping
from typing import Literal

from autopeft.engine.custom_metrics import GROUP, installed_metrics
from autopeft.errors import did_you_mean

__all__ = ["METRICS_OF", "ProblemName", "check_metric"]

ProblemName = Literal[
    "classification",
    "regression",
    "multi_label",
    "token_classification",
    "multiple_choice",
    "causal_lm",
    "seq2seq",
    "image_classification",
]

GENERATED = ("exact_match", "rouge1", "rouge2", "rougeL", "bleu")
"""Metrics that read made texts: making them takes much longer than a loss, so that they are made for these only."""


METRICS_OF: Mapping[str, tuple[str, ...]] = {
    "classification": ("accuracy", "f1", "macro_f1", "mcc"),
    "regression": ("pearson", "spearman"),
    "multi_label": ("micro_f1", "macro_f1", "accuracy"),
    "token_classification": ("entity_f1", "token_accuracy"),
    "multiple_choice": ("accuracy",),
    "causal_lm": ("loss", "perplexity", *GENERATED),
    "seq2seq": ("loss", "perplexity", *GENERATED),
    "image_classification": ("accuracy", "macro_f1", "mcc"),
}
"""Problem → its metrics, the one first that is taken where the user names none."""


def check_metric(metric: str, problem: str | None) -> None:
    """
    Raises:
        ValueError: there is no such metric, or it is not for this problem; lists those that there are.
    """
    known = tuple(dict.fromkeys(name for names in METRICS_OF.values() for name in names))
    if metric not in known:
        installed = installed_metrics()
        if metric in installed:
            return
        near = did_you_mean(metric, (*known, *installed))
        own = f", and installed ones: {', '.join(installed)}" if installed else ""
        how = f". Code is named by an entry point of the group {GROUP}" if ":" in metric else ""
        raise ValueError(f"no metric '{metric}'.{near} There are {', '.join(known)}{own}{how}")
    if problem is not None and metric not in METRICS_OF[problem]:
        raise ValueError(f"metric {metric} is not for {problem}; choose {', '.join(METRICS_OF[problem])}")
