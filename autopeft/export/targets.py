"""Where an adapter can go: every target is a function that fills a folder, and says by name what it cannot hold."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from autopeft.errors import ExportError, UnknownNameError
from autopeft.export.card import model_card
from autopeft.export.folders import whole_folder
from autopeft.export.plain_lora import CONFIG_FILE, WEIGHTS_FILE, is_plain_lora, write_plain_lora
from autopeft.export.spec import SPEC_FILE, AdapterSpec, spec_of
from autopeft.resources import atomic_write
from autopeft.study.layout import trial_folder
from autopeft.study.record import StudyView, TrialRecord, best_trial


@dataclass(frozen=True)
class Target:
    """One way out."""

    title: str
    write: Callable[[Path, AdapterSpec, Path], None]
    """(folder of the trial's adapter, spec, empty folder to fill)."""


def _write_spec(source: Path, spec: AdapterSpec, folder: Path) -> None:
    atomic_write(folder / SPEC_FILE, spec.to_text())


def _write_hybrid(source: Path, spec: AdapterSpec, folder: Path) -> None:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(_weights(source, spec) / name, folder / name)
    atomic_write(folder / "README.md", model_card(spec, is_plain_lora=False))
    _write_spec(source, spec, folder)


def _write_peft(source: Path, spec: AdapterSpec, folder: Path) -> None:
    if not is_plain_lora(spec.parsed_architecture):
        _write_hybrid(source, spec, folder)
        return
    write_plain_lora(_weights(source, spec), spec, folder)
    atomic_write(folder / "README.md", model_card(spec, is_plain_lora=True))
    _write_spec(source, spec, folder)


def _weights(source: Path, spec: AdapterSpec) -> Path:
    if not all((source / name).is_file() for name in (CONFIG_FILE, WEIGHTS_FILE)):
        raise ExportError(
            f"the weights of trial {spec.evidence.trial} were not kept (only those of the best trials are: --keep). "
            "Its architecture can be exported with --target spec"
        )
    return source


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "autopeft": Target("adapter folder for PEFT (peft_type AUTOPEFT), spec and model card", _write_hybrid),
        "peft": Target("the same; a LoRA-only architecture as a plain LoRA adapter", _write_peft),
        "spec": Target("autopeft_spec.json alone", _write_spec),
    }
)


def export(
    view: StudyView, run: Path, out: Path, target: str = "autopeft", trial: int | None = None, force: bool = False
) -> AdapterSpec:
    """Write the study's best trial, or the one with number `trial`, into the folder `out`; returns its spec.

    Raises:
        UnknownNameError: no such target.
        ExportError: no such trial, it is not complete, its weights are gone, or `out` exists and `force` is not given.
    """
    if target not in TARGETS:
        raise UnknownNameError("export target", target, tuple(TARGETS))
    chosen = _choose(view, trial)
    spec = spec_of(view, chosen)
    with whole_folder(out, force) as folder:
        TARGETS[target].write(trial_folder(run, chosen.number), spec, folder)
    return spec


def _choose(view: StudyView, number: int | None) -> TrialRecord:
    if number is None:
        best = best_trial(view.trials)
        if best is None:
            raise ExportError("the study has no completed trial yet")
        return best
    if not 0 <= number < len(view.trials):
        raise ExportError(f"there is no trial {number}; the study has 0 to {len(view.trials) - 1}")
    return view.trials[number]
