"""Tables of real trainings: architectures of several spaces, each trained on several tasks with one cheap recipe.

A table is a file of JSON lines: a header with its provenance, `point` lines (an architecture: its space, params and
stored parameters) and `training` lines (point, task, seed, score, seconds). It holds no text of any data set. Every
line is written when it is known, and the same command goes on where it stopped.

Points alternate between random ones (`SearchSpace.sample`) and the same grown until nothing more fits into the budget;
the named points of the spaces, shrunk to the budget, come first. They follow from the seed alone.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from autopeft.bench.surface import stream
from autopeft.engine.data import TaskData
from autopeft.engine.fingerprint import fingerprint
from autopeft.engine.recipe import TrialRecipe, load_recipe
from autopeft.engine.splits import draw
from autopeft.engine.trial import NotFiniteError, Trainer, TrialJob
from autopeft.errors import StudyMismatchError, UsageError
from autopeft.space.anatomy import Anatomy
from autopeft.space.budget import ParameterBudget
from autopeft.space.search_space import Candidate, SearchSpace
from autopeft.space.site_map import NO_SITE_MAP
from autopeft.space.spec import load_space
from autopeft.study.planning import LIBRARIES, name_word, resolve_task
from autopeft.study.settings import SearchSettings

FORMAT_VERSION = 1
BUDGET = "0.5%"
_VALIDATION_ROWS = 300
"""Rows that score a training, drawn by a hash of their text: more cost more time than they add."""


@dataclass(frozen=True)
class TableSettings:
    """What a table holds."""

    tasks: tuple[str, ...]
    """`docstrings`, or data as `--data` takes them."""
    points: tuple[tuple[str, int], ...] = (("hybrid", 250), ("autopeft", 150))
    """Space → architectures of it."""
    recipe: str = "bench"
    seeds: int = 1
    seed: int = 0
    """Of the points and of the first training."""
    set: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Task:
    name: str
    data: TaskData
    trainer: Callable[[], Trainer]


def make_table(out: Path, settings: TableSettings, tell: Callable[[str], None] = lambda line: None) -> int:
    """Train what the table at `out` still lacks, task by task for every point; returns how many trainings it holds.

    Raises:
        UsageError: a space, recipe, data set or model that is unknown or cannot be used.
        StudyMismatchError: `out` holds a table of other tasks, points, recipe or model.
    """
    recipe = load_recipe(settings.recipe, settings.set)
    tasks, anatomy, model = _tasks(settings, recipe)
    points = list(_points(settings, anatomy))
    header = _header(settings, recipe, tasks, anatomy, model)
    done = _opened(out, header)
    trainers: dict[str, Trainer] = {}
    wanted = [
        (seed, number, task)
        for seed in range(settings.seed, settings.seed + settings.seeds)
        for number in range(len(points))
        for task in tasks
        if (number, task.name, seed) not in done["training"]
    ]
    for at, (seed, number, task) in enumerate(wanted, start=1):
        space, how, candidate = points[number]
        if number not in done["point"]:
            _append(out, _point_line(number, space, how, candidate))
            done["point"].add(number)
        if task.name not in trainers:
            trainers[task.name] = task.trainer()
        line = _trained(trainers[task.name], candidate, number, task.name, seed)
        _append(out, line)
        told = "failed" if line["score"] is None else f"{line['score']:.4f}"
        tell(f"{at}/{len(wanted)}  point {number} {space}  {task.name}  seed {seed}  {told}  {line['seconds']:.1f} s")
    return len(done["training"]) + len(wanted)


def _tasks(settings: TableSettings, recipe: TrialRecipe) -> tuple[list[_Task], Anatomy, str]:
    if not settings.tasks:
        raise UsageError("bench table: name at least one task with --data")
    from autopeft.engine.transformer_backend import TransformerBackend

    found: list[_Task] = []
    for source in settings.tasks:
        task = resolve_task(SearchSettings(budget=BUDGET, data=source, seed=settings.seed), recipe, NO_SITE_MAP)
        data = _shortened(task.data)
        name = name_word(source)
        backend = TransformerBackend(model=task.model, revision=task.revision, recipe=recipe, data=data)
        found.append(_Task(name, data, backend.open))
    if len({task.name for task in found}) < len(found):
        raise UsageError("bench table: two tasks have the same name; give folders of different names")
    return found, task.anatomy, task.model


def _shortened(data: TaskData) -> TaskData:
    """With fewer validation rows; the test, which no training here looks at, is cut to as few as may be."""
    validation = data.splits["validation"]
    kept = draw(validation.texts, min(_VALIDATION_ROWS, len(validation)), 0)
    splits = {**data.splits, "validation": validation.take(kept), "test": data.splits["test"].take(range(1))}
    return replace(data, splits=splits)


def _points(settings: TableSettings, anatomy: Anatomy) -> Iterator[tuple[str, str, Candidate]]:
    """(space, how it was made, point); spaces take turns, so that a table that is not finished holds all of them."""
    budget = ParameterBudget.parse(BUDGET).resolve(anatomy.n_parameters)
    walks = [(name, _of_space(name, anatomy, budget, settings.seed, n)) for name, n in settings.points]
    total = max(n for _, n in settings.points)
    given = dict.fromkeys((name for name, _ in settings.points), 0)
    for step in range(1, total + 1):
        for (name, walk), (_, n) in zip(walks, settings.points, strict=True):
            while given[name] < round(n * step / total):
                given[name] += 1
                yield name, *next(walk)


def _of_space(name: str, anatomy: Anatomy, budget: int, seed: int, n: int) -> Iterator[tuple[str, Candidate]]:
    space = SearchSpace(load_space(name), anatomy, budget)
    rng = stream("table", name, seed)
    seen: set[tuple[str, tuple[tuple[str, Any], ...]]] = set()
    named = [point for point in space.named_points().values() if isinstance(point, Candidate)]

    for point in named:
        candidate = space.repair(dict(point.params), rng)
        seen.add((candidate.architecture.id, candidate.training))
        yield "named", candidate
    for number in range(100 * n):
        candidate = space.sample(rng)
        how = "sampled"
        if number % 2:
            candidate, how = space.grow(dict(candidate.params), rng), "grown"
        key = (candidate.architecture.id, candidate.training)
        if key in seen:
            continue
        seen.add(key)
        yield how, candidate
    raise UsageError(f"bench table: space '{name}' does not hold {n} different architectures within {BUDGET}")


def _trained(trainer: Trainer, candidate: Candidate, number: int, task: str, seed: int) -> dict[str, Any]:
    start, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        job = TrialJob(number, candidate.architecture, candidate.training, seed, Path(folder) / "trial")
        try:
            result = trainer.train(job, lambda record: None)
            score, curve = result.score, [round(epoch.metrics[0][1], 5) for epoch in result.epochs]
        except NotFiniteError:
            score, curve = None, []
    return {
        "kind": "training",
        "point": number,
        "task": task,
        "seed": seed,
        "score": None if score is None else round(score, 5),
        "curve": curve,
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }


def _header(
    settings: TableSettings, recipe: TrialRecipe, tasks: Sequence[_Task], anatomy: Anatomy, model: str
) -> dict[str, Any]:
    import torch

    return {
        "kind": "header",
        "version": FORMAT_VERSION,
        "command": "autopeft bench table",
        "model": {"name": model, "fingerprint": fingerprint(model, None), "anatomy": anatomy.to_json()},
        "budget": {"text": BUDGET, "parameters": ParameterBudget.parse(BUDGET).resolve(anatomy.n_parameters)},
        "recipe": _recipe_json(recipe),
        "tasks": {
            task.name: {
                "content_hash": task.data.content_hash,
                "rows": {split: len(task.data.splits[split]) for split in ("train", "validation")},
                "classes": task.data.n_labels,
            }
            for task in tasks
        },
        "points": dict(settings.points),
        "spaces": {name: _hash(load_space(name).model_dump(mode="json")) for name, _ in settings.points},
        "seed": settings.seed,
        "libraries": {name: version(name) for name in LIBRARIES},
        "threads": torch.get_num_threads(),
    }


def _recipe_json(recipe: TrialRecipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude={"task": {"dataset", "choices"}})


def parse_points(text: str) -> tuple[tuple[str, int], ...]:
    """`hybrid=250,autopeft=150`.

    Raises:
        UsageError: another form.
    """
    found: list[tuple[str, int]] = []
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        if not name or not number.isascii() or not number.isdigit() or int(number) < 1:
            raise UsageError(f"--points: {part.strip()!r} is not of the form hybrid=250")
        found.append((name, int(number)))
    return tuple(found)


_MAY_DIFFER = ("libraries", "threads", "command")


def _opened(out: Path, header: Mapping[str, Any]) -> dict[str, set[Any]]:
    """What the table holds already; a half-written last line is cut off."""
    done: dict[str, set[Any]] = {"point": set(), "training": set()}
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        _append(out, header)
        return done
    text = out.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        os.truncate(out, len(text.encode()))
    lines = [json.loads(line) for line in text.splitlines()]
    if not lines:
        _append(out, header)
        return done
    kept = {name: value for name, value in lines[0].items() if name not in _MAY_DIFFER}
    with suppress(ValidationError):  # a table of before a setting was added has that setting at its default
        kept["recipe"] = _recipe_json(TrialRecipe.model_validate(kept.get("recipe")))
    asked = json.loads(json.dumps({name: value for name, value in header.items() if name not in _MAY_DIFFER}))
    if kept != asked:
        different = ", ".join(sorted(name for name in {*kept, *asked} if kept.get(name) != asked.get(name)))
        raise StudyMismatchError(f"{out}: a table with another {different}. Give another --out, or the same options")
    for line in lines[1:]:
        if line["kind"] == "point":
            done["point"].add(line["point"])
        else:
            done["training"].add((line["point"], line["task"], line["seed"]))
    return done


def _point_line(number: int, space: str, how: str, candidate: Candidate) -> dict[str, Any]:
    return {
        "kind": "point",
        "point": number,
        "space": space,
        "how": how,
        "id": candidate.architecture.id,
        "stored": candidate.stored,
        "params": dict(candidate.params),
    }


def _append(out: Path, line: Mapping[str, Any]) -> None:
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, separators=(",", ":")) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
