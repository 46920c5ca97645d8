"""From an architecture back to params: the inverse of building, up to what leaves no trace."""

from autopeft.space.architecture import Architecture
from autopeft.space.layout import Layout
from autopeft.space.modules import Scalar
from autopeft.space.parameters import Params
from autopeft.space.units import Entry, switch_name


def read_params(architecture: Architecture, structural: Params, layout: Layout, prefer_fill: bool) -> dict[str, Scalar]:
    """Params of the architecture, if it is in the space at all: decoding them tells.

    Args:
        structural: groups, pattern and allocation, where they are searched.
        prefer_fill: read sizes as `fill` where they may be.
    """
    structure, anatomy = layout.structure, layout.anatomy
    groups = layout.groups(*layout.grouping(structural))
    layers_on = {(p.stack, p.layer) for p in architecture.placements}
    params: dict[str, Scalar] = {switch_name(at): at in layers_on for at in structure.mask}
    for unit in structure.units:
        inside = [p for p in architecture.placements if unit.holds((p.stack, p.layer), groups)]
        if unit.tuned_name:
            params[unit.tuned_name] = bool(inside)
        for entry in unit.entries:
            owned = [p for p in inside if entry.owns(p)]
            params |= entry.read(owned, anatomy, prefer_fill)
            if entry.mask:
                on = {(p.stack, p.layer) for p in owned}
                params |= {entry.switch_name(at): at in on for at in entry.mask}
            if entry.depth is not None and entry.depth.is_searched:
                # Entries of a module share its depth: the largest that any of them needs.
                least = _least_depth(entry, {(p.stack, p.layer) for p in owned}, layout)
                known = params.get(entry.depth.name)
                params[entry.depth.name] = least if known is None else max(least, int(known))
    for unit in structure.units:
        for entry in unit.entries:
            if entry.shares and entry.size_name in params:
                positions = layout.positions(unit, entry, {**structural, **params})
                params[entry.size_name] = _share(entry, layout, layout.tally(positions), params)
    return params


def _least_depth(entry: Entry, layers: set[tuple[str, int]], layout: Layout) -> int:
    """The smallest depth that reaches all of these layers."""
    assert entry.depth is not None
    for k in entry.depth.values:
        if len(layout.within_depth(entry, tuple(layers), k)) == len(layers):
            return k
    raise ValueError(f"{entry.depth.name}: no depth reaches all layers")


def _share(entry: Entry, layout: Layout, counts: tuple[int, ...], params: Params) -> Scalar:
    """The share that gives the size that was read; the size itself where it is one of the choices."""
    size = params[entry.size_name]
    if size in entry.sizes:
        return size
    for share in entry.shares:
        values = tuple(share if name == entry.size_name else params.get(name) for name in entry.counted_names)
        if layout.share_size(entry, counts, layout.settings(entry, values)) == size:
            return share
    return size
