"""Exact parameter counts of an architecture on a model, before anything is built.

Stored parameters (what the adapter file holds) count against the budget. Trained parameters differ from them only for
modules with a part that is dropped after training (the MLP of a prefix) or frozen (A of LoRA-FA). The task head is
counted apart.
"""

from collections import Counter
from dataclasses import dataclass

from autopeft.errors import UnknownSiteError
from autopeft.space.anatomy import Anatomy, Layer
from autopeft.space.architecture import Architecture, Placement
from autopeft.space.modules import MODULES


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters; `by_layer` and `by_module` split `stored`."""

    stored: int
    trained: int
    head: int
    by_layer: tuple[tuple[str, int], ...] = ()
    """(`encoder.0`, parameters), only layers that hold something."""
    by_module: tuple[tuple[str, int], ...] = ()

    def fraction_of(self, anatomy: Anatomy) -> float:
        """Stored parameters as a fraction of the base model's."""
        return self.stored / anatomy.n_parameters


def count_parameters(architecture: Architecture, anatomy: Anatomy, head: int = 0) -> ParameterCount:
    """Parameters the architecture adds to the model: stored, trained, and the task head (`head`, as given) apart.

    Raises:
        UnknownSiteError: a placement names a site that `anatomy` does not have.
    """
    by_layer: Counter[str] = Counter()
    by_module: Counter[str] = Counter()
    for p in architecture.placements:
        n = count_placement(p, anatomy)
        by_layer[f"{p.stack}.{p.layer}"] += n
        by_module[p.module] += n
    stored = sum(by_module.values())
    trained = sum(count_trained(p, anatomy) for p in architecture.placements)
    return ParameterCount(stored, trained, head, tuple(by_layer.items()), tuple(sorted(by_module.items())))


def count_placement(placement: Placement, anatomy: Anatomy) -> int:
    """Stored parameters of one placement.

    Raises:
        UnknownSiteError: `anatomy` does not have the placement's site.
    """
    layer = _layer(placement, anatomy)
    return MODULES[placement.module].count(layer, placement.role, placement.size, placement.all_options)


def count_trained(placement: Placement, anatomy: Anatomy) -> int:
    """Parameters of one placement that train.

    Raises:
        UnknownSiteError: `anatomy` does not have the placement's site.
    """
    layer = _layer(placement, anatomy)
    return MODULES[placement.module].count_trained(layer, placement.role, placement.size, placement.all_options)


def _layer(placement: Placement, anatomy: Anatomy) -> Layer:
    layer = anatomy.layer(placement.stack, placement.layer)
    if layer is None or not MODULES[placement.module].supports(layer, placement.role):
        raise UnknownSiteError(
            f"{anatomy.model_type}: {placement.stack} layer {placement.layer} has no place for {placement.module} at "
            f"{placement.role}"
        )
    return layer
