"""The README of an exported adapter: what it is, what it scored, how to load it."""

from autopeft.export.spec import AdapterSpec, Evidence
from autopeft.export.target import problem_of
from autopeft.space.layer_map import layer_map

_SPECIAL = str.maketrans(
    {"<": "&lt;", ">": "&gt;", "|": "\\|", "\n": " ", "\r": " ", "[": "&#91;", "]": "&#93;", "`": "'"}
)


def model_card(spec: AdapterSpec, is_plain_lora: bool) -> str:
    """Markdown with the front matter of the hub."""
    base, size, found = spec.base_model, spec.parameters, spec.evidence
    rows = [
        *_figures(found),
        f"| stored adapter parameters | {size.stored:,} ({100 * size.stored / base.n_parameters:.3f} % of the base) |",
        f"| trained adapter parameters | {size.trained:,} |",
        f"| task head, apart | {size.head:,} |",
        *_found(spec),
    ]
    front = ["library_name: peft", "tags: [autopeft, peft, " + ("lora]" if is_plain_lora else "hybrid-adapter]")]
    if not base.name.startswith("package:") and "/" in base.name and not base.name.startswith((".", "/", "~")):
        front.append(f'base_model: "{_text(base.name)}"')
    versions = ", ".join(f"{_text(name)} {_text(version)}" for name, version in spec.provenance.items())
    return "\n".join(
        [
            "---",
            *front,
            "---",
            "",
            f"# Adapter for {_text(base.name)} on {_text(spec.task.name)}",
            "",
            _opening(spec),
            "",
            "| | |",
            "|---|---|",
            *rows,
            "",
            "## Architecture",
            "",
            "```",
            *layer_map(spec.parsed_architecture),
            "```",
            "",
            "## Use",
            "",
            "```python",
            *_snippet(spec, is_plain_lora),
            "```",
            "",
            *_labels(spec),
            f"Made with {versions}. Everything needed to repeat it is in `autopeft_spec.json`.",
            "",
        ]
    )


def _figures(found: Evidence) -> list[str]:
    rows = [f"| {found.metric} on validation (selected by it: optimistic) | {found.validation:.4f} |"]
    if found.held_out is not None:
        low, high = found.held_out.interval
        value = next(iter(found.held_out.metrics.values()))
        which = "one seed" if found.seeds is None else f"seed {found.seeds.saved_seed}, whose weights these are"
        rows.append(
            f"| {found.metric} on {found.held_out.rows:,} held-out rows | "
            f"{value:.4f} (95 % interval over rows {low:.4f} to {high:.4f}; {which}) |"
        )
    if found.seeds is not None and found.seeds.interval is not None:
        low, high = found.seeds.interval
        rows.append(
            f"| the same, mean of {len(found.seeds.figures)} seeds | "
            f"{found.seeds.mean:.4f} (95 % t-interval over seeds {low:.4f} to {high:.4f}) |"
        )
    return rows


def _found(spec: AdapterSpec) -> list[str]:
    size, found, origin = spec.parameters, spec.evidence, spec.origin
    rows = []
    if size.budget is not None and size.budget_parameters is not None:
        rows.append(f"| budget | {_text(size.budget)} = {size.budget_parameters:,} |")
    if found.trial is not None:
        rows.append(f"| found in | trial {found.trial}, of {found.trials} completed, study seed {found.seed} |")
    if origin is not None:
        rows.append(
            f"| found on | {_text(origin.task)} with {_text(origin.base_model)}: "
            f"{origin.metric} {origin.validation:.4f} on its validation |"
        )
        rows += [f"| layers | {_text(note)} |" for note in origin.layers]
    return rows


def _opening(spec: AdapterSpec) -> str:
    size = spec.parameters
    if spec.origin is not None:
        return "An architecture that autopeft found elsewhere, trained on this task."
    if size.budget is None or size.budget_parameters is None:
        return "A given architecture, trained by autopeft."
    return f"Found by autopeft under a budget of {_text(size.budget)} ({size.budget_parameters:,} stored parameters)."


def _snippet(spec: AdapterSpec, is_plain_lora: bool) -> list[str]:
    problem = problem_of(spec)
    heads = f", num_labels={problem.n_outputs}" if problem.has_head and problem.n_outputs else ""
    name = repr(spec.base_model.name)
    lines = []
    if spec.base_model.name.startswith("package:"):
        lines.append("import autopeft")
        name = f"autopeft.find_model({name})"
    elif not is_plain_lora:
        lines.append("import autopeft  # makes peft_type AUTOPEFT known to PEFT")
    return [
        *lines,
        "from peft import PeftModel",
        f"from transformers import {problem.auto}",
        "",
        f"base = {problem.auto}.from_pretrained({name}{heads})",
        'model = PeftModel.from_pretrained(base, "PATH OF THIS FOLDER").eval()',
    ]


def _labels(spec: AdapterSpec) -> list[str]:
    if not spec.task.labels or problem_of(spec).n_outputs != len(spec.task.labels):
        return []
    return ["Outputs: " + ", ".join(f"{i} = {_text(label)}" for i, label in enumerate(spec.task.labels)) + ".", ""]


def _text(value: str) -> str:
    """A name from a file, harmless within Markdown."""
    return value.translate(_SPECIAL)
