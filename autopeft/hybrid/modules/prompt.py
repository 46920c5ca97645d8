"""Prompt tuning: l learned vectors among those that enter the first layer of a stack.

`autopeft.hybrid.prompts` puts them in and takes their positions out of the stack's output again. They start as random
vectors of the embeddings' usual spread, so they are *not* the identity.

Source: Lester et al. 2021.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autopeft.hybrid.modules.base import Attachment, Own, Parameters, PromptPart
from autopeft.hybrid.sites import LayerSites
from autopeft.space.architecture import Placement

_STD = 0.02


def attach_prompt(placement: Placement, sites: LayerSites, dropout: float) -> tuple[Attachment, ...]:
    """A prompt stands before the first layer of its stack."""
    return (Attachment(sites.name, Prompt(placement.size, sites.layer.embeddings), sites),)


@dataclass(frozen=True)
class Prompt(PromptPart):
    kind = "prompt"

    length: int
    width: int

    def create(self, base: nn.Module) -> Parameters:
        return {"prompt": nn.Parameter(torch.randn(self.length, self.width) * _STD)}

    def vectors(self, own: Own) -> Tensor:
        vectors: Tensor = own["prompt"]
        return vectors
