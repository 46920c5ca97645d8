"""Random search over the feasible set: the baseline that every other sampler has to beat."""

from collections.abc import Sequence

import numpy as np

from autopeft.samplers.proposal import Observation
from autopeft.space.parameters import Params
from autopeft.space.search_space import SearchSpace


def suggest_random(space: SearchSpace, past: Sequence[Observation], seed: int) -> Params:
    """Feasible architectures at random, the baseline; `SearchSpace.sample` says how uniform it is."""
    return dict(space.sample(np.random.default_rng(seed)).params)
