"""A trial in a few words."""

from autopeft.engine.direction import told
from autopeft.engine.rungs import SCREENING, Reached
from autopeft.space.layer_map import layer_map
from autopeft.study.record import TrialRecord


def pruned_at(trial: TrialRecord) -> str:
    """`pruned at epoch 2: accuracy 0.4100 - 0.1 loss 1.2000 = 0.2900, 0.3000 needed`, of a pruned trial."""
    result = trial.result
    assert result is not None
    epochs = result.epochs or ((result.screened,) if result.screened else ())
    at = result.epochs[-1].epoch if result.epochs else SCREENING
    rung = next(rung for rung in trial.rungs if rung.epoch == at)
    reached = Reached.by([epoch.metrics for epoch in epochs])
    metric = epochs[0].metrics[0][0]
    name, score = told(metric, reached.score)
    where = "on a part of the rows" if at == SCREENING else f"at epoch {at}"
    if not rung.loss_weight or reached.loss is None:
        return f"pruned {where}: {name} {score:.4f}, {told(metric, rung.least)[1]:.4f} needed"
    standing = reached.standing(rung.loss_weight)
    if name != metric:  # minimised: what is searched is its negative
        metric, score = f"-{name}", reached.score
    weighted = f"{metric} {score:.4f} - {rung.loss_weight:.2g} loss {reached.loss:.4f} = {standing:.4f}"
    return f"pruned {where}: {weighted}, {rung.least:.4f} needed"


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
