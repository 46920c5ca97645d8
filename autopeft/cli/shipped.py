"""What ships with the package: spaces, recipes, modules, samplers, targets; one of them whole; schemas of formats."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from autopeft.cli.text import big, table
from autopeft.errors import UnknownNameError, UsageError
from autopeft.resources import find_yaml, shipped_names

if TYPE_CHECKING:
    from autopeft.space.search_space import SearchSpace

Report = tuple[str, Any]


def list_shipped(what: str | None) -> Report:
    """
    Raises:
        UnknownNameError: no such kind of thing.
    """
    if what is not None and what not in _LISTS:
        raise UnknownNameError("list", what, tuple(_LISTS))
    kinds = [what] if what else list(_LISTS)
    found = {kind: _LISTS[kind]() for kind in kinds}
    blocks = [table((kind, ""), sorted(found[kind].items())) for kind in kinds]
    return "\n\n".join(blocks), found[what] if what else found


def show_shipped(
    what: Sequence[str], model: str | None, budget: str | None, max_trained: str | None, site_map: str | None
) -> Report:
    """A space, recipe or module, whole, by its name or by kind and name; a space on a model also with its dimensions.

    Raises:
        UnknownNameError: nothing of this name ships, and there is no such file.
        UsageError: more than a kind and a name.
    """
    from autopeft.space.modules import MODULES

    known = {"space": shipped_names("search_spaces"), "recipe": shipped_names("trials"), "module": tuple(MODULES)}
    match list(what):
        case [kind, name] if kind in known:
            candidates = [kind]
        case [name]:
            candidates = [kind for kind, names in known.items() if name in names]
            if not candidates and name.endswith((".yaml", ".yml")):
                candidates = ["recipe" if _is_recipe(name) else "space"]
        case _:
            raise UsageError("show: give one name, or space, recipe or module and a name; or best, trials, trial N")
    if not candidates:
        raise UnknownNameError("space, recipe or module", name, tuple({n for names in known.values() for n in names}))
    if candidates[0] == "module":
        return _module(name)
    return _recipe(name) if candidates[0] == "recipe" else _space(name, model, budget, max_trained, site_map)


def json_schema_of(what: str) -> dict[str, Any]:
    """
    Raises:
        UnknownNameError: no such format.
    """
    from pydantic import BaseModel

    from autopeft.config import json_schema
    from autopeft.engine.recipe import TrialRecipe
    from autopeft.export.spec import AdapterSpec
    from autopeft.space.spec import SpaceSpec
    from autopeft.study.settings import SearchSettings

    formats: dict[str, type[BaseModel]] = {
        "spec": AdapterSpec,
        "space": SpaceSpec,
        "recipe": TrialRecipe,
        "config": SearchSettings,
    }
    if what not in formats:
        raise UnknownNameError("format", what, tuple(formats))
    return json_schema(formats[what])


def _spaces() -> dict[str, str]:
    from autopeft.space.spec import load_space

    return {name: load_space(name).title for name in shipped_names("search_spaces")}


def _recipes() -> dict[str, str]:
    from autopeft.engine.recipe import load_recipe

    return {name: load_recipe(name).title for name in shipped_names("trials")}


def _modules() -> dict[str, str]:
    from autopeft.space.modules import MODULES

    return {name: f"{kind.title} ({kind.source})" for name, kind in MODULES.items()}


def _samplers() -> dict[str, str]:
    from autopeft.samplers import SAMPLERS

    return {name: (sampler.__doc__ or "").split(";")[0].splitlines()[0] for name, sampler in SAMPLERS.items()}


def _targets() -> dict[str, str]:
    from autopeft.export import TARGETS

    return {name: target.title for name, target in TARGETS.items()}


_LISTS: Mapping[str, Callable[[], dict[str, str]]] = {
    "spaces": _spaces,
    "recipes": _recipes,
    "modules": _modules,
    "samplers": _samplers,
    "targets": _targets,
}


def _module(name: str) -> Report:
    from autopeft.space.modules import MODULES

    if name not in MODULES:
        raise UnknownNameError("module", name, tuple(MODULES))
    kind = MODULES[name]
    allowed = {n: [*o.choices, *(["a number > 0"] if o.numeric else [])] for n, o in kind.options.items()}
    options = {n: {"default": o.default, "allowed": allowed[n]} for n, o in kind.options.items()}
    rows = [(n, str(o.default), ", ".join(allowed[n])) for n, o in kind.options.items()]
    lines = [f"{name}: {kind.title} ({kind.source})", f"size {kind.size_symbol}; stands at {', '.join(kind.roles)}"]
    data = {"name": name, "title": kind.title, "source": kind.source, "roles": kind.roles, "options": options}
    return "\n".join([*lines, *([table(("option", "default", "allowed"), rows)] if rows else [])]), data


def _is_recipe(path: str) -> bool:
    from autopeft.config import parse_yaml

    data, _ = parse_yaml(find_yaml("trials", path).read_text(encoding="utf-8"), path)
    return isinstance(data, dict) and "modules" not in data and bool({"task", "training", "model"} & set(data))


def _recipe(name: str) -> Report:
    from autopeft.config import to_yaml
    from autopeft.engine.recipe import load_recipe

    recipe = load_recipe(name)
    return to_yaml(recipe).rstrip(), recipe.model_dump(mode="json")


def _space(name: str, model: str | None, budget: str | None, max_trained: str | None, site_map: str | None) -> Report:
    from autopeft.space.spec import load_space

    spec = load_space(name)
    text = find_yaml("search_spaces", name).read_text(encoding="utf-8").rstrip()
    data: dict[str, Any] = {"name": name, "space": spec.model_dump(mode="json")}
    if model is None:
        return text, data
    from autopeft.engine.models import load_anatomy
    from autopeft.space.budget import ParameterBudget
    from autopeft.space.parameters import Choices
    from autopeft.space.search_space import SearchSpace
    from autopeft.space.site_map import find_site_map

    anatomy = load_anatomy(model, site_map=find_site_map(site_map))
    n_model = anatomy.n_parameters
    trained = ParameterBudget.parse(max_trained, "max-trained").resolve(n_model) if max_trained else None
    bound = SearchSpace(spec, anatomy, ParameterBudget.parse(budget or "0.5%").resolve(n_model), trained)
    rows = []
    for parameter in bound.parameters:
        d = parameter.domain
        values = ", ".join(map(str, d.values)) if isinstance(d, Choices) else f"{d.low:g} to {d.high:g}"
        needs = " and ".join(parent for parent, _ in parameter.conditions)
        rows.append((parameter.name, values + (" (log)" if not isinstance(d, Choices) and d.log else ""), needs))
    lines, figures = space_figures(bound, budget or "0.5%")
    data |= {**figures, "dimensions": [{"name": n, "values": v, "needs": c} for n, v, c in rows]}
    return "\n".join([text, "", f"on {model}:", *lines, "", table(("dimension", "values", "only with"), rows)]), data


def space_figures(space: "SearchSpace", budget: str) -> tuple[list[str], dict[str, Any]]:
    """How large a bound space is, how much of it the budget admits, and its named points; as lines and as data."""
    spec, anatomy, share = space.spec, space.anatomy, space.share()
    lines = [f"points   {big(space.cardinality)} that hold a module, in {len(space.parameters)} dimensions"]
    if spec.published_size:
        lines.append(f"paper    {spec.published_size}")
    within = f"{100 * share.fraction:.4g}% of the points"
    join = ": " if space.max_trained is None else " "
    if space.max_trained is not None:
        within = f"and {space.max_trained:,} trained ones: {within}"
    if share.points is not None:
        lines.append(f"budget   {budget} = {space.budget:,} stored parameters{join}{within}, {big(share.points)}")
    else:
        error = f"± {100 * share.standard_error:.2g} (sampled, seed 0)"
        lines.append(f"budget   {budget} = {space.budget:,} stored parameters{join}{within} {error}")
    if not share.fraction:
        lines.append(f"         {space.infeasible()}")
    named: dict[str, Any] = {}
    for name, point in space.named_points().items():
        if isinstance(point, str):
            lines.append(f"point    {name}: not on this model and budget: {point}")
            named[name] = {"absent": point}
            continue
        fits = "" if space.is_valid(point) else ", over the budget"
        of_model = 100 * point.stored / anatomy.n_parameters
        trains = "" if point.trained == point.stored else f", {point.trained:,} trained"
        lines.append(f"point    {name}: {point.stored:,} stored parameters ({of_model:.3g}%{fits}){trains}")
        named[name] = {
            "stored": point.stored,
            "trained": point.trained,
            "fits": space.is_valid(point),
            "params": dict(point.params),
        }
    data = {
        "cardinality": space.cardinality,
        "published_size": spec.published_size,
        "budget_parameters": space.budget,
        "max_trained": space.max_trained,
        "within_budget": {
            "fraction": share.fraction,
            "standard_error": share.standard_error,
            "points": share.points,
        },
        "points": named,
        "notes": list(space.notes),
    }
    return lines + [f"note     {note}" for note in space.notes], data
