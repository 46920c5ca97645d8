"""Made texts against true ones: exact match, ROUGE and BLEU, over rows drawn `weights (R, n)` times.

ROUGE is Google's `rouge-score` with stemming (Lin 2004), BLEU is `sacrebleu` (Post 2018), from 0 to 1; both come with
the extra `tasks`. Hugging Face's `evaluate` is not used: it downloads the code of its metrics from a hub.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from autopeft.errors import EnvironmentProblem

__all__ = ["bleu", "exact_match", "rouge"]

Float = npt.NDArray[np.float64]
Weighted = Callable[[Sequence[str], Sequence[str], Float], Float]


def exact_match(P: Sequence[str], Y: Sequence[str], weights: Float) -> Float:
    """Share of the rows whose text is the true one, blanks at the ends apart."""
    same = [said.strip() == true.strip() for said, true in zip(P, Y, strict=True)]
    return _mean(same, weights)


def rouge(kind: str) -> Weighted:
    """The mean F-measure of `rouge1`, `rouge2` or `rougeL`."""
    return partial(_rouge, kind)


def _rouge(kind: str, P: Sequence[str], Y: Sequence[str], weights: Float) -> Float:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise EnvironmentProblem(f"{kind}: rouge-score is not installed. Try: pip install 'autopeft[tasks]'") from error
    scorer = RougeScorer([kind], use_stemmer=True)
    return _mean([scorer.score(true, said)[kind].fmeasure for said, true in zip(P, Y, strict=True)], weights)


def bleu(P: Sequence[str], Y: Sequence[str], weights: Float) -> Float:
    """BLEU of all rows together, from 0 to 1: its counts are summed, and not its scores."""
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise EnvironmentProblem("bleu: sacrebleu is not installed. Try: pip install 'autopeft[tasks]'") from error
    scorer = BLEU(effective_order=True)
    counts = []
    for said, true in zip(P, Y, strict=True):
        row = scorer.sentence_score(said, [true])
        counts.append([*row.counts, *row.totals, row.sys_len, row.ref_len])
    sums = (weights @ np.asarray(counts, float)).round().astype(int).tolist()
    scores: Any = [
        BLEU.compute_bleu(correct=row[:4], total=row[4:8], sys_len=row[8], ref_len=row[9], smooth_method="exp").score
        for row in sums
    ]
    return np.asarray(scores, float) / 100


def _mean(values: Sequence[float], weights: Float) -> Float:
    result: Float = (weights @ np.asarray(values, float)) / weights.sum(axis=1)
    return result
