"""A trial in a few words."""

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
    standing = f"{epochs[0].metrics[0][0]} {reached.score:.4f}"
    if rung.loss_weight and reached.loss is not None:
        standing += f" - {rung.loss_weight:.2g} loss {reached.loss:.4f} = {reached.standing(rung.loss_weight):.4f}"
    where = "on a part of the rows" if at == SCREENING else f"at epoch {at}"
    return f"pruned {where}: {standing}, {rung.least:.4f} needed"


def metric_of(trial: TrialRecord) -> str:
    """The name of the metric that was maximised."""
    return trial.result.epochs[0].metrics[0][0] if trial.result and trial.result.epochs else "score"


def summary(trial: TrialRecord) -> str:
    """The architecture in one line."""
    rate = dict(trial.training).get("learning_rate")
    training = f"lr={rate:.2g}  " if isinstance(rate, float) else ""
    name = f"[{trial.baseline}]  " if trial.baseline else ""
    return name + training + "; ".join(layer_map(trial.architecture))
