"""Trials of earlier studies, of the same task or another, as a sampler's prior knowledge of a new one.

They are read once, when the new study is made, and kept in it: going on with it needs the earlier run folders no more,
and nothing changes if those have grown.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autopeft.errors import StudyCorruptError, UsageError
from autopeft.samplers import Earlier, Observation
from autopeft.space.modules import Scalar
from autopeft.space.search_space import SearchSpace
from autopeft.study.baselines import recipe_value
from autopeft.study.database import DATABASE_FILE
from autopeft.study.reader import read_study
from autopeft.study.record import CONTEXT_SUMMARY, StudyView, TrialRecord

EARLIER_SUMMARY = "earlier"
"""Summary entry of a study: the earlier studies that it started from, with their trials."""


def find_earlier(names: Sequence[str], run: Path, space: SearchSpace) -> tuple[tuple[Earlier, ...], tuple[str, ...]]:
    """The trials of the run folders `names` that are in the space, and what to say about them.

    A study in `run` that was made from the same folders holds them already.

    Raises:
        UsageError: a folder without a study, or with none whose trials are in the space; says why.
        StudyError: a study that cannot be read.
    """
    if not names:
        return (), ()
    if (run / DATABASE_FILE).exists():
        kept = read_study(run).summary.get(EARLIER_SUMMARY)
        if kept is not None and [study["name"] for study in kept] == list(names):
            return from_json(kept, run), ()
    found, notes = [], []
    for name in names:
        if Path(name).resolve() == run.resolve():
            raise UsageError(f"--from {name}: this is the run folder of the search itself")
        view = read_study(Path(name))
        earlier, n_complete = _in_space(name, view, space)
        found.append(earlier)
        notes.append(f"from {name}: {len(earlier.trials)} of {n_complete} complete trials are in this space")
    return tuple(found), tuple(notes)


def _in_space(name: str, view: StudyView, space: SearchSpace) -> tuple[Earlier, int]:
    complete = [trial for trial in view.trials if trial.state == "complete"]
    recipe = (view.summary.get(CONTEXT_SUMMARY) or {}).get("recipe") or {}
    trials, reason = [], "it has no complete trial"
    for trial in complete:
        try:
            trials.append(_observation(trial, recipe.get("training") or {}, space))
        except ValueError as error:
            reason = str(error)
    if not trials:
        raise UsageError(
            f"--from {name}: none of its {len(complete)} complete trials is in the searched space ({reason}). "
            f"It searched {view.identity.space.value} on {view.identity.model.value}; give a run of a compatible space"
        )
    return Earlier(name, tuple(trials)), len(complete)


def _observation(trial: TrialRecord, recipe: Mapping[str, Any], space: SearchSpace) -> Observation:
    """The trial with params of `space`; a training setting is brought to the nearest value that is searched.

    Raises:
        ValueError: its architecture is not in the space.
    """
    given = {**recipe, **dict(trial.training)}
    training = {p.setting or p.name: recipe_value(p, given) for p in space.parameters if p.is_training}
    params = space.encode(trial.architecture, training)
    assert trial.result is not None
    curve = tuple(epoch.metrics[0][1] for epoch in trial.result.epochs if epoch.metrics)
    return Observation(
        tuple(params.items()),
        trial.architecture.id,
        "complete",
        trial.score,
        trial.stored,
        trial.result.seconds,
        curve,
    )


def to_json(earlier: Sequence[Earlier]) -> list[dict[str, Any]]:
    return [
        {
            "name": study.name,
            "trials": [
                {
                    "params": dict(trial.params),
                    "architecture_id": trial.architecture_id,
                    "score": trial.score,
                    "stored": trial.stored,
                    "seconds": trial.seconds,
                    "curve": list(trial.curve),
                }
                for trial in study.trials
            ],
        }
        for study in earlier
    ]


def from_json(data: Any, run: Path) -> tuple[Earlier, ...]:
    """Inverse of `to_json`.

    Raises:
        StudyCorruptError: something else; names the run folder.
    """
    try:
        return tuple(Earlier(study["name"], tuple(_trial(**trial) for trial in study["trials"])) for study in data)
    except (TypeError, KeyError, AttributeError) as error:
        raise StudyCorruptError(f"{run / DATABASE_FILE}: the trials of earlier studies cannot be read") from error


def _trial(
    *, params: dict[str, Scalar], architecture_id: str, score: float, stored: int, seconds: float, curve: list[float]
) -> Observation:
    return Observation(tuple(params.items()), architecture_id, "complete", score, stored, seconds, tuple(curve))
