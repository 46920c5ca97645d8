"""Samplers: from the past trials of a study to the next architecture. Numbers in, params out; nothing of training here.

A sampler is a pure function of an `Ask` (space, past, seed): the study's storage holds all of its state, so a study
that was killed proposes what an uninterrupted one would. To add one, write such a function and name it in `SAMPLERS`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from autopeft.samplers.proposal import Ask, Earlier, Objective, Observation, Sampler, SpaceExhaustedError, propose
from autopeft.samplers.random import suggest_random
from autopeft.samplers.tpe import suggest_tpe

SAMPLERS: Mapping[str, Sampler] = MappingProxyType({"random": suggest_random, "tpe": suggest_tpe})

__all__ = ["SAMPLERS", "Ask", "Earlier", "Objective", "Observation", "Sampler", "SpaceExhaustedError", "propose"]
