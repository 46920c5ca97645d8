"""The architecture of a spec, made to stand in a given model: its layers mapped where the depth differs."""

from collections.abc import Callable

from autopeft.errors import AutopeftError, ConfigError, ModelError, UnknownSiteError
from autopeft.export.reading import Given
from autopeft.space.anatomy import Anatomy
from autopeft.space.architecture import Architecture
from autopeft.space.depth import Depth, depth_of, map_layers
from autopeft.space.modules import MODULES
from autopeft.space.site_map import NO_SITE_MAP, SiteMap


def place_in(given: Given, anatomy: Anatomy, *, may_map: bool) -> tuple[Architecture, tuple[str, ...]]:
    """The architecture for the model, and what was changed, in words. A bare architecture is taken as it is.

    Raises:
        ModelError: the depth differs and `may_map` is not given, or cannot be told.
        UnknownSiteError: the model has no place for some modules; names them all.
        ConfigError: gate `mean` in a causal stack.
    """
    architecture, notes = given.architecture, tuple[str, ...]()
    if given.spec is not None:
        source, target = _source_depth(given, anatomy), depth_of(anatomy)
        if source != target:
            if list(source.values()) != list(target.values()) and not may_map:
                raise ModelError(
                    f"{given.name}: found on a model of {_text(source)} layers, this {anatomy.model_type} has "
                    f"{_text(target)}. Map them proportionally with map_layers=True"
                )
            architecture, notes = map_layers(architecture, source, target)
    check_places(architecture, anatomy)
    return architecture, notes


def site_map_for(given: Given, read: Callable[[SiteMap], Anatomy]) -> SiteMap:
    """The map that the architecture comes with, where the model has all that it names; else sites as recognised.

    `read` gives the model's anatomy by a map.

    Raises:
        ModelError: no transformer layers are recognised without a map either.
    """
    try:
        read(given.site_map)
    except ModelError:
        read(NO_SITE_MAP)
        return NO_SITE_MAP
    return given.site_map


def check_places(architecture: Architecture, anatomy: Anatomy) -> None:
    """
    Raises:
        UnknownSiteError: the model has no place for some modules; names them all.
        ConfigError: gate `mean` in a causal stack.
    """
    missing: dict[str, list[int]] = {}
    for p in architecture.placements:
        layer = anatomy.layer(p.stack, p.layer)
        if layer is None or not MODULES[p.module].supports(layer, p.role):
            missing.setdefault(f"{p.module} at {p.stack} {p.role}", []).append(p.layer)
    if missing:
        depth, (_, _, first) = _text(depth_of(anatomy)), anatomy.layers[0]
        named = "; ".join(f"{what} in layer {', '.join(map(str, layers))}" for what, layers in missing.items())
        raise UnknownSiteError(
            f"this {anatomy.model_type} model has no place for {named}. "
            f"It has {depth} layers, with {', '.join(first.roles)}"
        )
    causal = [p for p in architecture.placements if p.stack == "decoder" and p.all_options.get("gate") == "mean"]
    if causal:
        raise ConfigError(
            [f"gate 'mean' in layer {causal[0].layer}: in a causal model a token would see later ones. Use 'token'"]
        )


def _source_depth(given: Given, anatomy: Anatomy) -> Depth:
    """Layers of the model that the architecture was found on: as the spec says, else from that model's config."""
    from autopeft.engine.models import load_anatomy

    assert given.spec is not None
    base = given.spec.base_model
    if base.layers:
        return base.layers
    if base.anatomy == anatomy.fingerprint:
        return depth_of(anatomy)
    try:
        return depth_of(load_anatomy(base.name, base.revision, given.site_map))
    except AutopeftError as error:
        raise ModelError(
            f"{given.name}: this spec of version 1 does not say how deep its base model is, and that cannot be "
            f"read: {error}"
        ) from error


def _text(depth: Depth) -> str:
    return " + ".join(f"{n} {stack}" for stack, n in depth.items())
