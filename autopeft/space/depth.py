"""An architecture on a model with another number of layers: the same modules, at the same relative height.

Layer j of n takes what layer ⌊(j + 1/2)·m/n⌋ of m holds. Where depths are equal, nothing changes.
"""

from collections.abc import Mapping
from dataclasses import replace

from autopeft.errors import ModelError
from autopeft.space.anatomy import Anatomy
from autopeft.space.architecture import Architecture

Depth = Mapping[str, int]
"""Stack name → number of layers."""


def depth_of(anatomy: Anatomy) -> dict[str, int]:
    """Layers by stack."""
    return {stack.name: len(stack.layers) for stack in anatomy.stacks}


def source_layer(layer: int, n_source: int, n_target: int) -> int:
    """The layer of the source, from 0, whose modules the target's `layer` takes."""
    return (2 * layer + 1) * n_source // (2 * n_target)


def map_layers(architecture: Architecture, source: Depth, target: Depth) -> tuple[Architecture, tuple[str, ...]]:
    """The architecture for a model of depth `target`, and what was done to it, in words; nothing where depths agree.

    A model's only stack stands for another's only stack, whatever their names (`encoder`, `decoder`).

    Raises:
        ModelError: the target has no stack for one of the source's.
    """
    names = _stack_names(architecture, source, target)
    notes = [f"stack {old} is taken as {new}" for old, new in names.items() if old != new]
    placements = []
    for old, new in names.items():
        n_source, n_target = source[old], target[new]
        mine = [p for p in architecture.placements if p.stack == old]
        for layer in range(n_target):
            taken = source_layer(layer, n_source, n_target)
            placements += [replace(p, stack=new, layer=layer) for p in mine if p.layer == taken]
        if n_source != n_target:
            pairs = ", ".join(f"{source_layer(j, n_source, n_target)}→{j}" for j in range(n_target))
            notes.append(f"{new}: {n_source} layers mapped proportionally onto {n_target}: {pairs}")
            left = sorted({p.layer for p in mine} - {source_layer(j, n_source, n_target) for j in range(n_target)})
            if left:
                notes.append(f"{new}: the modules of layer {', '.join(map(str, left))} are left out")
    mapped = Architecture.of(placements)
    if architecture and not mapped:
        raise ModelError(f"no module is left on {_text(target)} layers, of {len(architecture)} on {_text(source)}")
    return mapped, tuple(notes)


def _stack_names(architecture: Architecture, source: Depth, target: Depth) -> dict[str, str]:
    """Stack of the source → stack of the target, for the stacks that hold modules."""
    used = tuple(dict.fromkeys(p.stack for p in architecture.placements))
    if unknown := [stack for stack in used if stack not in source]:
        raise ModelError(f"the architecture has modules in stack {unknown[0]}, its base model has {_text(source)}")
    if len(source) == len(target) == 1:
        return dict(zip(used, target, strict=False))
    if missing := [stack for stack in used if stack not in target]:
        raise ModelError(f"the architecture has modules in stack {missing[0]}, the model has {_text(target)}")
    return {stack: stack for stack in used}


def _text(depth: Depth) -> str:
    return ", ".join(f"{stack} {n}" for stack, n in depth.items())
