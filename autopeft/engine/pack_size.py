"""How many trials a worker should train together: as many as keep a GPU busy while their operations are handed to it.

A step takes the longer of two times. Handing its operations over takes the same time for one trial and for many; to
compute them takes a time for each. Where the first is longer, trials that share a step cost next to nothing. On a CPU
the second always is. The figures are of an H100-class GPU and a server's CPU, with room to be wrong by a factor of two:
they were put together from measured parts and not measured as a whole on a GPU.
"""

import math

HANDED_OVER = 0.67e-3
"""Seconds for the operations of one layer in a training step, forward and backward."""
COMPUTED = 300e12
"""Operations a second that a GPU gets through in bfloat16."""
MOST = 16
"""Trials together: the sampler proposes with the outcomes of so many unknown."""
MEMORY = 16e9
"""Bytes that the activations of all may take."""
_KEPT = 12
"""Vectors of the hidden width that a token leaves in each layer for the backward pass."""


def pack_size(n_layers: int, hidden: int, n_parameters: int, tokens: float) -> int:
    """Trials together on a GPU, for a model with so many layers and parameters and so many `tokens` a step."""
    computed = 4 * n_parameters * tokens / COMPUTED  # twice for each pass: weights of the frozen model get no gradient
    useful = math.ceil(n_layers * HANDED_OVER / computed)
    fitting = int(MEMORY / (2 * _KEPT * hidden * n_layers * tokens))
    return max(1, min(useful, fitting, MOST))
