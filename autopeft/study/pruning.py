"""The pruner that a search is asked for, and what it says of itself."""

from autopeft.engine.rungs import SCREENING
from autopeft.study.halving import Halving
from autopeft.study.settings import SearchSettings


def halving_of(settings: SearchSettings, n_epochs: int) -> Halving | None:
    if settings.pruner == "none":
        return None
    on_rows = settings.first_rung_on == "rows"
    return Halving.over(n_epochs, settings.first_rung, settings.eta, on_rows=on_rows)


def pruner_facts(halving: Halving | None, n_epochs: int) -> tuple[tuple[str, str], ...]:
    if halving is None:
        return ()
    if not halving.rungs:
        return (("pruner", f"halving, which stops none: {n_epochs} epochs have no rung"),)
    epochs = [str(rung) for rung in halving.rungs if rung != SCREENING]
    places = [f"epoch{'s' if len(epochs) > 1 else ''} {', '.join(epochs)} of {n_epochs}"] if epochs else []
    if halving.screen is not None:
        places.insert(0, f"the end of a training on {100 * halving.screen:g}% of the rows")
    where = " and ".join(places)
    return (("pruner", f"halving: baselines, and the best 1/{halving.eta} of the trials that reach {where}, go on"),)
