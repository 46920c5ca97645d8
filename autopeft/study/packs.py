"""How many trials of a study each worker trains together, where the user leaves it open."""

from autopeft.engine.data import TaskData
from autopeft.engine.pack_size import pack_size
from autopeft.engine.recipe import TrainingSpec
from autopeft.errors import ConfigError
from autopeft.space.anatomy import Anatomy
from autopeft.study.settings import SearchSettings

_ROWS = 1000
_TOKENS_A_WORD = 1.4


def n_pack_of(settings: SearchSettings, anatomy: Anatomy, training: TrainingSpec, data: TaskData) -> int:
    """Trials that each worker trains together.

    Raises:
        EnvironmentProblem: there is no such device.
        ConfigError: more than one, with trainings on a part of the rows.
    """
    is_screened = settings.pruner != "none" and settings.first_rung_on == "rows"
    if settings.pack == "auto":
        return 1 if is_screened else trials_together(anatomy, training, data, settings.device)
    if settings.pack > 1 and is_screened:
        raise ConfigError(
            ["pack: a first rung on rows trains each trial alone; give --pack 1, or --first-rung-on epochs"]
        )
    return settings.pack


def trials_together(anatomy: Anatomy, training: TrainingSpec, data: TaskData, device: str) -> int:
    """From model, data and device alone, so that a study that goes on later has the same; 1 on a CPU.

    Raises:
        EnvironmentProblem: there is no such device.
    """
    from autopeft.engine.devices import find_devices

    if find_devices(device)[0].type != "cuda":
        return 1
    texts = data.splits["train"].texts[:_ROWS]
    words = sum(len(text.split()) for row in texts for text in row)
    tokens = min(training.max_length, _TOKENS_A_WORD * max(1, words) / len(texts))
    return pack_size(anatomy.n_layers, anatomy.hidden, anatomy.n_parameters, training.batch_size * tokens)
