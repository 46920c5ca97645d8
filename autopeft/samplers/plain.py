"""Plain points and steps between them: few kinds of modules, the same settings in every group of layers.

A random point of dozens of dimensions holds a little of everything, in each group something else. What is published is
plain, and so is much of what is good: one or two kinds with one choice of sites, sized to the budget. No sequence of
single changes within a budget leads from one such point to another: kinds must change places in all groups at once.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

import numpy as np

from autopeft.space.modules import Scalar
from autopeft.space.parameters import Choices, Parameter, Params, first_on
from autopeft.space.search_space import Candidate, SearchSpace

_MOST_KINDS = 3
"""Kinds of modules that a plain point holds at most."""

_LIKENED, _REPLACED = 0.2, 0.2
"""Shares of steps that make a group like another, and that put one kind in the place of another."""

Key = tuple[str, str]
"""(module, setting): what the groups have in common."""


class Ties:
    """The dimensions of a space that mean the same in different groups."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.key_of: dict[str, Key] = {}
        self.names: dict[Key, list[str]] = defaultdict(list)
        self.unit_of: dict[str, str] = {}
        self.domains: dict[str, Choices] = {}
        for unit in space.structure.units:
            for entry in unit.entries:
                for parameter in entry.parameters:
                    if isinstance(parameter.domain, Choices):
                        key = entry.module, parameter.name.removeprefix(f"{entry.prefix}.")
                        self.key_of[parameter.name], self.unit_of[parameter.name] = key, unit.name
                        self.domains[parameter.name] = parameter.domain
                        self.names[key].append(parameter.name)
        self.sizes = {key: names for key, names in self.names.items() if key[1] == "size"}
        self.optional = sorted(
            module for (module, _), names in self.sizes.items() if all(0 in self.domains[name].values for name in names)
        )

    @property
    def units(self) -> list[str]:
        return list(dict.fromkeys(self.unit_of.values()))


_TIES: "WeakKeyDictionary[SearchSpace, Ties]" = WeakKeyDictionary()


def ties(space: SearchSpace) -> Ties:
    found = _TIES.get(space)
    if found is None:
        found = _TIES[space] = Ties(space)
    return found


def plain(space: SearchSpace, rng: np.random.Generator) -> Candidate:
    """A valid point of one to three kinds, each with the same settings wherever it is, sized to the budget."""
    known = ties(space)
    n_kinds = 1 + int(rng.integers(_MOST_KINDS))
    wanted = {known.optional[int(at)] for at in rng.permutation(len(known.optional))[:n_kinds]}
    chosen: dict[Key, Scalar] = {}

    def choose(parameter: Parameter) -> Scalar:
        key = known.key_of.get(parameter.name)
        if key is None:
            return parameter.domain.sample(rng)
        if key not in chosen or not parameter.domain.contains(chosen[key]):
            chosen[key] = _drawn(parameter, key, wanted, set(known.optional), rng)
        return chosen[key]

    candidate = space.bind(space.complete({}, choose))
    while space.excess(candidate) > 1 and (smaller := _resized(known, candidate, rng, up=False)) is not None:
        candidate = smaller
    if not space.is_valid(candidate):
        candidate = space.repair(dict(candidate.params), rng)
    return filled(space, candidate, rng)


def _drawn(parameter: Parameter, key: Key, wanted: set[str], optional: set[str], rng: np.random.Generator) -> Scalar:
    module, setting = key
    if setting != "size" or module not in optional:
        return parameter.domain.sample(rng)
    assert isinstance(parameter.domain, Choices)
    on = [value for value in parameter.domain.values if value != 0]
    return on[int(rng.integers(len(on)))] if module in wanted else 0


def filled(space: SearchSpace, candidate: Candidate, rng: np.random.Generator) -> Candidate:
    """The point enlarged, a module in all groups at a time and then in single ones, until nothing that it has fits in
    larger; no module is added."""
    known = ties(space)
    while (larger := _resized(known, candidate, rng, up=True)) is not None:
        candidate = larger
    while (larger := _resized(known, candidate, rng, up=True, singly=True)) is not None:
        candidate = larger
    return candidate


def together(space: SearchSpace, candidate: Candidate, rng: np.random.Generator, n_points: int) -> Iterator[Candidate]:
    """Up to `n_points` valid points: a setting changed in all groups, a kind in the place of another, or a group made
    like another; then fitted to the budget."""
    known = ties(space)
    keys = list(known.names)
    for _ in range(n_points):
        active = dict(candidate.params)
        kind_of_move = rng.random()
        if kind_of_move < _LIKENED and len(known.units) > 1:
            active |= _likened(known, active, rng)
        elif kind_of_move < _LIKENED + _REPLACED and len(known.optional) > 1:
            active |= _replaced(known, active, rng)
        else:
            for _ in range(1 + int(rng.integers(2))):
                active |= _set_in_all(known, keys[int(rng.integers(len(keys)))], active, rng)
        yield from _fitted(space, candidate, active, rng)


def crossed(
    space: SearchSpace, parents: Sequence[Candidate], rng: np.random.Generator, n_points: int
) -> Iterator[Candidate]:
    """Up to `n_points` valid points that have every kind of module from one of two parents."""
    known = ties(space)
    if len(parents) < 2:
        return
    for _ in range(n_points):
        one, other = (dict(parents[int(at)].params) for at in rng.permutation(len(parents))[:2])
        from_other = {module for module in sorted({key[0] for key in known.names}) if rng.random() < 0.5}
        active = {name: value for name, value in one.items() if known.key_of.get(name, ("",))[0] not in from_other}
        active |= {name: value for name, value in other.items() if known.key_of.get(name, ("",))[0] in from_other}
        yield from _fitted(space, parents[0], active, rng)


def _fitted(
    space: SearchSpace, origin: Candidate, active: dict[str, Scalar], rng: np.random.Generator
) -> Iterator[Candidate]:
    other = space.bind(space.complete(active, first_on))
    if not space.is_valid(other):
        if not other.least.n_placements:
            return
        other = space.repair(dict(other.params), rng)
    if rng.random() < 0.5:
        other = filled(space, other, rng)
    if other.params != origin.params:
        yield other


def _set_in_all(known: Ties, key: Key, active: Params, rng: np.random.Generator) -> dict[str, Scalar]:
    names = known.names[key]
    values = known.domains[names[0]].values
    value = values[int(rng.integers(len(values)))]
    if key[1] == "size" and value != 0 and rng.random() < 0.5:
        names = [name for name in names if active.get(name, 0) != 0] or names
    return {name: value for name in names if value in known.domains[name].values}


def _replaced(known: Ties, active: Params, rng: np.random.Generator) -> dict[str, Scalar]:
    """A kind off, and another with one size wherever that was."""
    sizes = {module: known.sizes[module, "size"] for module in known.optional}
    present = [module for module, names in sizes.items() if any(active.get(name, 0) != 0 for name in names)]
    if not present:
        return {}
    old = present[int(rng.integers(len(present)))]
    new = [module for module in known.optional if module != old][int(rng.integers(len(known.optional) - 1))]
    units = {known.unit_of[name] for name in sizes[old] if active.get(name, 0) != 0}
    on = [name for name in sizes[new] if known.unit_of[name] in units]
    values = [value for value in known.domains[sizes[new][0]].values if value != 0]
    value = values[int(rng.integers(len(values)))]
    return dict.fromkeys(sizes[old], 0) | {name: value for name in on if value in known.domains[name].values}


def _likened(known: Ties, active: Params, rng: np.random.Generator) -> dict[str, Scalar]:
    units = known.units
    source, target = (units[int(at)] for at in rng.permutation(len(units))[:2])
    by_key = {known.key_of[name]: value for name, value in active.items() if known.unit_of.get(name) == source}
    return {
        name: by_key[key]
        for name, key in known.key_of.items()
        if known.unit_of[name] == target and key in by_key and by_key[key] in known.domains[name].values
    }


def _resized(
    known: Ties, candidate: Candidate, rng: np.random.Generator, *, up: bool, singly: bool = False
) -> Candidate | None:
    """With a module that it has a step larger (and valid), or smaller; None where there is no such."""
    active = dict(candidate.params)
    groups = [[name for name in names if active.get(name, 0) != 0] for names in known.sizes.values()]
    if singly:
        groups = [[name] for names in groups for name in names]
    for at in rng.permutation(len(groups)):
        changed = {name: _next(known.domains[name], active[name], up) for name in groups[int(at)]}
        if not changed or changed == {name: active[name] for name in changed}:
            continue
        other = known.space.bind(_with(known.space, active, changed))
        if up and (other.least.stored <= candidate.least.stored or not known.space.is_valid(other)):
            continue
        return other
    return None


def _with(space: SearchSpace, active: dict[str, Scalar], changed: dict[str, Scalar]) -> dict[str, Scalar]:
    """Active params with some changed; looked through anew only where others hang on what changes."""
    watched = space.structure.watched
    if any((active[n] in values) != (value in values) for n, value in changed.items() for values in watched.get(n, ())):
        return space.complete(active | changed, first_on)
    return active | changed


def _next(domain: Choices, value: Scalar, up: bool) -> Scalar:
    """The next larger size or the next smaller one that is on; the value itself at the end."""
    at = domain.values.index(value) + (1 if up else -1)
    return domain.values[at] if 0 <= at < len(domain.values) and domain.values[at] != 0 else value
