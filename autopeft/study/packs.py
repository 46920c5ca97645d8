"""How many trials of a study each worker trains together, where the user leaves it open."""

from autopeft.engine.data import TaskData
from autopeft.engine.pack_size import pack_size
from autopeft.engine.recipe import TrainingSpec
from autopeft.space.anatomy import Anatomy

_ROWS = 1000
_TOKENS_A_WORD = 1.4


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
