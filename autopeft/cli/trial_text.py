"""A trial in a few words."""

from autopeft.engine.direction import told
from autopeft.space.layer_map import layer_map
from autopeft.study.record import TrialRecord


def pruned_at(trial: TrialRecord) -> str:
    """`pruned at epoch 2: accuracy 0.4100, 0.4400 needed`, of a pruned trial."""
    assert trial.result is not None
    last = trial.result.epochs[-1].epoch
    reached = max(epoch.metrics[0][1] for epoch in trial.result.epochs)
    name, reached = told(_metric_of(trial), reached)
    _, needed = told(_metric_of(trial), dict(trial.rungs)[last])
    return f"pruned at epoch {last}: {name} {reached:.4f}, {needed:.4f} needed"


def scored(trial: TrialRecord) -> str:
    """`accuracy 0.4100`, of a complete trial."""
    return f"{told(_metric_of(trial), 0.0)[0]} {score_text(trial)}"


def score_text(trial: TrialRecord) -> str:
    """`0.4100`; empty where there is no score."""
    return "" if trial.score is None else f"{told(_metric_of(trial), trial.score)[1]:.4f}"


def _metric_of(trial: TrialRecord) -> str:
    """What was maximised."""
    return trial.result.epochs[0].metrics[0][0] if trial.result and trial.result.epochs else "score"


def summary(trial: TrialRecord) -> str:
    """The architecture in one line."""
    rate = dict(trial.training).get("learning_rate")
    training = f"lr={rate:.2g}  " if isinstance(rate, float) else ""
    name = f"[{trial.baseline}]  " if trial.baseline else ""
    return name + training + "; ".join(layer_map(trial.architecture))
