"""Random search over the feasible set: the baseline that every other sampler has to beat."""

import numpy as np

from autopeft.samplers.proposal import Ask
from autopeft.space.parameters import Params


def suggest_random(ask: Ask) -> Params:
    """Feasible architectures at random, the baseline; `SearchSpace.sample` says how uniform it is."""
    return dict(ask.space.sample(np.random.default_rng(ask.seed)).params)
